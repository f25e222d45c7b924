"""`hf-ddpm` with the checkpoint of a VAE."""

import re

import pytest
import torch
from PIL import Image

from hf_ddpm import HFVAE, HFVAEPipeline
from hf_ddpm.checkpoint import save_checkpoint
from hf_ddpm.cli import main
from hf_ddpm.sampling import image_generator


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    vae = HFVAE(sample_size=8, latent_channels=3, hidden_sizes=(8,), likelihood="gaussian_fixed")
    save_checkpoint(HFVAEPipeline(vae), tmp_path / "vae", {"name": "one"}, Image.new("L", (8, 8)))
    return tmp_path / "vae"


def refused(*words):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert "\n" not in str(stop.value.code)
    return str(stop.value.code)


def test_sample_draws_from_the_prior(checkpoint, tmp_path, capsys):
    main(["sample", str(checkpoint), "-n", "4", "--seed", "7", "--out", str(tmp_path / "grid.png")])
    assert Image.open(tmp_path / "grid.png").size == (16, 16)
    assert "(images: 4, network calls per image: 1)" in capsys.readouterr().out
    main(["sample", str(checkpoint), "-n", "4", "--seed", "7", "--batch-size", "3", "--out", str(tmp_path / "images")])
    pipeline = HFVAEPipeline.from_pretrained(checkpoint)
    last = pipeline(1, image_generator(7, 3)).images[0]
    assert Image.open(tmp_path / "images" / "000003.png").tobytes() == last.tobytes()


def test_pixels_are_drawn_from_the_decoder(checkpoint, tmp_path):
    for name, more in {"mean": (), "drawn": ("--pixels",)}.items():
        main(["sample", str(checkpoint), "-n", "1", *more, "--out", str(tmp_path / f"{name}.png")])
    mean, drawn = (Image.open(tmp_path / f"{name}.png").tobytes() for name in ("mean", "drawn"))
    assert sum(pixel in (0, 255) for pixel in drawn) > 10 > sum(pixel in (0, 255) for pixel in mean)  # sigma = 1


@pytest.mark.parametrize("option", [("--steps", 5), ("--eta", 0), ("--solver", "unipc"), ("--class", 1)])
def test_what_a_walk_takes_is_refused(option, checkpoint, tmp_path):
    sentence = refused("sample", checkpoint, *option, "--out", tmp_path / "grid.png")
    assert re.search(rf"{option[0]} .*is only for diffusion models, and .* contains a VAE", sentence)
    assert not (tmp_path / "grid.png").exists()


def test_no_name_is_no_folder(checkpoint, tmp_path, monkeypatch):
    """Such as that of a shell's variable that is not set: the images would lie about where the shell is."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert "must be a .png file or a folder" in refused("sample", checkpoint, "-n", 1, "--out", "")
    assert not any((tmp_path / "empty").iterdir())


def test_pixels_are_refused_for_a_diffusion_model(make_pipeline, tmp_path):
    make_pipeline().save_pretrained(tmp_path / "ddpm")
    assert "--pixels is only for VAEs" in refused("sample", tmp_path / "ddpm", "--pixels", "--steps", 2)


def test_commands_for_diffusion_models_say_so(checkpoint, tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "one.png")
    out = ("--out", tmp_path / "out.png")
    assert "contains a VAE" in refused("edit", "reconstruct", checkpoint, tmp_path / "one.png", *out)
    assert "contains a VAE" in refused("figure", "progressive", checkpoint, *out)
