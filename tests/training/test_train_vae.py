"""Training of a VAE by the same script: what it leaves, the same path on every machine, and the user's mistakes."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import SCRIPT, difference, losses
from PIL import Image
from safetensors.torch import load_file

from hf_ddpm import HFVAE, HFVAEPipeline
from hf_ddpm.checkpoint import load_checkpoint, load_pipeline
from hf_ddpm.errors import UserError
from hf_ddpm.training.command_line import parse_command_line, read_recipe
from hf_ddpm.training.family import check_recipe
from hf_ddpm.training.train import main, train

TINY = ["--recipe", "mnist-vae", "--image_size", "8", "--batch_size", "8", "--warmup_steps", "2", "--log_every", "1"]
TINY += ["--num_images", "4", "--sampling.every", "null", "--checkpoints.every", "null", "--tracker", "none"]
TINY += ["--hidden_sizes", "[16]", "--latent_channels", "3", "--max_images", "64", "--cpu_threads", "1"]
TINY += ["--likelihood", "gaussian_optimal", "--binarize", "null"]
LIKELIHOODS = HFVAE.__init__.__annotations__["likelihood"].__args__
CONV = ["--network", "conv", "--block_out_channels", "[8, 8]", "--latent_channels", "2"]


def tiny(folder, *words):
    recipe, resume = parse_command_line([*TINY, "--output_dir", str(folder), "--total_steps", "6", *words])
    return train(recipe, resume)


def weights(folder):
    return load_file(Path(folder) / "checkpoint" / "vae" / "diffusion_pytorch_model.safetensors")


def test_a_run_leaves_what_it_says(tmp_path, capsys):
    checkpoint = tiny(tmp_path / "run", "--sampling.every", "3", "--checkpoints.every", "2")
    assert [p.name for p in sorted((tmp_path / "run" / "samples").iterdir())] == [
        "final.png",
        "step_00000003.png",
        "step_00000006.png",
    ]
    pipeline = HFVAEPipeline.from_pretrained(checkpoint)
    first = pipeline(4, [torch.Generator().manual_seed(i) for i in range(4)], output_type="np").images
    assert first.shape == (4, 8, 8, 1)
    assert Image.open(checkpoint / "samples.png").size == (16, 16)
    facts = json.loads((checkpoint / "training.json").read_text())
    assert facts["scaling_factor"] == pipeline.vae.config["scaling_factor"] > 0
    card = (checkpoint / "README.md").read_text()
    assert "HFVAEPipeline.from_pretrained" in card and "gaussian_optimal" in card and "DDPM" not in card
    shown = capsys.readouterr().out
    assert "VAE, mlp, gaussian_optimal, 3 latent numbers" in shown and "hf-ddpm sample" in shown
    assert isinstance(load_checkpoint(str(checkpoint)), HFVAEPipeline)
    with pytest.raises(UserError, match="contains a VAE"):
        load_pipeline(str(checkpoint))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_likelihood_learns(likelihood, tmp_path):
    checkpoint = tiny(tmp_path, "--likelihood", likelihood, "--total_steps", "80", "--lr", "1e-2", "--batch_size", "32")
    first, last = np.mean(losses(tmp_path)[:3]), np.mean(losses(tmp_path)[-5:])
    assert last < first - 0.1 * abs(first)
    vae = HFVAEPipeline.from_pretrained(checkpoint).vae
    assert bool(torch.isfinite(vae.log_prob(torch.zeros(1, 1, 8, 8), torch.zeros(1, *vae.latent_shape))))


@pytest.mark.parametrize("words", [[], CONV])
def test_the_measured_scale_makes_latents_of_unit_variance(words, tmp_path):
    checkpoint = tiny(tmp_path, *words, "--total_steps", "40", "--lr", "1e-2")
    vae = HFVAEPipeline.from_pretrained(checkpoint).vae
    from hf_ddpm.data import ImageData

    images = next(ImageData("digits", image_size=8, max_images=64).batches(batch_size=64, seed=0)).x_0
    posterior = vae.encode(images).latent_dist
    draws = torch.stack([posterior.sample(torch.Generator().manual_seed(i)) for i in range(200)])
    assert (draws * vae.config["scaling_factor"]).std().item() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("elbo", [["--kl_warmup_steps", "5"], ["--bound", "iwae", "--num_samples", "3"]])
def test_resumed_is_uninterrupted_bit_for_bit(elbo, tmp_path):
    words = [*elbo, "--horizontal_flip", "true", "--binarize", "dynamic", "--likelihood", "bernoulli"]
    tiny(tmp_path / "whole", *words)
    tiny(tmp_path / "parts", *words, "--total_steps", "3", "--decay", "constant")
    tiny(tmp_path / "constant", *words, "--decay", "constant")
    tiny(tmp_path / "parts", *words, "--decay", "constant", "--resume", "latest")
    assert difference(weights(tmp_path / "parts"), weights(tmp_path / "constant")) == 0
    assert losses(tmp_path / "parts") == losses(tmp_path / "constant") != losses(tmp_path / "whole")


def test_accumulation_and_processes_walk_the_same_path(on_two_processes, tmp_path):
    """1x8, 4 accumulated parts of 2, and 2 processes of 4 agree to 1e-4 after 20 steps."""
    words = ["--total_steps", "20", "--likelihood", "gaussian_global", "--num_samples", "2", "--kl_warmup_steps", "9"]
    tiny(tmp_path / "one", *words)
    tiny(tmp_path / "accumulated", *words, "--gradient_accumulation_steps", "4")
    process = on_two_processes(SCRIPT, *TINY, *words, "--output_dir", str(tmp_path / "two"))
    assert process.returncode == 0, process.stderr
    assert "on 2 process(es)" in process.stdout
    assert difference(weights(tmp_path / "one"), weights(tmp_path / "accumulated")) < 1e-4
    assert difference(weights(tmp_path / "one"), weights(tmp_path / "two")) < 1e-4
    tiny(tmp_path / "start", *words, "--total_steps", "1")
    assert difference(weights(tmp_path / "one"), weights(tmp_path / "start")) > 1e-3


def test_a_class_column_is_no_obstacle(tmp_path):
    assert tiny(tmp_path, "--label_column", "auto").is_dir()


VAE_RECIPES = ["mnist-vae", "mnist-vae-binary", "mnist-vae-iwae", "mnist-vae-aevb", "mnist-vae-conv", "cifar10-vae"]
VAE_RECIPES += ["faces-vae"]


@pytest.mark.parametrize("name", VAE_RECIPES)
def test_every_recipe_trains_a_shrunken_copy(name, tmp_path):
    recipe = read_recipe(name)
    recipe["data"] |= {"source": "digits", "image_size": 16, "num_workers": 0, "max_images": 16}
    recipe["data"].pop("crop_box", None)
    recipe["vae"] |= {"block_out_channels": [8, 8, 8], "norm_num_groups": 8}
    recipe["vae"] |= {"hidden_sizes": [8 for _ in recipe["vae"].get("hidden_sizes", [8])]}
    recipe["training"] |= {"total_steps": 2, "batch_size": 4, "output_dir": str(tmp_path / "run"), "tracker": "none"}
    recipe["training"] |= {"cpu_threads": 1}
    recipe["sampling"] |= {"every": None, "num_images": 2}
    vae = HFVAEPipeline.from_pretrained(train(check_recipe(recipe))).vae
    assert vae.config["likelihood"] == recipe["vae"]["likelihood"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--vae.sample_size", "9"], "sample_size=9 do not fit data with channels=1 and image_size=8"),
        (["--likelihood", "bernouli"], "likelihood.*did you mean bernoulli"),
        (["--num_samples", "0"], "elbo: num_samples=0 must be a whole number of at least 1"),
        (["--bound", "iwae", "--beta", "2"], "elbo: beta.*bound='iwae' has no"),
        (["--beta", "-1"], r"elbo: beta=-1\.0"),
        (
            ["--network", "conv", "--block_out_channels", "[8, 8, 8, 8, 8]"],
            "vae: images of size 8x8 do not fit a network with 5",
        ),
        (["--network", "conv", "--block_out_channels", "[8, 9]"], "must be multiples of norm_num_groups=8"),
        (["--beta_schedule", "cosine"], "unknown option --beta_schedule"),
        (["--channels", "5"], "channels=5 must be 1, 2, 3 or 4"),
        (["--hidden_sizes", "[0]"], r"vae: hidden_sizes=\[0\] must be whole numbers of at least 1"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(words, sentence, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main([*TINY, "--output_dir", str(tmp_path / "run"), "--total_steps", "2", *words])
    assert re.search(sentence, str(stop.value.code)), stop.value.code
    assert "\n" not in str(stop.value.code)
    assert not (tmp_path / "run").exists()
