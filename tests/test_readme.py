"""What README.md and docs/ tell the reader to type works: `bash` and `python` blocks run, `sh` blocks are read.

Training is shortened by options; `make train` stands for the command that it runs, `make test` is left out.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_ddpm.cli import _parser, main
from hf_ddpm.training.command_line import parse_command_line

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    "docs/training.md",
    "docs/checkpoints.md",
    "docs/data.md",
    "docs/scheduler.md",
    "docs/unet.md",
    "docs/likelihood.md",
    "docs/evaluation.md",
]
SHORT = (
    "--preset tiny --image_size 8 --batch_size 4 --checkpoints.every 1 --sampling.every 2 --num_images 4 "
    "--sampling.num_inference_steps 2 --log_every 1 --tracker none"
)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.S | re.M)


def commands(page: str, language: str) -> list[str]:
    lines = "".join(blocks(page, language)).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := line.split("  #")[0].strip()) and not words.startswith("#")]


def shortened(command: str) -> str:
    """The same command on a tiny network for 2 steps, or up to 3 when it resumes."""
    if command.startswith("make train"):
        command = "accelerate launch -q training/train.py"
    if "train" in command and "--help" not in command:
        command += f" {SHORT} --total_steps {3 if '--resume' in command else 2}"
    return command


def run(command: str) -> None:
    """An `hf-ddpm` command in this process (its console script is tested from a wheel), anything else in its own."""
    words = shlex.split(shortened(command))
    if words[0] == "hf-ddpm" and "--help" not in words:
        main(words[1:])
        return
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        words, env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a reader stands: a checkout with a folder of photos, after the commands of the README."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "training").symlink_to(ROOT / "training")
    draw = np.random.default_rng(0)
    for i, (kind, mode) in enumerate(
        [("cats", "RGB"), ("cats", "L"), ("dogs", "RGBA"), ("dogs", "P"), ("dogs", "RGB")]
    ):
        (folder / "photos" / kind).mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / "photos" / kind / f"{i}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in commands("README.md", "bash"):
            if command != "make test":
                run(command)
    return folder


def test_the_readme_names_both_commands_and_they_are_in_the_makefile():
    assert {"make train", "make test"} <= set(commands("README.md", "bash"))


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []  # not by long lines


def test_the_commands_of_the_readme_leave_what_it_says(folder):
    assert (folder / "runs/mnist/samples/final.png").is_file()
    assert (folder / "runs/mnist/checkpoint/model_index.json").is_file()
    assert (folder / "runs/photos/checkpoint/model_index.json").is_file()
    with Image.open(folder / "grid.png") as grid:
        assert grid.size == (64, 64)  # 8 rows of 8 images of 8 pixels


@pytest.mark.parametrize("page", PAGES)
def test_the_python_on_the_page_runs(page, folder, monkeypatch):
    monkeypatch.chdir(folder)
    scope: dict = {}
    for code in blocks(page, "python"):
        exec(compile(code, page, "exec"), scope)


@pytest.mark.parametrize("page", PAGES[1:])
def test_the_commands_on_the_page_run(page, folder, monkeypatch):
    monkeypatch.chdir(folder)
    for number, command in enumerate(commands(page, "bash")):
        words = f" --output_dir runs/{Path(page).stem}-{number}" if "--output_dir" in command else ""
        run(command + words)


@pytest.mark.parametrize("page", [*PAGES, "docs/vae.md"])
def test_commands_that_need_more_than_this_machine_are_at_least_legal(page):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    for command in commands(page, "sh"):
        words = shlex.split(command)
        if words[0] == "make":
            assert words[1] in targets, command
            words = ["train", *shlex.split(words[2].removeprefix("ARGS="))]
        if "evaluate" in words or "sweep" in words:
            start = next(i for i, word in enumerate(words) if word in ("evaluate", "sweep"))
            _parser().parse_args(words[start:])
            continue
        options = words[1 + next(i for i, word in enumerate(words) if word in ("train", "training/train.py")) :]
        if "--warmup_step" not in options:  # the misspelt one
            parse_command_line(options)
