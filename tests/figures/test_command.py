"""`hf-ddpm figure` as a user types it: every name, what the files say of themselves, mistakes in one sentence."""

import hashlib
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from hf_ddpm.checkpoint import load_pipeline, save_checkpoint
from hf_ddpm.cli import main
from hf_ddpm.commands.figure import FIGURE_KINDS
from hf_ddpm.data import ImageData
from hf_ddpm.figures import FIGURES
from hf_ddpm.pipelines import HFClassifierPipeline

STEPS = 10
NEEDS_DATA = ("forward", "interpolation", "coarse-to-fine", "nearest-neighbours", "reconstruction", "rate-distortion")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with photos."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 8, 8), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / "photos" / f"{i:02d}.png")
    return folder


@pytest.fixture
def checkpoint(make_pipeline, place):
    folder = place / "checkpoint"
    if not folder.exists():
        pipeline = make_pipeline({"num_train_timesteps": STEPS})
        save_checkpoint(pipeline, folder, {"name": "one"}, Image.new("L", (8, 8)))
    return folder


@pytest.fixture
def class_checkpoint(make_pipeline, place):
    """Of a network with ten classes."""
    folder = place / "class-checkpoint"
    if not folder.exists():
        pipeline = make_pipeline({"num_train_timesteps": STEPS}, num_class_embeds=10)
        save_checkpoint(pipeline, folder, {"name": "ten"}, Image.new("L", (8, 8)))
    return folder


@pytest.fixture
def guides(make_classifier, place):
    """The folder of a noisy classifier of three classes."""
    HFClassifierPipeline(make_classifier({"num_train_timesteps": STEPS})).save_pretrained(place / "guides")
    return place / "guides"


@pytest.fixture
def draw(checkpoint, class_checkpoint, guides, place, tmp_path, monkeypatch):
    """Run the command in a folder of its own; {checkpoint}, {classes}, {guides} and {photos} stand for theirs."""
    monkeypatch.chdir(tmp_path)
    folders = {"checkpoint": checkpoint, "classes": class_checkpoint, "guides": guides, "photos": place / "photos"}

    def run(*words):
        device = [] if words[0] == "reverse-gaussian" else ["--device", "cpu"]
        main(["figure", *(word.format(**folders) for word in words), *device])

    return run


def test_the_help_and_the_functions_know_the_same_names():
    assert FIGURE_KINDS.keys() == FIGURES.keys()


@pytest.mark.parametrize("name", sorted(FIGURE_KINDS))
def test_every_figure_is_drawn(name, draw, tmp_path, capsys, checkpoint):
    words = [] if name == "reverse-gaussian" else ["{checkpoint}"]
    if name in NEEDS_DATA:
        words += ["--data", "digits", "--split", "train[:300]"] if name == "rate-distortion" else ["--data", "{photos}"]
    if name == "guidance":
        words += ["--classifier", "{guides}", "--scales", "0,1.5"]
    draw(name, *words)
    with Image.open(tmp_path / f"{name}.png") as picture:
        told = dict(picture.text)
        assert picture.width > 100
    assert told["command"].startswith(f"hf-ddpm figure {name}")
    assert ("--scales 0,1.5 --classifier " in told["command"]) == (name == "guidance")
    printed = capsys.readouterr().out.strip().splitlines()
    assert printed[-1].startswith(f"{name}.png")
    if name == "reverse-gaussian":  # nothing is drawn: no seed, no weights
        assert told == {"command": "hf-ddpm figure reverse-gaussian"} and "seed" not in printed[-1]
    else:
        assert told["seed"] == "0" and "seed 0" in printed[-1]
        file = checkpoint / "unet" / "diffusion_pytorch_model.safetensors"
        assert told["weights_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert told["weights_sha256"][:12] in printed[-1]
    table = tmp_path / f"{name}.json"
    assert table.exists() == FIGURE_KINDS[name].measures
    if table.exists():
        assert json.loads(table.read_text()).items() >= told.items()


@pytest.mark.parametrize("name", ["forward", "progressive", "ddim-interpolation"])
def test_figures_that_move(name, draw, tmp_path):
    data = ["--data", "{photos}"] if name == "forward" else []
    steps = [] if name == "forward" else ["--steps", "10"]
    draw(name, "{checkpoint}", *data, *steps, "--out", "deep/moving.gif")
    with Image.open(tmp_path / "deep" / "moving.gif") as film:
        assert film.n_frames >= 10
        assert f"hf-ddpm figure {name}" in film.info["comment"].decode()


@pytest.mark.parametrize("ending", ["PNG", "GIF"])
def test_an_ending_in_capitals_is_the_same_format(ending, draw, tmp_path):
    draw("forward", "{checkpoint}", "--data", "{photos}", "--out", f"a.{ending}")
    with Image.open(tmp_path / f"a.{ending}") as picture:
        assert picture.format == ending and (getattr(picture, "n_frames", 1) >= 10) == (ending == "GIF")


def test_the_seed_decides_everything(draw, tmp_path):
    for file, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(5)  # whatever else draws in between
        draw("interpolation", "{checkpoint}", "--data", "{photos}", "--seed", str(seed), "--out", f"{file}.png")
    a, b, c = ((tmp_path / f"{file}.png").read_bytes() for file in "abc")
    assert a == b != c


def test_rate_and_distortion_from_the_file_of_hf_ddpm_likelihood(draw, checkpoint, tmp_path):
    data = ["--data", "digits", "--split", "train[:256]", "--device", "cpu"]
    main(["likelihood", str(checkpoint), *data, "--method", "bound", "--out", "l.json"])
    draw("rate-distortion", "{checkpoint}", "--likelihood", "l.json")
    found = json.loads((tmp_path / "l.json").read_text())["bound"]
    drawn = json.loads((tmp_path / "rate-distortion.json").read_text())
    assert {key: drawn[key] for key in found["codelength"]} == found["codelength"]
    (tmp_path / "l.json").write_text(json.dumps({"bound": found, "weights_sha256": "0" * 64}))
    with pytest.raises(SystemExit, match="is for the weights 000000000000, but those of the checkpoint are"):
        draw("rate-distortion", "{checkpoint}", "--likelihood", "l.json")


def test_rate_and_distortion_of_16_bit_images(draw, tmp_path):
    """Their levels are not those of 8 bits, on which they were looked for."""
    pixels = np.random.default_rng(0).integers(0, 65536, (256, 8, 8), dtype=np.uint16)
    (tmp_path / "fine").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "fine" / f"{i:03d}.png")
    draw("rate-distortion", "{checkpoint}", "--data", "./fine")
    assert json.loads((tmp_path / "rate-distortion.json").read_text())["distortion"] > 8  # the finer half of the bits


@pytest.mark.parametrize("name", ["reconstruction", "rate-distortion", "interpolation", "coarse-to-fine"])
def test_real_images_have_their_own_classes_unless_one_is_given(name, draw, class_checkpoint, tmp_path):
    words = [name, "{classes}", "--data", "digits", "--split", "train[:300]"]
    draw(*words)
    draw(*words, "--class", "3", "--out", "threes.png")
    batches = ImageData("digits", split="train[:300]", image_size=8, label_column="auto").batches(
        batch_size=FIGURE_KINDS[name].images, seed=0
    )
    batch, drawn = next(batches), []
    assert len(batch.labels.unique()) > 1
    for file, classes in ((f"{name}.png", batch.labels), ("threes.png", 3)):
        figure = FIGURES[name](load_pipeline(class_checkpoint), batch.x_0 / 2 + 0.5, class_labels=classes)
        with Image.open(tmp_path / file) as picture:
            assert picture.tobytes() == figure.picture.tobytes()
        drawn.append(figure.picture.tobytes())
    assert drawn[0] != drawn[1]


def test_labels_that_are_none_of_the_networks(draw, tmp_path):
    for i in range(11):
        (tmp_path / "eleven" / f"{i:02d}").mkdir(parents=True)
        Image.new("L", (8, 8), i).save(tmp_path / "eleven" / f"{i:02d}" / "one.png")
    words = ["reconstruction", "{classes}", "--data", "./eleven", "-n", "2"]
    with pytest.raises(
        SystemExit, match=r"has label 10 in column 'label', but labels must be in 0\.\.9 .* and .* --class"
    ):
        draw(*words)
    draw(*words, "--class", "0")


def test_no_network_no_class(draw, tmp_path):
    draw("forward", "{classes}", "--data", "{photos}")
    assert (tmp_path / "forward.png").exists()


@pytest.mark.parametrize("given", ["l.json", "./deep/../l.json", "link.json"])
def test_a_file_that_is_read_is_not_overwritten(given, draw, tmp_path):
    (tmp_path / "l.json").write_text("{}")
    (tmp_path / "deep").mkdir()
    (tmp_path / "link.json").symlink_to("l.json")
    with pytest.raises(
        SystemExit, match=r"--out l.png would overwrite l.json, which --likelihood reads: choose another"
    ):
        draw("rate-distortion", "./nowhere", "--likelihood", given, "--out", "l.png")
    with pytest.raises(SystemExit, match=r"--out one.png would overwrite one.png, which --data reads: choose another"):
        draw("forward", "./nowhere", "--data", "one.png", "--out", "one.png")
    assert (tmp_path / "l.json").read_text() == "{}" and not (tmp_path / "l.png").exists()


def test_what_cannot_be_written_is_said_before_the_checkpoint_is_opened(draw, tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(SystemExit, match=r"a\.json could not be written"):
        draw("shared-latents", "./nowhere", "--out", "a.png")
    draw("progressive", "{checkpoint}", "--steps", "2", "--out", "a.png")  # which writes no JSON


@pytest.mark.parametrize("name", ["reverse-gaussian", "x0-distance"])
def test_without_matplotlib_a_plot_is_refused_and_images_are_drawn(name, draw, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match=r"pip install 'hf_ddpm\[measure\]'"):
        draw(name, *([] if name == "reverse-gaussian" else ["{checkpoint}"]))
    draw("progressive", "{checkpoint}", "--steps", "3")
    assert (tmp_path / "progressive.png").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["progresive", "{checkpoint}"], "guidance; did you mean progressive?"),
        (["progressive"], "progressive needs a checkpoint"),
        (["forward", "{checkpoint}"], "forward needs real images: pass --data"),
        (["nearest-neighbours", "{checkpoint}"], "nearest-neighbours needs real images"),
        (["rate-distortion", "{checkpoint}"], "--data or --likelihood"),
        (["rate-distortion", "{checkpoint}", "--likelihood", "{photos}"], "cannot be read"),
        (["reverse-gaussian", "{checkpoint}"], "reverse-gaussian takes no checkpoint"),
        (["progressive", "{checkpoint}", "--data", "{photos}"], "progressive takes no --data"),
        (["forward", "{checkpoint}", "--data", "{photos}", "--steps", "3"], "forward takes no --steps: leave 3 out"),
        (["progressive", "{checkpoint}", "--out", "a.jpg"], "--out a.jpg must be a .png or a .gif"),
        (["shared-latents", "{checkpoint}", "--out", "a.gif"], "must be a .png file: shared-latents is not animated"),
        (["progressive", "{checkpoint}", "--steps", "11"], "--steps 11 must be from 1 to 10, the number of steps"),
        (["interpolation", "{checkpoint}", "--data", "{photos}", "--steps", "0"], "--steps 0 must be from 1"),
        (["progressive", "{checkpoint}", "--eta", "2"], "argument --eta: '2' must be a number from 0 to 1"),
        (["progressive", "{checkpoint}", "--eta", "x"], "argument --eta: 'x' must be a number from 0 to 1"),
        (["progressive", "{checkpoint}", "-n", "0"], "--num-images 0 must be at least 1"),
        (["progressive", "{checkpoint}", "--seed", "-1"], "--seed -1 must be from 0 to"),
        (["reverse-gaussian", "--seed", "3"], "reverse-gaussian takes no --seed: leave 3 out"),
        (["reverse-gaussian", "--device", "foo"], "reverse-gaussian takes no --device: leave foo out"),
        (
            ["progressive", "{checkpoint}", "--class", "3"],
            "--class 3 must be omitted: this network was trained without classes",
        ),
        (["progressive", "{classes}", "--class", "10"], "--class 10 must be from 0 to 9, the network's classes"),
        (
            ["reconstruction", "{classes}", "--data", "{photos}"],
            "and this network has 10 classes: pass --class to use one",
        ),
        (["interpolation", "{classes}", "--data", "./nowhere"], "'./nowhere' does not exist"),
        (["forward", "{checkpoint}", "--data", "{photos}", "-n", "17"], "the number of images is 17"),
        (["interpolation", "{checkpoint}", "--data", "{photos}", "-n", "3"], "the number of images is 3, but pairs"),
        (["rate-distortion", "{checkpoint}", "--data", "{photos}", "-n", "16"], "at least 256 images, not 16"),
        (["forward", "{checkpoint}", "--data", "./nowhere"], "nowhere"),
        (["x0-distance", "{checkpoint}", "--data", "{photos}"], "have no digit distance"),
        (["ddim-consistency", "{checkpoint}", "--spacing", "odd"], "timestep_spacing='odd'"),
        (["progressive", "{checkpoint}", "--scales", "1"], "progressive takes no --scales: leave 1 out"),
        (["progressive", "{checkpoint}", "--classifier", "{guides}"], "progressive takes no --classifier"),
        (["guidance", "{checkpoint}"], "this model has no guidance: use a classifier"),
        (["guidance", "{checkpoint}", "--scales", "1,x"], "--scales: '1,x' must be a comma-separated list of numbers"),
        (
            ["guidance", "{checkpoint}", "--classifier", "{checkpoint}"],
            "contains a diffusion model without a classifier",
        ),
        (["guidance", "{classes}", "--classifier", "{guides}"], "has 3 classes, but the network has 10"),
        (["guidance", "{checkpoint}", "--classifier", "{guides}", "--class", "3"], "--class 3 must be from 0 to 2"),
        (["progressive", "./nowhere"], "there is no checkpoint folder at './nowhere'"),
        (["progressive", "./nowhere", "--out", "/dev/null/a.png"], "/dev/null/a.png could not be written"),
    ],
)
def test_mistakes_are_one_sentence(words, sentence, draw):
    with pytest.raises(SystemExit) as stop:
        draw(*words)
    assert str(stop.value.code).startswith("error: ")
    assert sentence in str(stop.value.code)
    assert "\n" not in str(stop.value.code)
