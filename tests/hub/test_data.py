"""Training on a data set of the Hub, `data.source` its name, and on a VAE of the Hub, `latents.vae` its name."""

import io
import json

import pytest
import torch
from datasets import Dataset, Image
from image_files import random_image

from hf_ddpm import HFVAE, HFVAEPipeline
from hf_ddpm.checkpoint import save_checkpoint
from hf_ddpm.hub import push_checkpoint

WORDS = ["--preset", "tiny", "--image_size", "8", "--batch_size", "4", "--total_steps", "2", "--warmup_steps", "1"]
WORDS += ["--num_images", "1", "--num_inference_steps", "1", "--tracker", "none", "--cpu_threads", "1"]


@pytest.fixture
def digits(hub):
    """A data set of 12 images with labels."""
    rows = {"image": [random_image(i, mode="L") for i in range(12)], "label": [i % 3 for i in range(12)]}
    file = io.BytesIO()
    Dataset.from_dict(rows).cast_column("image", Image()).to_parquet(file)
    hub.add_repo("ada/digits", {"data/train-00000-of-00001.parquet": file.getvalue()}, repo_type="dataset")


@pytest.fixture
def train(run_python, tmp_path):
    def run(*words):
        command = ["train", *WORDS, "--output_dir", str(tmp_path / "run"), *words]
        return run_python(f"from hf_ddpm.cli import main\nmain({command!r})", check=False)

    return run


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_a_name_on_the_hub_is_trained_on(streaming, hub, digits, train, tmp_path):
    done = train("--data.source", "ada/digits", "--streaming", streaming)
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "run" / "checkpoint" / "training.json").read_text())
    assert (facts["data"]["source"], facts["data"]["origin"]) == ("ada/digits", "hub")
    assert facts["num_images"] == (12 if streaming == "false" else None)
    assert hub.requests("GET", "datasets/ada/digits/resolve")


def test_a_data_set_that_is_not_there_is_one_sentence(hub, train, tmp_path):
    done = train("--data.source", "ada/nothing")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "ada/nothing" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_vae_of_the_hub_makes_the_latents(hub, digits, train, tmp_path):
    torch.manual_seed(0)
    vae = HFVAE(sample_size=16, latent_channels=2, network="conv", block_out_channels=(8, 8), likelihood="gaussian")
    save_checkpoint(HFVAEPipeline(vae), tmp_path / "vae", {"name": "vae"}, random_image(0))
    push_checkpoint(str(tmp_path / "vae"), "ada/vae", private=True)
    latent = ["--latents.vae", "ada/vae", "--clip_sample", "false", "--image_size", "16", "--data.source", "ada/digits"]
    done = train(*latent, "--channels", "1")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "checkpoint" / "training.json").read_text())["latents"]["class"] == "HFVAE"
