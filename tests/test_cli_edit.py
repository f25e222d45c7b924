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
    return np.asarray(Image.open("edited.png").convert("L"))


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


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["cut", "checkpoint", "a.png"], "invalid choice: 'cut'"),
        (["interpolate", "checkpoint", "a.png"], "interpolate needs two images, not 1"),
        (["slerp", "checkpoint", "a.png", "b.png", "--columns", "1"], "--columns 1 must be at least 2"),
        (["inpaint", "checkpoint", "a.png"], "inpaint needs --mask FILE"),
        (["vary", "checkpoint", "a.png", "--mask", "mask.png"], "vary takes no --mask"),
        (["vary", "checkpoint", "large.png"], "large.png is 9x8 and the network takes 8x8: resize it"),
        (["vary", "checkpoint", "text.png"], "text.png cannot be read as an image"),
        (["vary", "checkpoint", "none.png"], "none.png cannot be read as an image"),
        (["vary", "checkpoint", "a.png", "--start-timestep", "20"], "timesteps .20. must lie within 0..19"),
        (["vary", "checkpoint", "a.png", "--steps", "21"], "num_inference_steps=21 must be from 1 to 20"),
        (["vary", "checkpoint", "a.png", "--class", "1"], "without classes"),
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
