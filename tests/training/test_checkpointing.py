"""Gradient checkpointing in every recipe: less is kept, and the weights are the same."""

import pytest
import torch
from safetensors.torch import load_file

from hf_ddpm.training.command_line import parse_command_line
from hf_ddpm.training.train import train

COMMON = ["--batch_size", "8", "--total_steps", "2", "--num_images", "4", "--sampling.every", "null", "--samples", "0"]
COMMON += ["--tracker", "none", "--cpu_threads", "1", "--checkpoints.every", "null", "--max_images", "64"]
SMALL = ["--image_size", "8"]
SAMPLED = ("--max_images", "--num_images", "--sampling.every", "--samples")
RECIPES = {
    "mnist": ["--preset", "tiny", "--num_inference_steps", "2", *SMALL],
    "mnist-vae": ["--hidden_sizes", "[8]", "--latent_channels", "2", *SMALL],
    "mnist-vae-conv": ["--block_out_channels", "[8, 8]", *SMALL],
    "mnist-classifier": ["--preset", "tiny", *SMALL],
    "mnist-ddgan": [
        *("--generator.preset", "tiny", "--discriminator.preset", "tiny", "--evaluation.every", "null"),
        *SMALL,
    ],
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_weights_are_the_same(recipe, tmp_path):
    found = []
    for name in ("false", "true"):
        words = ["--recipe", recipe, *COMMON, *RECIPES[recipe], "--gradient_checkpointing", name]
        if recipe == "mnist-classifier":
            pairs = zip(words[::2], words[1::2], strict=True)
            words = [word for pair in pairs if pair[0] not in SAMPLED for word in pair]
        folder = tmp_path / name
        train(*parse_command_line([*words, "--output_dir", str(folder)]))
        found.append([load_file(file) for file in sorted(folder.glob("states/*/model*.safetensors"))])
    for one, other in zip(*found, strict=True):
        for key, weight in one.items():
            torch.testing.assert_close(other[key], weight, rtol=1e-4, atol=1e-6, equal_nan=True)
