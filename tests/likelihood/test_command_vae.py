"""`hf-ddpm likelihood` of a VAE as a user types it, and the report behind it."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from hf_ddpm import HFDDPMPipeline, HFVAEPipeline
from hf_ddpm.checkpoint import save_checkpoint
from hf_ddpm.cli import main
from hf_ddpm.data import ImageData
from hf_ddpm.likelihood import draw_images, evaluate_vae
from hf_ddpm.likelihood.vae_report import vae_report, vae_table
from hf_ddpm.models.vae import HFVAE
from hf_ddpm.weights import weights_sha256

LATENTS = 4


def make_vae(**config):
    torch.manual_seed(0)
    vae = HFVAE(**{"sample_size": 8, "latent_channels": LATENTS, "hidden_sizes": (16,), **config}).eval()
    for weight in vae.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return vae


@pytest.fixture
def checkpoint(tmp_path):
    """(config of the VAE) -> its folder."""

    def make(**config):
        folder = tmp_path / "checkpoint"
        save_checkpoint(HFVAEPipeline(make_vae(**config)), folder, {"name": "one"}, Image.new("L", (8, 8)))
        return folder

    return make


def words(checkpoint, out, *more):
    return ["likelihood", str(checkpoint), "--data", "digits", "--device", "cpu", "--out", str(out), *more]


def measured(checkpoint, out, *more):
    main(words(checkpoint, out, "--num-samples", "5", *more))
    return json.loads(out.read_text())


def test_one_process_and_two_say_the_same(checkpoint, on_two_processes, tmp_path, capsys):
    folder = checkpoint()
    one = measured(folder, tmp_path / "deep" / "one.json", "--batch-size", "3")
    shown = capsys.readouterr().out
    done = on_two_processes("-m", "hf_ddpm.cli", *words(folder, tmp_path / "two.json", "--num-samples", "5"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("-log p(x), K = 5") == 2  # nats and bits, of the main process alone
    two = json.loads((tmp_path / "two.json").read_text())
    assert (one["processes"], two["processes"], one["batch_size"], two["batch_size"]) == (1, 2, 3, 1000)
    for key in ("nll", "negative_elbo", "rate", "distortion"):
        for unit, value in one[key].items():
            assert value == pytest.approx(two[key][unit], rel=1e-6)
            assert key in ("rate", "distortion") or f"{value['mean']:.4f}" in shown
    np.testing.assert_allclose(one["per_dimension"]["kl"], two["per_dimension"]["kl"], rtol=1e-6)
    with Image.open(tmp_path / "deep" / "one.png") as picture:
        assert picture.width > 600 and len(np.unique(np.asarray(picture.convert("L")))) > 20


def test_the_report_adds_up():
    vae = make_vae()
    images = draw_images(ImageData("digits", image_size=8, binarize="static"), 300, seed=1)
    likelihood = evaluate_vae(vae, images, num_samples=7, seed=1)
    found = vae_report(likelihood, vae, checkpoint="one", binarisation={"kind": "static", "seed": 0})
    assert next(iter(found)) == "checkpoint"
    expected = {"likelihood": "bernoulli", "latent_shape": [LATENTS, 1, 1], "n": 300, "seed": 1, "num_samples": 7}
    assert expected.items() <= found.items()
    assert found["binarisation"] == {"kind": "static", "seed": 0} and "mass of an image" in found["measure"]
    assert set(found["versions"]) == {"hf_ddpm", "torch", "diffusers", "python"}
    assert found["weights_sha256"] == weights_sha256(vae)

    nats, bits = found["nll"]["nats"], found["nll"]["bits_per_dim"]
    assert nats["mean"] == pytest.approx(-likelihood.terms.log_p_x.mean().item())
    assert nats["standard_error"] == pytest.approx(np.std(likelihood.terms.log_p_x.numpy(), ddof=1) / math.sqrt(300))
    assert bits["mean"] == pytest.approx(nats["mean"] / (64 * math.log(2)))
    assert bits["standard_error"] == pytest.approx(nats["standard_error"] / (64 * math.log(2)))
    rate, distortion = found["rate"]["nats"]["mean"], found["distortion"]["nats"]["mean"]
    assert rate + distortion == pytest.approx(found["negative_elbo"]["nats"]["mean"], rel=1e-9)
    assert sum(found["per_dimension"]["kl"]) == pytest.approx(rate, rel=1e-6)
    active = sum(activity > 0.01 for activity in found["per_dimension"]["activity"])
    assert found["active_units"] == {"count": active, "of": LATENTS, "threshold": 0.01}
    assert 1 <= found["effective_samples"]["least"] <= found["effective_samples"]["mean"] <= 7
    json.dumps(found, allow_nan=False)

    shown = vae_table(found)
    for number in (nats["mean"], nats["standard_error"], bits["mean"], rate, distortion):
        assert f"{number:.4f}" in shown
    assert "-log p(x), K = 7" in shown and f"active units: {active} of {LATENTS}" in shown
    assert "not a likelihood" not in shown


def test_digits_are_binarised_once_with_a_stated_seed(checkpoint, tmp_path):
    folder = checkpoint()
    zero, again, other = (
        measured(folder, tmp_path / "x.json", *more)
        for more in ((), ("--binarize", "static", "--binarize-seed", "0"), ("--binarize-seed", "7"))
    )
    assert (zero["binarisation"], other["binarisation"]) == (
        {"kind": "static", "seed": 0},
        {"kind": "static", "seed": 7},
    )
    assert zero["nll"] == again["nll"] and zero["nll"] != other["nll"]


def test_greys_under_a_bernoulli_are_named_a_cross_entropy(checkpoint, tmp_path, capsys):
    found = measured(checkpoint(), tmp_path / "x.json", "--binarize", "none")
    assert "nll" not in found and "not a normalised likelihood" in found["measure"]
    assert found["cross_entropy"]["nats"]["mean"] < found["negative_elbo"]["nats"]["mean"]
    shown = capsys.readouterr().out
    assert "a cross-entropy, not a likelihood" in shown and "log p(x), K" not in shown


@pytest.mark.parametrize("likelihood", ["gaussian", "discretized_gaussian"])
def test_greys_under_the_other_likelihoods(likelihood, checkpoint, tmp_path):
    found = measured(checkpoint(likelihood=likelihood), tmp_path / "x.json")
    nll, dimensions = found["nll"], 64
    assert found["binarisation"] is None
    bins = math.log2(255 / 2) if likelihood == "gaussian" else 0.0
    assert nll["bits_per_dim"]["mean"] == pytest.approx(nll["nats"]["mean"] / (dimensions * math.log(2)) + bins)
    assert ("density" in found["measure"]) == (likelihood == "gaussian")


@pytest.mark.parametrize(
    ("config", "more", "sentence"),
    [
        ({}, ["--num-samples", "0"], "--num-samples 0 must be at least 1"),
        ({}, ["--batch-size", "0"], "--batch-size 0 must be at least 1"),
        ({}, ["-n", "255"], "at least 256 images, not 255"),
        (
            {},
            ["--method", "bound"],
            "--method is not supported for 'checkpoint', which contains a VAE: leave the option out",
        ),
        ({}, ["--ode-steps", "50"], "--ode-steps is not supported for 'checkpoint', which contains a VAE"),
        ({}, ["--probes", "1"], "--probes is not supported for 'checkpoint', which contains a VAE"),
        ({}, ["--no-clip"], "--no-clip is not supported for 'checkpoint', which contains a VAE"),
        ({}, ["--label-column", "label"], "--label-column label is not supported for a VAE"),
        ({}, ["--binarize", "dynamic"], "invalid choice: 'dynamic'"),
        ({}, ["--binarize-seed", "-1"], "--binarize-seed -1 must be from 0 to 9223372036854775807"),
        ({}, ["--binarize", "none", "--binarize-seed", "1"], "--binarize-seed 1 has no effect with --binarize none"),
        ({"likelihood": "gaussian"}, ["--binarize", "static"], "--binarize needs a VAE with likelihood='bern"),
        (
            {"likelihood": "gaussian"},
            ["--binarize-seed", "3"],
            "and 'checkpoint' has likelihood='gaussian': leave the option",
        ),
        ({"likelihood": "gaussian_optimal"}, [], "'gaussian_optimal' has no sigma: call"),
    ],
)
def test_mistakes_are_one_sentence(config, more, sentence, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = checkpoint(**config)
    if config.get("likelihood") == "gaussian_optimal":
        save_checkpoint(HFVAEPipeline(HFVAE(sample_size=8, **config)), folder, {"name": "one"}, Image.new("L", (8, 8)))
    with pytest.raises(SystemExit) as stop:
        main(words("checkpoint", "x.json", *more))
    assert str(stop.value.code).startswith("error: ")
    assert sentence in str(stop.value.code)
    assert "\n" not in str(stop.value.code)


@pytest.mark.parametrize(
    ("option", "value"), [("--num-samples", "5"), ("--binarize", "none"), ("--binarize-seed", "0")]
)
def test_options_of_vaes_given_with_a_diffusion_model(option, value, make_pipeline, tmp_path):
    save_checkpoint(make_pipeline(), tmp_path / "c", {"name": "one"}, Image.new("L", (8, 8)))
    with pytest.raises(
        SystemExit, match=f"{option} is not supported for '.*', which contains a diffusion model: leave the"
    ):
        main(words(tmp_path / "c", tmp_path / "x.json", option, value))


def test_a_latent_model_has_no_likelihood_whatever_the_options(make_pipeline, tmp_path):
    vae = make_vae(network="conv", sample_size=16, block_out_channels=(8, 8), scaling_factor=1.0)
    inner = make_pipeline({"clip_sample": False}, sample_size=8, in_channels=LATENTS, out_channels=LATENTS)
    pipeline = HFDDPMPipeline(inner.unet, inner.scheduler, vae=vae)
    save_checkpoint(pipeline, tmp_path / "c", {"name": "one"}, Image.new("L", (8, 8)))
    for more in ([], ["--num-samples", "5"]):
        with pytest.raises(
            SystemExit, match="works in the latents of a VAE, such as this one: use hf-ddpm sample or hf-ddpm edit"
        ):
            main(words(tmp_path / "c", tmp_path / "x.json", *more))


def test_without_the_extra_the_sentence_names_it(checkpoint, tmp_path, monkeypatch):
    from hf_ddpm.commands import options

    monkeypatch.setattr(options, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"latents needs matplotlib: install it with pip install 'hf_ddpm\[measure\]'"):
        main(words(checkpoint(), tmp_path / "x.json"))


def test_images_are_cut_as_in_training(tmp_path):
    """crop_box of the recipe that training.json tells: the 8x8 corner of larger images, white there alone."""
    block = {"crop_box": [0, 0, 8, 8]}
    folder = tmp_path / "c"
    facts = {"name": "x", "recipe": {"data": block}}
    save_checkpoint(HFVAEPipeline(make_vae()), folder, facts, Image.new("L", (8, 8)))
    (tmp_path / "photos").mkdir()
    for i in range(256):
        photo = Image.new("L", (16, 16))
        photo.paste(255, (0, 0, 8, 8))
        photo.save(tmp_path / "photos" / f"{i}.png")
    found = measured(folder, tmp_path / "x.json", "--data", str(tmp_path / "photos"), "--binarize", "none")
    white = torch.ones(1, 1, 8, 8)
    posterior = make_vae().encode(white).latent_dist
    np.testing.assert_allclose(found["rate"]["nats"]["mean"], posterior.kl().item(), rtol=1e-5)
