"""`hf-ddpm space` against a server that speaks the Hub's API, and what a Space is made of; no gradio is needed here."""

import argparse
import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import SpaceCard
from PIL import Image

from hf_ddpm.checkpoint import save_checkpoint
from hf_ddpm.commands import space
from hf_ddpm.errors import UserError
from hf_ddpm.hub import push_checkpoint
from hf_ddpm.space.files import PYTHON, VERSIONS

ROOT = Path(__file__).parent.parent.parent
APP = ROOT / "src" / "hf_ddpm" / "space" / "app.py"


def run(*words):
    """Run the command as the console script does."""
    parser = argparse.ArgumentParser()
    space.add_options(parser)
    space.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def pushed(hub, make_pipeline, tmp_path):
    """The name of a checkpoint on the Hub."""
    save_checkpoint(make_pipeline(), tmp_path / "checkpoint", {"name": "tiny"}, Image.new("L", (8, 8)))
    push_checkpoint(str(tmp_path / "checkpoint"), "ada/tiny")
    return "ada/tiny"


def test_the_folder_holds_a_space_that_the_hub_understands(hub, pushed, tmp_path, capsys):
    run(pushed, "--out", tmp_path / "space")
    assert f"written: {tmp_path / 'space'}" in capsys.readouterr().out
    assert sorted(file.name for file in (tmp_path / "space").iterdir()) == [
        "README.md",
        "app.py",
        "checkpoint.json",
        "requirements.txt",
    ]
    assert (tmp_path / "space" / "app.py").read_bytes() == APP.read_bytes()
    shown = json.loads((tmp_path / "space" / "checkpoint.json").read_text())
    assert shown == {"checkpoint": "ada/tiny", "commit": hub.commits("ada/tiny")[0].sha}
    header = SpaceCard.load(tmp_path / "space" / "README.md").data.to_dict()
    assert header == {
        "title": "tiny",
        "sdk": "gradio",
        "sdk_version": VERSIONS["gradio"],
        "python_version": PYTHON,
        "app_file": "app.py",
        "models": ["ada/tiny"],
    }
    assert "secret" not in (tmp_path / "space" / "README.md").read_text()


def test_the_pinned_versions_are_those_that_were_tested(pushed, tmp_path):
    run(pushed, "--out", tmp_path / "space")
    required = (tmp_path / "space" / "requirements.txt").read_text().split()
    assert {line.split("==")[0] for line in required} == {"accelerate", "diffusers", "gradio", "torch"}
    assert set(required) <= set((ROOT / "constraints.txt").read_text().split())
    assert f"on Python {PYTHON}:" in (ROOT / "constraints.txt").read_text()


def test_push_is_one_commit_and_is_repeated_in_place(hub, pushed, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(pushed, "--push", "ada/page")
    assert capsys.readouterr().out == f"pushed: {hub.url}/spaces/ada/page\n"
    assert not Path("space").exists()
    files = hub.files("ada/page", repo_type="space")
    assert files["app.py"] == APP.read_bytes()
    assert {"README.md", "requirements.txt"} < set(files)
    assert len(hub.commits("ada/page", repo_type="space")) == 2  # with the one that makes a repository
    run(pushed, "--push", "ada/page")
    assert hub.files("ada/page", repo_type="space") == files
    run(pushed, "--push", "own")
    assert ("space", "ada/own") in hub.repos()


def test_push_without_a_name_takes_the_checkpoints_and_out_writes_as_well(hub, pushed, tmp_path):
    run(pushed, "--out", tmp_path / "both", "--push")
    assert ("space", "ada/tiny") in hub.repos()
    assert ("model", "ada/tiny") in hub.repos()
    uploaded = hub.files("ada/tiny", repo_type="space")
    assert all(uploaded[file.name] == file.read_bytes() for file in (tmp_path / "both").iterdir())


def test_a_busy_hub_is_asked_again_and_a_public_space_is_no_secret(hub, pushed):
    hub.fail("POST", "repos/create", times=1, status=429)
    hub.fail("POST", "/commit/", times=1, status=500)
    run(pushed, "--push", "ada/page")
    assert "app.py" in hub.files("ada/page", repo_type="space")
    with pytest.raises(UserError, match="ada/page is already public, which --private does not change"):
        run(pushed, "--push", "ada/page", "--private")


def test_the_space_of_a_private_checkpoint_is_private(hub, make_pipeline, tmp_path, capsys):
    save_checkpoint(make_pipeline(), tmp_path / "checkpoint", {}, Image.new("L", (8, 8)))
    push_checkpoint(str(tmp_path / "checkpoint"), "ada/hidden", private=True)
    run("ada/hidden", "--push", "ada/page")
    assert hub.repo("ada/page", "space").private  # or strangers would see what it draws
    assert capsys.readouterr().out == f"pushed: {hub.url}/spaces/ada/page (private)\n"
    assert b"add a secret `HF_TOKEN`" in hub.files("ada/page", repo_type="space")["README.md"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["ada/nothing"], "ada/nothing: the repository or revision does not exist"),
        ([""], "'' must be user/name of a checkpoint on the Hub"),
        (["nothing"], "'nothing' must be user/name of a checkpoint on the Hub"),
        (["ada/a b"], "'ada/a b' cannot be the name of a repository: use user/name"),
        (
            ["ada/stock"],
            "ada/stock has no pipeline.py, which a Space needs to open it: push a checkpoint of hf_ddpm with hf-ddpm",
        ),
        (["ada/empty"], "ada/empty has no model_index.json"),
        (["."], ". is a folder, and a Space opens a checkpoint from the Hub: push it first with hf-ddpm push"),
        (["ada/tiny", "--private"], "--private needs --push"),
        (["ada/tiny", "--out", ""], "--out '' must be the name of a new folder"),
        (["ada/tiny", "--out", "full"], "the folder --out full is not empty: choose a new one"),
        (["ada/tiny", "--out", "full/file"], "--out full/file is a file: choose a new folder"),
        (["ada/tiny", "--push", "a b"], "'a b' cannot be the name of a repository: use user/name"),
        (["ada/tiny", "--push", "bob/page"], "bob/page: this token has no write access there"),
    ],
)
def test_what_cannot_be_is_one_sentence(hub, pushed, words, sentence, tmp_path, monkeypatch):
    hub.add_repo("ada/stock", {"model_index.json": b"{}"})
    hub.add_repo("ada/empty")
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/file").write_text("mine")
    with pytest.raises(UserError, match=re.escape(sentence)) as raised:
        run(*words)
    assert "\n" not in str(raised.value)
    assert Path("full/file").read_text() == "mine"
    assert not [repo for repo in hub.repos() if repo[0] == "space"]


def test_the_app_imports_what_its_requirements_bring():
    tree = ast.parse(APP.read_text())
    names = [a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    packages = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert packages == {"PIL", "diffusers", "gradio", "hf_ddpm", "numpy", "torch"}
    (ours,) = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and "hf_ddpm" in node.module]
    assert any(ours in node.orelse for node in ast.walk(tree) if isinstance(node, ast.If))  # where it is installed


def test_demo_without_gradio_says_what_to_install(run_python):
    code = "import sys, argparse\nsys.modules['gradio'] = None\n"
    code += "from hf_ddpm.errors import exit_with_a_sentence\nfrom hf_ddpm.commands import demo\n"
    code += "parser = argparse.ArgumentParser()\ndemo.add_options(parser)\n"
    code += "with exit_with_a_sentence():\n    demo.run(parser.parse_args(['x']))"
    failed = run_python(code, check=False)
    assert failed.returncode == 1
    assert failed.stderr == 'error: hf-ddpm demo needs gradio: install it with pip install "hf_ddpm[space]"\n'


def test_writing_a_space_needs_no_gradio_and_imports_none(run_python):
    shown = run_python("import sys, hf_ddpm.commands.space, hf_ddpm.space.files\nprint(*sys.modules)").stdout
    assert "gradio" not in shown.split()


def test_make_knows_how_to_install_chromium():
    done = subprocess.run(["make", "-n", "chromium"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "apt-get install -y -qq chromium chromium-driver" in done.stdout
