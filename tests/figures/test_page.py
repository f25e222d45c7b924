"""docs/figures.md and the pictures on it agree: the command above a picture is the one that the file says drew it."""

import inspect
import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from hf_ddpm.commands.figure import FIGURE_KINDS, PARAMETERS, _flag
from hf_ddpm.figures import FIGURES

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "docs" / "images" / "figures"
PAGE = (ROOT / "docs" / "figures.md").read_text()
COMMANDS = {
    Path(words[-1]).name: shlex.join(words[:-2])
    for line in PAGE.splitlines()
    if line.startswith("hf-ddpm figure ") and (words := shlex.split(line))[-2] == "--out"
}
FILES = sorted(path.name for path in FOLDER.iterdir() if path.suffix in (".png", ".gif"))


@pytest.mark.parametrize("file", FILES)
def test_a_picture_was_drawn_by_the_command_above_it(file):
    with Image.open(FOLDER / file) as picture:
        comment = picture.info.get("comment", b"").decode()
        told = dict(getattr(picture, "text", {})) or dict(part.split(": ", 1) for part in comment.split("; "))
    assert told["command"] == COMMANDS[file]
    if Path(file).stem != "reverse-gaussian":  # of no network, and nothing is drawn
        assert told["weights_sha256"][:12] in PAGE
        assert f"--seed {told['seed']}" in told["command"]
    assert (FOLDER / file).stat().st_size < 300_000
    assert f"](images/figures/{file})" in PAGE
    numbers = FOLDER / f"{Path(file).stem}.json"
    if numbers.exists() and file.endswith(".png"):
        assert json.loads(numbers.read_text())["command"] == told["command"]


def test_every_figure_is_on_the_page():
    assert {Path(file).stem for file in FILES} == set(FIGURE_KINDS) - {"guidance"}  # which docs/guidance.md explains
    assert COMMANDS.keys() == set(FILES)


@pytest.mark.parametrize("name", sorted(FIGURE_KINDS))
def test_the_table_says_which_figure_takes_and_writes_what(name):
    [row] = re.findall(rf"^\| `{name}` \|(.*)\|(.*)\|(.*)\|$", PAGE, re.M)
    needs, may_take, writes = row
    parameters = inspect.signature(FIGURES[name]).parameters
    options = PARAMETERS.keys() - {"checkpoint", "seed", "device", "resize", "crop_box"}  # which stand above the table
    taken = {_flag(option) for option in options if not parameters.keys().isdisjoint(PARAMETERS[option])}
    assert set(re.findall(r"--[a-z-]+", needs + may_take)) == taken
    images = [parameters[alias] for alias in PARAMETERS["data"] if alias in parameters]
    needs_images = any(image.default is image.empty for image in images) or "likelihood" in parameters
    assert ("--data" in needs) == needs_images
    formats = "PNG or GIF" if "motion" in parameters else "PNG"
    assert writes.strip() == formats + (", JSON" if FIGURE_KINDS[name].measures else "")
    if "--num-images" in taken:
        assert f"`--num-images` ({FIGURE_KINDS[name].images or parameters['num_images'].default}" in may_take
