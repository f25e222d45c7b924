"""Pushing a checkpoint, against a server that speaks the Hub's API and the unmodified client."""

import json
import re
import shlex
import shutil
import threading
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard, constants
from PIL import Image

from hf_ddpm.checkpoint import save_checkpoint
from hf_ddpm.errors import UserError
from hf_ddpm.hub import push_checkpoint
from hf_ddpm.weights import weights_sha256

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
SCHEDULER = "scheduler/scheduler_config.json"
RAW = "unet/diffusion_pytorch_model.raw.safetensors"


@pytest.fixture
def checkpoint(make_pipeline, tmp_path):
    pipeline = make_pipeline()
    folder = tmp_path / "run" / "checkpoint"
    facts = {"name": "moons", "steps": 1200, "data": "9 images of '/home/ada/moons', split 'train'"}
    facts["recipe"] = {"data": {"source": "/home/ada/moons"}, "training": {"output_dir": str(tmp_path / "run")}}
    raw = {name: weight + 1 for name, weight in pipeline.unet.state_dict().items()}
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1}\n')
    save_checkpoint(pipeline, folder, facts, Image.new("L", (8, 8)), raw=raw, files=[log])
    (folder / "optimizer.pt").write_bytes(b"a pickle")
    (folder / ".secret").write_text("hf_ada")
    (folder / "unet" / "pytorch_model.bin").write_bytes(b"a pickle")
    return folder


@pytest.fixture
def measured(checkpoint, tmp_path):
    """(bits/dim) -> a file as `hf-ddpm likelihood` writes it of the checkpoint."""

    def write(bits, **more):
        sha256 = weights_sha256(load_unet(checkpoint))
        found = {
            "weights_sha256": sha256,
            "n": 256,
            "seed": 0,
            "T": 1000,
            "data": {"source": "/x/mnist", "origin": "local", "split": "test"},
        }
        found["bound"] = {"bits_per_dim": {"mean": bits, "standard_error": 0.02}}
        (tmp_path / "likelihood.json").write_text(json.dumps(found | more))
        return tmp_path / "likelihood.json"

    return write


def load_unet(folder):
    from hf_ddpm import HFDDPMPipeline

    return HFDDPMPipeline.from_pretrained(folder).unet


def changed_weights(folder):
    """Other weights, of the same shapes."""
    unet = load_unet(folder)
    for weight in unet.parameters():
        weight.data += 1
    unet.save_pretrained(folder / "unet")


# --- what is pushed -------------------------------------------------------------------------------------------------


def test_a_repository_holds_the_checkpoint_and_nothing_else(hub, checkpoint):
    assert push_checkpoint(str(checkpoint), "ada/moons") == f"{hub.url}/ada/moons"
    files = hub.files("ada/moons")
    assert {"model_index.json", "README.md", "training.json", "samples.png", "log.jsonl", "pipeline.py"} <= set(files)
    assert {"unet/config.json", WEIGHTS, RAW, "scheduler/scheduler_config.json"} <= set(files)
    assert not [name for name in files if name.endswith((".pt", ".bin")) or name == ".secret"]
    assert files[WEIGHTS] == (checkpoint / WEIGHTS).read_bytes()
    assert not hub.repo("ada/moons").private
    first, *_ = hub.commits("ada/moons")
    assert first.title == "moons, step 1,200"
    assert len(hub.commits("ada/moons")) == 2  # the repository's own, and one of ours


def test_no_token_and_no_folder_of_this_machine_leaves_it(hub, checkpoint, tmp_path):
    from hf_ddpm import HFDDPMPipeline

    HFDDPMPipeline.from_pretrained(checkpoint).save_pretrained(checkpoint)
    for file in ("model_index.json", "unet/config.json"):  # of what was opened, they say from where
        assert str(tmp_path) in (checkpoint / file).read_text()
    push_checkpoint(str(checkpoint), "ada/moons")
    for content in hub.files("ada/moons").values():
        for secret in (b"hf_ada", b"/home/ada", str(tmp_path).encode()):
            assert secret not in content
    assert b"moons" in hub.files("ada/moons")["training.json"]


def test_private_branch_tag_and_pull_request(hub, checkpoint):
    push_checkpoint(str(checkpoint), "ada/moons", private=True, tag="step-1200")
    assert hub.repo("ada/moons").private
    assert "refs/tags/step-1200" in str(HfApi().list_repo_refs("ada/moons").tags)
    url = push_checkpoint(str(checkpoint), "ada/moons", revision="trial")
    assert url == f"{hub.url}/ada/moons/tree/trial"
    assert WEIGHTS in hub.files("ada/moons", "trial")
    changed_weights(checkpoint)
    before = hub.files("ada/moons")
    url = push_checkpoint(str(checkpoint), "ada/moons", create_pr=True)
    assert "/discussions/1" in url
    assert hub.files("ada/moons") == before
    assert hub.files("ada/moons", "refs/pr/1")[WEIGHTS] != before[WEIGHTS]


def test_a_second_push_leaves_no_file_of_the_first_but_those_of_others(hub, checkpoint):
    push_checkpoint(str(checkpoint), "ada/moons")
    HfApi().upload_file(path_or_fileobj=b"by hand", path_in_repo="LICENSE", repo_id="ada/moons")
    (checkpoint / RAW).unlink()
    sent = len(hub.log)
    push_checkpoint(str(checkpoint), "ada/moons")
    assert RAW not in hub.files("ada/moons")
    assert hub.files("ada/moons")["LICENSE"] == b"by hand"
    assert not [r for r in hub.log[sent:] if r.method == "PUT"]  # the weights were there


# --- the card -------------------------------------------------------------------------------------------------------


def test_the_card_has_the_figures_that_commands_wrote(hub, checkpoint, measured):
    for bits in (3.51, 2.25):
        push_checkpoint(str(checkpoint), "ada/moons", metrics=[measured(bits)])
        card = ModelCard(hub.files("ada/moons")["README.md"].decode())
        (result,) = card.data.eval_results
        assert (result.metric_type, result.metric_value) == ("bits_per_dim", bits)
        assert (result.dataset_name, result.dataset_split) == ("mnist", "test")
        assert result.metric_args == {"how": "256 images, T = 1000, seed 0", "standard_error": 0.02}
        assert f"| bits/dim, variational bound | {bits} ± 0.02 | 256 images, T = 1000, seed 0 |" in card.content
        assert 'HFDDPMPipeline.from_pretrained("ada/moons")' in card.content
    push_checkpoint(str(checkpoint), "ada/moons")
    assert "Nothing was measured" in hub.files("ada/moons")["README.md"].decode()


def test_a_sentence_of_an_older_version_is_neither_read_nor_pushed(hub, checkpoint, measured):
    """Of the run, whose training.json the fixture has, and of a measurement."""
    old = measured(3.5, data="9 images of '/home/o'brien/mnist', split 'test'")
    push_checkpoint(str(checkpoint), "ada/moons", metrics=[old])
    files = hub.files("ada/moons")
    card = ModelCard(files["README.md"].decode())
    assert ") on images of moons, split train." in card.content
    assert (card.data.eval_results[0].dataset_name, card.data.eval_results[0].dataset_split) == ("not recorded", None)
    assert "data" not in json.loads(files["training.json"])
    assert not [name for name, content in files.items() if b"brien" in content]


def test_figures_of_other_weights_are_refused(hub, checkpoint, measured, tmp_path):
    with pytest.raises(UserError, match="was not measured on the weights of"):
        push_checkpoint(str(checkpoint), "ada/moons", metrics=[measured(3.5, weights_sha256="0" * 64)])
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(UserError, match=r"other\.json does not contain a JSON object .*: measure again"):
        push_checkpoint(str(checkpoint), "ada/moons", metrics=[tmp_path / "other.json"])
    with pytest.raises(UserError, match=r"the metrics file .*nowhere\.json does not exist"):
        push_checkpoint(str(checkpoint), "ada/moons", metrics=["nowhere.json"])
    assert hub.log == []


# --- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "repo_id", "said"),
    [
        ("hf_nobody", "ada/moons", r"^ada/moons: the Hub rejects this token: run `hf auth login`, or set HF_TOKEN"),
        ("hf_ada_reads", "ada/moons", r"^ada/moons: this token has no write access there"),
        ("hf_ada", "bob/moons", r"^bob/moons: this token has no write access there .*a repository of yours"),
        ("hf_ada", "a b", r"^'a b' cannot be the name of a repository: use user/name"),
        ("hf_ada", "", r"^'' cannot be the name of a repository: use user/name"),
        ("hf_ada", "ada/x..y", r"^'ada/x\.\.y' cannot be the name of a repository: use user/name"),
        ("hf_adä", "ada/moons", r"^ada/moons: the token contains 'ä', which a token cannot have: check HF_TOKEN$"),
        (False, "ada/moons", r"^ada/moons: the Hub needs a token, and none is set: run `hf auth login`"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(token, repo_id, said, hub, checkpoint):
    with pytest.raises(UserError, match=said) as caught:
        push_checkpoint(str(checkpoint), repo_id, token=token)
    assert "\n" not in str(caught.value)
    assert not token or token not in str(caught.value)
    assert hub.repos() == []


def test_offline_is_said(hub, checkpoint, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="ada/moons: HF_HUB_OFFLINE is set, so nothing can be sent: unset it"):
        push_checkpoint(str(checkpoint), "ada/moons")


def test_half_a_checkpoint_is_not_pushed(hub, checkpoint, tmp_path):
    (checkpoint / WEIGHTS).unlink()
    (checkpoint / RAW).unlink()
    with pytest.raises(UserError, match="unet has no safetensors, only pickles"):
        push_checkpoint(str(checkpoint), "ada/moons")
    (checkpoint / "unet" / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=rf"{WEIGHTS} is missing: restore it"):
        push_checkpoint(str(checkpoint), "ada/moons")
    with pytest.raises(UserError, match=r"is not a checkpoint: did you mean .*run/checkpoint\?"):
        push_checkpoint(str(tmp_path / "run"), "ada/moons")
    assert hub.log == []


@pytest.mark.parametrize(
    "file", [WEIGHTS, RAW, "unet/config.json", "scheduler/scheduler_config.json", "model_index.json"]
)
def test_a_file_that_is_cut_short_is_not_pushed(file, hub, checkpoint):
    content = (checkpoint / file).read_bytes()
    (checkpoint / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(
        UserError, match=rf"^the checkpoint '.*' is incomplete or damaged: {file} (is truncated|cannot be read)"
    ):
        push_checkpoint(str(checkpoint), "ada/moons")
    assert hub.log == []


@pytest.mark.parametrize("lost", ["pipeline.py", "unet/config.json", SCHEDULER])
def test_what_others_could_not_open_is_not_pushed(lost, hub, checkpoint):
    """Without the code of door 3, and with files in the root, as the oldest checkpoints have them."""
    if lost == "pipeline.py":
        (checkpoint / lost).unlink()
    else:
        for file in (checkpoint / lost).parent.iterdir():
            file.rename(checkpoint / file.name)
        (checkpoint / lost).parent.rmdir()
    assert load_unet(checkpoint) is not None
    with pytest.raises(
        UserError, match=rf"'.*/checkpoint' does not contain {lost}, which others need to open it: .* save it again"
    ):
        push_checkpoint(str(checkpoint), "ada/moons")
    assert hub.log == []


def test_a_vae_in_the_root_is_not_left_behind(hub, make_pipeline, tmp_path):
    from hf_ddpm import HFVAE, HFDDPMPipeline

    inner = make_pipeline({"clip_sample": False}, sample_size=8, in_channels=2, out_channels=2)
    vae = HFVAE(sample_size=16, latent_channels=2, network="conv", block_out_channels=(8, 8), scaling_factor=1.0)
    HFDDPMPipeline(inner.unet, inner.scheduler, vae=vae).save_pretrained(tmp_path / "c")
    for file in (tmp_path / "c" / "vae").iterdir():
        file.rename(tmp_path / "c" / file.name)
    (tmp_path / "c" / "vae").rmdir()
    with pytest.raises(UserError, match=r"'.*/c' does not contain vae/config\.json, which others need to open it"):
        push_checkpoint(str(tmp_path / "c"), "ada/moons")
    assert hub.log == []


@pytest.mark.parametrize("source", ["", "nowhere", "ada/moons"])
def test_what_is_no_folder_is_not_pushed(source, hub):
    with pytest.raises(UserError, match=rf"^there is no folder '{source}': pass the folder of a checkpoint saved"):
        push_checkpoint(source, "ada/moons")


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("recipe.yaml", b"a: [1, \n b: }", r"recipe\.yaml cannot be read as YAML"),
        ("recipe.yaml", b"\xff\xfe\x00", r"recipe\.yaml cannot be read as YAML"),
        ("recipe.yaml", b"a: 2020-99-99", r"recipe\.yaml cannot be read as YAML"),
        ("training.json", b"[1]", r"training\.json does not contain a JSON object"),
        ("training.json", b'{"metrics": 5}', r"training\.json has metrics=5, which must be a list"),
        ("training.json", b'{"metrics": [1]}', r"training\.json is not a file that training wrote"),
        ("training.json", b'{"recipe": [1]}', r"training\.json is not a file that training wrote"),
    ],
)
def test_a_damaged_record_is_said_before_a_repository_is_made(file, text, said, hub, checkpoint):
    (checkpoint / file).write_bytes(text)
    with pytest.raises(UserError, match=said) as caught:
        push_checkpoint(str(checkpoint), "ada/moons")
    assert "\n" not in str(caught.value)
    assert hub.log == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"bound": 1}, "is not a file that a measurement wrote"),
        ({"bound": {"bits_per_dim": {"mean": "x", "standard_error": 1}}}, "is not a file that a measurement wrote"),
        ({"binarisation": "x"}, "is not a file that a measurement wrote"),
        ({"n": "x"}, "is not a file that a measurement wrote"),
        ({"bound": {"bits_per_dim": {"mean": 1.0, "standard_error": float("nan")}}}, "a figure that is not finite"),
        ({"bound": {"bits_per_dim": {"mean": float("nan"), "standard_error": 1}}}, "a figure that is not finite"),
    ],
)
def test_damaged_figures_are_refused(values, said, hub, checkpoint, measured):
    with pytest.raises(UserError, match=rf"likelihood\.json .*{said}.*: measure again"):
        push_checkpoint(str(checkpoint), "ada/moons", metrics=[measured(3.5, **values)])
    assert hub.log == []


def test_a_tag_stays_where_it_is(hub, checkpoint):
    push_checkpoint(str(checkpoint), "ada/moons", tag="v1")
    before = hub.files("ada/moons")
    changed_weights(checkpoint)
    with pytest.raises(UserError, match="ada/moons already has a tag 'v1': choose another one, or delete"):
        push_checkpoint(str(checkpoint), "ada/moons", tag="v1")
    assert hub.files("ada/moons") == before
    push_checkpoint(str(checkpoint), "ada/moons", tag="v1", move_tag=True)
    assert hub.files("ada/moons", "v1")[WEIGHTS] == (checkpoint / WEIGHTS).read_bytes() != before[WEIGHTS]


def test_a_pull_request_without_a_change_is_said(hub, checkpoint):
    push_checkpoint(str(checkpoint), "ada/moons")
    with pytest.raises(
        UserError, match="already contains exactly these files: there is nothing to open a pull request for"
    ):
        push_checkpoint(str(checkpoint), "ada/moons", create_pr=True)


def test_a_run_of_states_leads_to_its_checkpoint(checkpoint):
    for folder in ("states", "states/step_00000004"):
        (checkpoint.parent / folder).mkdir()
        with pytest.raises(UserError, match=r"is not a checkpoint: did you mean .*run/checkpoint\?"):
            push_checkpoint(str(checkpoint.parent / folder), "ada/moons")


def test_private_does_not_mean_a_public_repository(hub, checkpoint):
    push_checkpoint(str(checkpoint), "ada/moons")
    with pytest.raises(UserError, match="ada/moons is already public, which --private does not change"):
        push_checkpoint(str(checkpoint), "ada/moons", private=True)


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "repos/create"), ("POST", "preupload"), ("POST", "/commit/"), ("GET", "api/models/")]
)
@pytest.mark.parametrize("status", [429, 500])
def test_a_busy_hub_is_asked_again(method, path, status, hub, checkpoint, caplog):
    hub.fail(method, path, times=2, status=status, headers={"Retry-After": "0"})
    push_checkpoint(str(checkpoint), "ada/moons")
    ours = f"The Hub does not respond (status {status}): retrying in 0.01 s."
    assert caplog.messages and (path == "preupload" or {*caplog.messages} == {ours})  # which the client asks again
    assert len(hub.commits("ada/moons")) == 2
    assert hub.files("ada/moons")[WEIGHTS] == (checkpoint / WEIGHTS).read_bytes()


def test_a_hub_that_stays_broken_is_one_sentence(hub, checkpoint):
    hub.fail("POST", "/commit/", times=99, status=500)
    with pytest.raises(UserError, match=r"the Hub is not available \(status 500.*push again later"):
        push_checkpoint(str(checkpoint), "ada/moons")
    assert len(hub.commits("ada/moons")) == 1


def test_an_answer_that_is_lost_makes_no_second_commit(hub, checkpoint):
    hub.lose("POST", "/commit/")
    assert push_checkpoint(str(checkpoint), "ada/moons", tag="once") == f"{hub.url}/ada/moons"
    assert len(hub.commits("ada/moons")) == 2
    assert hub.files("ada/moons", "once")[WEIGHTS] == (checkpoint / WEIGHTS).read_bytes()


def test_a_connection_that_is_cut_leaves_nothing_half_visible(hub, checkpoint):
    hub.cut("/commit/", after_bytes=1000, times=99)
    with pytest.raises(UserError, match="no connection to"):
        push_checkpoint(str(checkpoint), "ada/moons")
    assert len(hub.commits("ada/moons")) == 1
    hub.faults.clear()
    sent = len(hub.log)
    push_checkpoint(str(checkpoint), "ada/moons")
    assert not [r for r in hub.log[sent:] if r.method == "PUT"]  # the weights had arrived
    assert hub.files("ada/moons")[WEIGHTS] == (checkpoint / WEIGHTS).read_bytes()


def test_the_push_of_somebody_else_is_never_taken_for_ones_own(hub, checkpoint, tmp_path):
    """Two runs of one recipe: the same files of the same sizes, other weights, pushed onto the same head."""
    push_checkpoint(str(checkpoint), "ada/moons")
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    changed_weights(other)
    changed_weights(checkpoint)
    changed_weights(checkpoint)
    said = []

    def push():
        with pytest.raises(UserError) as caught:
            push_checkpoint(str(checkpoint), "ada/moons")
        said.append(str(caught.value))

    slow = threading.Thread(target=push)
    with hub.held("/commit/") as arrived:
        slow.start()
        arrived()
        push_checkpoint(str(other), "ada/moons")
    slow.join()
    assert "somebody else pushed at the same time" in said[0]
    assert hub.files("ada/moons")[WEIGHTS] == (other / WEIGHTS).read_bytes()


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_pushes_and_says_where(hub, checkpoint, measured, run_python):
    words = ["push", str(checkpoint), "ada/moons", "--private", "--tag", "v1", "--metrics", str(measured(3.5))]
    done = run_python(f"from hf_ddpm.cli import main\nmain({words!r})")
    assert f"pushed: {hub.url}/ada/moons" in done.stdout
    assert "hf_ada" not in done.stdout + done.stderr
    assert hub.repo("ada/moons").private
    assert hub.files("ada/moons", "v1") == hub.files("ada/moons")


def test_the_programs_of_the_page_run(hub, checkpoint, run_python, tmp_path):
    """docs/hub.md from its first command to its last, as ada, in a process that knows the Hub by its environment."""
    shutil.copytree(checkpoint, tmp_path / "runs" / "mnist" / "checkpoint")
    page = (Path(__file__).parents[2] / "docs" / "hub.md").read_text().replace("you/", "ada/")
    program = "from hf_ddpm.cli import main\n"
    for language, block in re.findall(r"^```(bash|python)\n(.*?)^```", page, re.S | re.M):
        commands = "".join(f"main({shlex.split(line)[1:]})\n" for line in block.splitlines())
        program += block if language == "python" else commands
    run_python(program)
    assert (tmp_path / "grid.png").is_file()
    assert {ref.name for ref in HfApi().list_repo_refs("ada/mnist").tags} == {"v1", "v2"}


def test_a_pipelines_own_push_takes_along_what_belongs_to_its_weights(hub, checkpoint):
    from hf_ddpm import HFDDPMPipeline

    ours = HFDDPMPipeline.from_pretrained(checkpoint)
    assert ours.push_to_hub("ada/moons", commit_message="Mine", private=True) == f"{hub.url}/ada/moons"
    assert hub.repo("ada/moons").private and hub.commits("ada/moons")[0].title == "Mine"
    files = hub.files("ada/moons")
    assert {"samples.png", "log.jsonl", RAW, "pipeline.py"} <= set(files)
    assert files[WEIGHTS] == (checkpoint / WEIGHTS).read_bytes()
    assert b"# moons" in files["README.md"] and b"| optimizer steps | 1,200," in files["README.md"]
    for weight in ours.unet.parameters():
        weight.data += 1
    ours.push_to_hub("ada/moons")
    files = hub.files("ada/moons")
    assert not {"samples.png", "log.jsonl", RAW} & set(files)
    assert b"optimizer steps | not measured" in files["README.md"] and b"samples.png" not in files["README.md"]
    assert b"from diffusers import DDPMPipeline" in files["README.md"]  # which draws the same


@pytest.mark.parametrize("without", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_pipeline_whose_code_came_with_it_pushes_as_diffusers_does(without, hub, checkpoint, run_python):
    push_checkpoint(str(checkpoint), "ada/moons")
    program = (
        "from diffusers import DiffusionPipeline\n"
        "at = 'ada/moons'\n"
        "pipeline = DiffusionPipeline.from_pretrained(at, custom_pipeline=at, trust_remote_code=True)\n"
        "pipeline.push_to_hub('ada/again')\n"
        "DiffusionPipeline.from_pretrained('ada/again', custom_pipeline='ada/again', trust_remote_code=True)\n"
    )
    run_python(program, without_hf_ddpm=without)
    assert {"pipeline.py", "README.md", WEIGHTS} <= set(hub.files("ada/again"))
