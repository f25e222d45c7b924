"""`hf-ddpm edit` on a tiny random network: what each edit writes, and mistakes in one sentence."""

import numpy as np
import pytest
from PIL import Image

from hf_ddpm.cli import main


@pytest.fixture
def folder(make_pipeline, tmp_path, monkeypatch):
    """A working directory with a checkpoint, two grey pictures, a mask, and files that do not fit."""
    make_pipeline({"num_train_timesteps": 20}).save_pretrained(tmp_path / "checkpoint")
    values = np.random.default_rng(0).integers(0, 256, (2, 8, 8), dtype=np.uint8)
    for name, pixels in zip(("a", "b"), values, strict=True):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.new("L", (9, 8)).save(tmp_path / "large.png")
    (tmp_path / "text.png").write_text("no image")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edit(what: str, *words: str) -> np.ndarray:
    main(["edit", what, "checkpoint", *words, "--device", "cpu"])
    out = words[words.index("--out") + 1] if "--out" in words else "edited.png"
    return np.asarray(Image.open(out).convert("L"))


def pixels(name: str) -> np.ndarray:
    return np.asarray(Image.open(f"{name}.png"))


@pytest.mark.parametrize("what", ["reconstruct", "vary"])
def test_originals_stand_above_results(what, folder):
    grid = edit(what, "a.png", "b.png", "--steps", "5")
    assert grid.shape == (16, 16)
    assert np.array_equal(grid[:8], np.hstack([pixels("a"), pixels("b")]))
    change = np.abs(grid[8:].astype(int) - grid[:8]).mean()  # twenty small steps are encoded nearly without loss
    assert change < 1 if what == "reconstruct" else change > 1


@pytest.mark.parametrize("what", ["interpolate", "slerp"])
def test_a_row_from_one_image_to_the_other(what, folder):
    row = edit(what, "a.png", "b.png", "--columns", "5", "--steps", "5")
    assert row.shape == (8, 40)
    assert not np.array_equal(row[:, :8], row[:, 32:])


def test_interpolating_at_the_cleanest_level_ends_near_the_images(folder):
    row = edit("interpolate", "a.png", "b.png", "--columns", "2", "--start-timestep", "0").astype(int)
    assert np.abs(row - np.hstack([pixels("a"), pixels("b")])).mean() < 10


def test_inpainting_keeps_what_the_mask_leaves_black(folder):
    grid = edit("inpaint", "a.png", "--mask", "mask.png", "--jump-length", "2", "--resamples", "2")
    assert np.array_equal(grid[8:, :4], pixels("a")[:, :4])
    assert not np.array_equal(grid[8:, 4:], pixels("a")[:, 4:])


def test_the_seed_fixes_the_noise(folder):
    first, again, other = (edit("vary", "a.png", "--seed", seed) for seed in ("1", "1", "2"))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def store_as(kind: str, grey: np.ndarray) -> Image.Image:
    """The same grey picture, stored another way."""
    picture = Image.fromarray(grey)
    if kind == "sixteen bits":
        return Image.fromarray(grey.astype(np.uint16) * 257)
    if kind == "palette":
        picture = Image.fromarray(255 - grey, "P")
        picture.putpalette([255 - i // 3 for i in range(768)])
        return picture
    if kind == "transparency":
        return Image.merge("LA", [Image.new("L", picture.size), Image.fromarray(255 - grey)])  # black over white
    return {"mode 1": picture.convert("1"), "colour": picture.convert("RGB")}[kind]


@pytest.mark.parametrize("kind", ["sixteen bits", "palette", "transparency", "mode 1", "colour"])
def test_images_are_decoded_as_for_training(kind, folder):
    """`Image.convert` would make every 16-bit pixel above 255 white, and see black behind transparency."""
    grey = pixels("a") // 255 * 255 if kind == "mode 1" else pixels("a")
    store_as(kind, grey).save("stored.png")
    grid = edit("vary", "stored.png", "--steps", "2")
    assert np.abs(grid[:8].astype(int) - grey).max() <= 1


def test_a_mask_of_sixteen_bits_is_white_above_the_middle(folder):
    Image.fromarray(np.where(pixels("mask") > 0, 40_000, 20_000).astype(np.uint16)).save("wide.png")
    one, other = (edit("inpaint", "a.png", "--mask", mask, "--steps", "2") for mask in ("mask.png", "wide.png"))
    assert np.array_equal(one, other)


def test_what_a_conversion_changed_is_told(folder, capsys):
    Image.open("a.png").convert("RGB").save("colour.png")
    edit("vary", "colour.png", "--steps", "2", "--out", "grid.PNG")
    assert capsys.readouterr().out == "colour.png: colours converted to luminance\nvary: grid.PNG\n"


@pytest.mark.parametrize("words", [["--steps", "3"], ["--steps", "1"], ["--steps", "2", "--resamples", "1"]])
def test_inpainting_in_few_steps_jumps_as_far_as_there_is(words, folder):
    grid = edit("inpaint", "a.png", "--mask", "mask.png", *words)
    assert np.array_equal(grid[8:, :4], pixels("a")[:, :4])


def test_a_network_without_a_size(make_pipeline, folder):
    make_pipeline({"num_train_timesteps": 20}, sample_size=None).save_pretrained("sizeless")
    with pytest.raises(SystemExit, match="the network of 'sizeless' has no sample_size"):
        main(["edit", "vary", "sizeless", "a.png"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["cut", "checkpoint", "a.png"], "invalid choice: 'cut'"),
        (["interpolate", "checkpoint", "a.png"], "interpolate needs two images, not 1"),
        (["slerp", "checkpoint", "a.png", "b.png", "--columns", "1"], "--columns 1 must be at least 2"),
        (["inpaint", "checkpoint", "a.png"], "inpaint needs --mask FILE"),
        (["vary", "checkpoint", "a.png", "--mask", "mask.png"], "vary does not take --mask mask.png: leave it out"),
        (["reconstruct", "checkpoint", "a.png", "--eta", "1"], "reconstruct does not take --eta 1.0: leave it out"),
        (["reconstruct", "checkpoint", "a.png", "--seed", "0"], "reconstruct does not take --seed"),
        (["slerp", "checkpoint", "a.png", "b.png", "--start-timestep", "1"], "slerp does not take --start-timestep"),
        (["inpaint", "checkpoint", "a.png", "--mask", "mask.png", "--columns", "3"], "inpaint does not take --columns"),
        (["interpolate", "checkpoint", "a.png", "b.png", "--resamples", "2"], "interpolate does not take --resamples"),
        (["inpaint", "checkpoint", "a.png", "--mask", "mask.png", "--resamples", "0"], "--resamples 0 must be at"),
        (["vary", "checkpoint", "a.png", "--seed", "9" * 23], "--seed 9+ must be from 0 to"),
        (["vary", "checkpoint", "a.png", "--seed", "-1"], "--seed -1 must be from 0 to"),
        (["vary", "checkpoint", "large.png"], "large.png is 9x8 and the network takes 8x8: resize it"),
        (["vary", "checkpoint", "text.png"], "text.png cannot be read as an image"),
        (["vary", "checkpoint", "none.png"], "none.png cannot be read as an image"),
        (["vary", "checkpoint", "a.png", "--start-timestep", "20"], "20.? must .* within 0..19"),
        (["vary", "checkpoint", "a.png", "--steps", "21"], "--steps 21 must be from 1 to 20"),
        (
            ["vary", "checkpoint", "a.png", "--class", "1"],
            "--class 1 must be omitted: this network was trained without classes",
        ),
        (["vary", "checkpoint", "a.png", "--out", "./a.png"], "--out ./a.png is one of the input images: choose"),
        (["inpaint", "checkpoint", "a.png", "--mask", "mask.png", "--out", "mask.png"], "is one of the input images"),
        (["vary", "checkpoint", "a.png", "--out", "text.png/x.png"], "could not be written"),
        (["vary", "checkpoint", "a.png", "--eta", "2"], "'2' must be a number from 0 to 1"),
        (["vary", "checkpoint", "a.png", "--out", "x.jpg"], "--out x.jpg must be a .png file"),
        (
            ["inpaint", "checkpoint", "a.png", "--mask", "mask.png", "--jump-length", "20"],
            "jump_length=20 must be from",
        ),
    ],
)
def test_mistakes_are_one_sentence(words, sentence, folder):
    with pytest.raises(SystemExit, match=sentence) as stopped:
        main(["edit", *words])
    assert "\n" not in str(stopped.value)
