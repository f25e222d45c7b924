"""Training of a diffusion model in a VAE's latents: one pipeline, the same path cached or not, the user's mistakes."""

import json
import re
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL
from launching import SCRIPT, difference, losses
from PIL import Image
from safetensors.torch import load_file

from hf_ddpm import HFVAE, HFClassifierPipeline, HFDDPMPipeline, HFDDPMScheduler, HFVAEPipeline, unet_preset
from hf_ddpm.cli import main as hf_ddpm
from hf_ddpm.data import ImageData
from hf_ddpm.latent_data import LatentData
from hf_ddpm.training.command_line import parse_command_line, read_recipe
from hf_ddpm.training.family import check_recipe
from hf_ddpm.training.train import main, train

TINY = ["--recipe", "mnist-latent", "--image_size", "16", "--max_images", "64", "--resize", "crop"]
TINY += ["--block_out_channels", "[4, 8, 8]", "--norm_num_groups", "2", "--num_images", "4"]
TINY += ["--num_inference_steps", "2", "--sampling.every", "null", "--checkpoints.every", "null", "--batch_size", "8"]
TINY += ["--warmup_steps", "2", "--log_every", "1", "--tracker", "none", "--cpu_threads", "1"]
TINY += ["--latents.cache", "false"]

CLASSIFIER = ["--recipe", "mnist-classifier", "--preset", "tiny", "--image_size", "16", "--max_images", "200"]
CLASSIFIER += ["--held_back", "50", "--batch_size", "32", "--warmup_steps", "2", "--checkpoints.every", "null"]
CLASSIFIER += ["--tracker", "none", "--cpu_threads", "1", "--total_steps", "60", "--log_every", "1", "--samples", "50"]
CLASSIFIER += ["--optimizer", "muon", "--muon_lr", "0.05", "--optimization.lr", "1e-2"]

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def vae(tmp_path):
    """A folder with a VAE whose scale nobody has measured: 2x8x8 latents of 16x16 images.

    Its weights are random, but for a q(z|x) as narrow as a trained one's.
    """
    torch.manual_seed(0)
    levels = {"network": "conv", "block_out_channels": (8, 8), "latent_channels": 2}
    model = HFVAE(sample_size=16, likelihood="gaussian_fixed", **levels)
    torch.nn.init.constant_(model.encoder.conv_out.bias[2:], -6.0)
    HFVAEPipeline(model).save_pretrained(tmp_path / "vae")
    return str(tmp_path / "vae")


def tiny(folder, vae, *words):
    """Train in this process; later words win."""
    words = [*TINY, "--latents.vae", vae, "--output_dir", str(folder), "--total_steps", "6", *words]
    return train(*parse_command_line(words))


def weights(folder):
    return load_file(Path(folder) / "checkpoint" / "unet" / "diffusion_pytorch_model.safetensors")


def test_a_run_leaves_one_pipeline_with_the_vae_and_its_measured_scale(vae, tmp_path):
    checkpoint = tiny(tmp_path / "run", vae)
    assert HFVAEPipeline.from_pretrained(vae).vae.config["scaling_factor"] is None
    pipeline = HFDDPMPipeline.from_pretrained(checkpoint)
    assert pipeline.unet.config["in_channels"] == pipeline.unet.config["out_channels"] == 2
    assert list(pipeline.unet.config["sample_size"]) == [8, 8]
    opened = HFVAEPipeline.from_pretrained(vae).vae.state_dict()
    assert all(torch.equal(opened[name], value) for name, value in pipeline.vae.state_dict().items())
    images = next(ImageData("digits", image_size=16, max_images=64).batches(batch_size=64, seed=0)).x_0
    posterior = pipeline.vae.encode(images).latent_dist
    draws = torch.stack([posterior.sample(torch.Generator().manual_seed(i)) for i in range(100)])
    assert (draws * pipeline.vae.config["scaling_factor"]).std().item() == pytest.approx(1, abs=0.02)
    assert Image.open(checkpoint / "samples.png").size == (32, 32)
    facts = json.loads((checkpoint / "training.json").read_text())["latents"]
    assert facts == {"class": "HFVAE", "scaling_factor": pipeline.vae.config["scaling_factor"]}
    assert f"multiplied by {facts['scaling_factor']:.5f}" in (checkpoint / "README.md").read_text()


def test_the_command_line_samples_it(vae, tmp_path, capsys):
    checkpoint = tiny(tmp_path / "run", vae)
    out = tmp_path / "grid.png"
    assert hf_ddpm(["sample", str(checkpoint), "-n", "4", "--steps", "2", "--eta", "0", "--out", str(out)]) in (None, 0)
    assert Image.open(out).size == (32, 32)
    assert "network calls per image: 2)" in capsys.readouterr().out
    with Image.open(out) as one, Image.open(checkpoint / "samples.png") as two:  # of the same seed
        assert one.tobytes() == two.convert(one.mode).tobytes()


def test_training_learns(vae, tmp_path):
    tiny(tmp_path / "run", vae, "--total_steps", "60", "--lr", "1e-2", "--batch_size", "32")
    found = losses(tmp_path / "run")
    assert sum(found[-10:]) / 10 < 0.9 * sum(found[:5]) / 5


@pytest.mark.parametrize("cache", ["false", "true"])
def test_resumed_is_uninterrupted_bit_for_bit(cache, vae, tmp_path):
    words = ["--latents.cache", cache, "--horizontal_flip", "true", "--decay", "constant"]
    whole = tiny(tmp_path / "whole", vae, *words)
    tiny(tmp_path / "parts", vae, *words, "--total_steps", "3")
    parts = tiny(tmp_path / "parts", vae, *words, "--resume", "latest")
    assert difference(weights(tmp_path / "whole"), weights(tmp_path / "parts")) == 0
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    one, two = (HFDDPMPipeline.from_pretrained(path).vae.config["scaling_factor"] for path in (whole, parts))
    assert one == two


@pytest.mark.slow
def test_cached_encoded_anew_and_two_processes_walk_the_same_path(vae, on_two_processes, tmp_path):
    """They agree to 1e-4 after 20 steps, which is two and a half epochs with flips."""
    words = ["--total_steps", "20", "--horizontal_flip", "true"]
    tiny(tmp_path / "anew", vae, *words)
    tiny(tmp_path / "cached", vae, *words, "--latents.cache", "true")
    assert difference(weights(tmp_path / "anew"), weights(tmp_path / "cached")) < 1e-4
    words = [*TINY, *words, "--latents.vae", vae, "--latents.cache", "true", "--output_dir", str(tmp_path / "two")]
    process = on_two_processes(SCRIPT, *words)
    assert process.returncode == 0, process.stderr
    assert "on 2 process(es)" in process.stdout and "encoded once into the cache of datasets" in process.stdout
    assert difference(weights(tmp_path / "anew"), weights(tmp_path / "two")) < 1e-4
    tiny(tmp_path / "start", vae, "--total_steps", "1")
    assert difference(weights(tmp_path / "anew"), weights(tmp_path / "start")) > 1e-3


def test_a_stock_vae_is_measured_and_saved_too(tmp_path):
    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    stock = AutoencoderKL(1, 1, **kinds, block_out_channels=(8, 8), latent_channels=2, norm_num_groups=4)
    stock.save_pretrained(tmp_path / "stock")
    vae = HFDDPMPipeline.from_pretrained(tiny(tmp_path / "run", str(tmp_path / "stock"))).vae
    assert type(vae) is AutoencoderKL
    assert vae.config["scaling_factor"] != stock.config["scaling_factor"] == 0.18215  # of Stable Diffusion's latents


def test_a_classifier_of_latents_learns_and_guides(vae, tmp_path, capsys):
    """Its gradient moves a walk in the same latents to where it finds the class more probable."""
    words = [*CLASSIFIER, "--latents.vae", vae, "--output_dir", str(tmp_path / "run"), "--clip_sample", "true"]
    checkpoint = train(*parse_command_line(words))
    found = losses(tmp_path / "run")
    assert sum(found[-10:]) / 10 < sum(found[:10]) / 10 - 0.05
    classifier = HFClassifierPipeline.from_pretrained(checkpoint).classifier.eval()
    assert (classifier.config["in_channels"], list(classifier.config["sample_size"])) == (2, [8, 8])
    block = {"source": "digits", "image_size": 16, "max_images": 200, "held_back": 50}
    frozen = HFVAEPipeline.from_pretrained(vae).vae.eval()
    scale = LatentData(frozen, block, seed=0).scale
    facts = classifier.config["latents"]
    assert facts == json.loads((checkpoint / "training.json").read_text())["latents"]
    assert facts == {
        "class": "HFVAE",
        "scaling_factor": pytest.approx(scale, rel=1e-6),
    }  # rounded otherwise on some CPUs
    assert f"latents of a VAE (HFVAE), multiplied by {scale:.5f}" in (checkpoint / "README.md").read_text()
    assert json.loads((checkpoint / "evaluation.json").read_text())["conditions"]["num_images"] == 50

    frozen.register_to_config(scaling_factor=scale)
    unet = unet_preset("tiny", sample_size=8, in_channels=2, out_channels=2)
    v = {"prediction_type": "v_prediction", "clip_sample": False}  # 0 is what x_0 of N(0, I) have
    scheduler = HFDDPMScheduler(beta_schedule="cosine", **v)
    pipeline = HFDDPMPipeline(unet, scheduler, vae=frozen, classifier=classifier)
    pipeline.set_progress_bar_config(disable=True)
    log_p, y = [], torch.arange(10)
    for strength in (0.0, 20.0):
        z = []
        generators = [torch.Generator().manual_seed(i) for i in range(10)]
        call = {"class_labels": y, "classifier_scale": strength, "generator": generators}
        images = pipeline(10, 10, **call, callback_on_step_end=lambda *a, z=z: z.append(a[3]["latents"])).images
        assert images[0].size == (16, 16)
        log_p.append(HFClassifierPipeline(classifier)(z[-1]).probabilities.log()[y, y].mean())
    assert log_p[1] > log_p[0] + 0.1

    evaluate = ["evaluate", str(checkpoint), "--data", "digits", "--out", str(tmp_path / "x.json")]
    with pytest.raises(
        SystemExit, match=r"contains a classifier of latents, but not the VAE \(HFVAE\).*to evaluation\.json$"
    ):
        hf_ddpm([*evaluate, "--device", "cpu"])


def test_the_two_recipes_train_shrunken_copies_in_turn(tmp_path, monkeypatch):
    """mnist-latent finds the VAE where mnist-vae-conv leaves it."""
    monkeypatch.chdir(tmp_path)
    first, second = (check_recipe(read_recipe(name)) for name in ("mnist-vae-conv", "mnist-latent"))
    first["vae"] |= {"block_out_channels": [8 for _ in first["vae"]["block_out_channels"]]}
    second["model"] |= {"block_out_channels": [4, 8, 8], "norm_num_groups": 2}
    second["sampling"] |= {"num_inference_steps": 2}
    for recipe in (first, second):
        recipe["data"] |= {"max_images": 16, "image_size": 16}
        recipe["training"] |= {"total_steps": 2, "batch_size": 4, "tracker": "none", "cpu_threads": 1}
        recipe["sampling"] |= {"every": None, "num_images": 2}
    train(check_recipe(first))
    AcceleratorState._reset_state(reset_partial_state=True)
    pipeline = HFDDPMPipeline.from_pretrained(train(check_recipe(second)))
    network = pipeline.unet.config
    assert pipeline.vae.latent_shape == (network["in_channels"], *network["sample_size"])
    assert pipeline.vae.config["likelihood"] == first["vae"]["likelihood"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--clip_sample", "true"], r"scheduler: clip_sample and thresholding limit pixels.*set --clip_sample false"),
        (["--loss", "vlb"], r"objective\.loss='vlb' has a likelihood of grey levels.*set --loss simple"),
        (["--latents.vae", "null", "--latents.cache", "true"], r"latents\.cache=True needs latents\.vae"),
        (["--latents.vae", ""], r"latents\.vae='' is not a VAE: set a folder or a Hub name, or null for pixels"),
        (["--latents.vae", "EMPTY"], r"latents\.vae='.*empty' cannot be opened as a VAE"),
        (["--latents.vae", "UNET"], r"latents\.vae='.*unet.*class is 'UNet2DModel', but must be one of HFVAE, Aut"),
        (
            ["--model.in_channels", "1", "--model.out_channels", "1"],
            "model: in_channels=1 and out_channels=1 do not fit",
        ),
        (["--channels", "3"], r"latents\.vae encodes .* 1 channel\(s\), but data\.channels is 3: pass --channels 1"),
        (["--image_size", "15"], r"latents\.vae does not support images of 15x15"),
        (["--latents.cache", "true", "--binarize", "dynamic"], r"latents\.cache stores each image once"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(words, sentence, vae, tmp_path):
    (tmp_path / "empty").mkdir()
    unet_preset("tiny").save_pretrained(tmp_path / "unet")
    words = [{"EMPTY": str(tmp_path / "empty"), "UNET": str(tmp_path / "unet")}.get(word, word) for word in words]
    with pytest.raises(SystemExit) as stop:
        main([*TINY, "--latents.vae", vae, "--output_dir", str(tmp_path / "run"), "--total_steps", "2", *words])
    assert re.search(sentence, str(stop.value.code)), stop.value.code
    assert "\n" not in str(stop.value.code)
    assert not (tmp_path / "run").exists()
