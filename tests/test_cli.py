"""`hf-ddpm` as a user types it."""

import numpy as np
import pytest
from PIL import Image

from hf_ddpm.checkpoint import save_checkpoint
from hf_ddpm.cli import main


@pytest.fixture
def checkpoint(make_pipeline, tmp_path):
    save_checkpoint(make_pipeline(), tmp_path / "checkpoint", {"name": "one"}, Image.new("L", (8, 8)))
    return tmp_path / "checkpoint"


def sample(checkpoint, out, *words):
    main(["sample", str(checkpoint), "--steps", "3", "--device", "cpu", "--out", str(out), *words])


def test_a_grid(checkpoint, tmp_path, capsys):
    sample(checkpoint, tmp_path / "deep" / "grid.png", "-n", "6")
    assert Image.open(tmp_path / "deep" / "grid.png").size == (3 * 8, 2 * 8)
    assert "6 images, 3 network calls each: " in capsys.readouterr().out


def test_a_folder_of_images_does_not_depend_on_the_batch(checkpoint, tmp_path):
    sample(checkpoint, tmp_path / "one", "-n", "5", "--batch-size", "5")
    sample(checkpoint, tmp_path / "two", "-n", "5", "--batch-size", "2")
    names = [p.name for p in sorted((tmp_path / "one").iterdir())]
    assert names == [f"{i:06d}.png" for i in range(5)]
    for name in names:
        one, two = (np.asarray(Image.open(tmp_path / folder / name), dtype=int) for folder in ("one", "two"))
        assert np.abs(one - two).max() <= 1


def test_seed_and_eta_change_the_images(checkpoint, tmp_path):
    grids = []
    for i, words in enumerate(([], ["--seed", "1"], ["--eta", "0"])):
        sample(checkpoint, tmp_path / f"{i}.png", "-n", "4", *words)
        grids.append(np.asarray(Image.open(tmp_path / f"{i}.png")))
    assert not np.array_equal(grids[0], grids[1])
    assert not np.array_equal(grids[0], grids[2])


def test_the_folder_one_stands_in(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(checkpoint)
    main(["sample", ".", "--steps", "2", "-n", "1", "--out", str(tmp_path / "one.png")])
    assert Image.open(tmp_path / "one.png").size == (8, 8)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["sample", "./nowhere"], "there is no checkpoint folder at './nowhere'"),
        (["sample", "{checkpoint}", "--steps", "-3"], "num_inference_steps=-3 must be from 1 to 1000"),
        (["sample", "{checkpoint}", "--steps", "5000"], "5000 must be from 1 to 1000"),
        (["sample", "{checkpoint}", "--eta", "7"], "eta=7.0 must lie in"),
        (["sample", "{checkpoint}", "-n", "0"], "--num-images 0 must be at least 1"),
        (["sample", "{checkpoint}", "--class", "1", "--steps", "2"], "without classes"),
        (["sample", "{checkpoint}", "--out", "grid.gif"], "must be a .png file or a folder"),
        (["sample", "{checkpoint}", "--stepps", "3"], "unrecognized arguments: --stepps"),
        (["sampel"], "invalid choice: 'sampel'"),
        ([], "COMMAND"),
        (["sample", "{checkpoint}", "--steps", "2", "-n", "1", "--out", "/dev/null/x.png"], "could not be written"),
        (["sample", "{checkpoint}", "--steps", "2", "--device", "gpu"], "--device gpu: "),
        (["train", "--preset", "nothing"], "tiny"),
        (["train", "--recipe", "nothing"], "no recipe 'nothing'"),
    ],
)
def test_mistakes_are_one_sentence(words, sentence, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main([word.replace("{checkpoint}", str(checkpoint)) for word in words])
    assert str(stop.value.code).startswith("error: ")
    assert sentence in str(stop.value.code)
    assert "\n" not in str(stop.value.code)


def test_help_names_the_commands(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert {"train", "sample"} <= set(capsys.readouterr().out.split())
