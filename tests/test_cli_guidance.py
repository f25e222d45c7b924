"""Guidance as a user types it: sample, edit and sweep with and without a classifier, and mistakes in one sentence."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from hf_ddpm import HFVAE, HFDDPMPipeline, HFDDPMScheduler, HFVAEPipeline
from hf_ddpm.cli import main
from hf_ddpm.models import NoisyClassifier
from hf_ddpm.pipelines import HFClassifierPipeline

STEPS = {"num_train_timesteps": 20, "beta_schedule": "cosine"}
NAMES = {0: "zero", 1: "one", 2: "seven"}


def classifier(size=8, **more):
    torch.manual_seed(1)
    found = NoisyClassifier(
        size, 1, 3, (8, 8), down_block_types=("ResnetDownsampleBlock2D",) * 2, attention_head_dim=8, id2label=NAMES,
        **{"noise_schedule": STEPS, **more},
    )  # fmt: skip
    for weight in found.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return found


@pytest.fixture
def folder(make_pipeline, tmp_path, monkeypatch):
    """A network with a null class, one without classes, classifiers that fit and do not, a VAE and a picture."""
    scheduler = HFDDPMScheduler(**STEPS)
    with_classes = make_pipeline(STEPS, num_class_embeds=4).unet
    HFDDPMPipeline(with_classes, scheduler, null_class=3, id2label=NAMES).save_pretrained(tmp_path / "free")
    HFDDPMPipeline(make_pipeline(STEPS).unet, scheduler).save_pretrained(tmp_path / "plain")
    HFClassifierPipeline(classifier()).save_pretrained(tmp_path / "classifier")
    classifier().save_pretrained(tmp_path / "alone")
    HFClassifierPipeline(classifier(noise_schedule={"beta_schedule": "linear"})).save_pretrained(tmp_path / "linear")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def drawn(checkpoint, *words, command="sample"):
    first = [checkpoint] if command == "sample" else ["reconstruct", checkpoint, "a.png"]
    more = ["-n", "3"] if command == "sample" else []
    main([command, *first, *more, "--steps", "4", "--device", "cpu", "--out", "out.png", *words])
    return np.asarray(Image.open("out.png"), dtype=int)


@pytest.mark.parametrize("how", [("--eta", "0"), ("--eta", "none"), ("--solver", "unipc")])
def test_each_guidance_changes_what_is_drawn_and_a_scale_that_is_off_does_not(folder, how):
    plain = drawn("free", *how)
    assert np.array_equal(plain, drawn("free", *how, "--guidance", "1"))
    assert not np.array_equal(plain, drawn("free", *how, "--guidance", "3"))
    assert not np.array_equal(plain, drawn("free", *how, "--classifier", "classifier", "--classifier-scale", "20"))
    assert np.array_equal(plain, drawn("free", *how, "--classifier", "classifier", "--classifier-scale", "0"))


def test_a_network_without_classes_gets_those_of_the_classifier(folder):
    guided = ("--eta", "0", "--classifier", "alone", "--classifier-scale", "30")
    by_name, by_number = (drawn("plain", *guided, "--class", word) for word in ("seven", "2"))
    assert np.array_equal(by_name, by_number)
    assert not np.array_equal(by_name, drawn("plain", *guided, "--class", "zero"))
    assert not np.array_equal(by_name, drawn("plain", *guided))  # in turn


def test_edits_are_guided(folder):
    plain, guided = (drawn("free", "--class", "one", *more, command="edit") for more in ([], ["--guidance", "4"]))
    assert np.array_equal(plain[:8], guided[:8]) and not np.array_equal(plain[8:], guided[8:])
    assert drawn("plain", "--class", "one", "--classifier", "classifier", command="edit").shape[:2] == (16, 8)


def test_an_edit_takes_the_gradient_at_the_mean_of_algorithm_2_alone(folder):
    mean = ["--class", "one", "--classifier", "classifier", "--classifier-gradient", "mean", "--device", "cpu"]
    main(["edit", "vary", "plain", "a.png", *mean, "--out", "out.png"])
    for words, message in (
        (["vary", "plain", "a.png", "--eta", "0"], "cannot be combined with --eta 0: leave one of them out"),
        (
            ["slerp", "plain", "a.png", "a.png"],
            "which has no inverse: use 'x_t'",
        ),
    ):
        with pytest.raises(SystemExit, match=message):
            main(["edit", *words, *mean, "--out", "out.png"])


def test_scales_are_axes_of_a_sweep(make_pipeline, folder):
    unet = make_pipeline(STEPS, num_class_embeds=4, sample_size=28).unet
    HFDDPMPipeline(unet, HFDDPMScheduler(**STEPS), null_class=3).save_pretrained("large")
    words = ["-n", "6", "--allow-few", "--steps", "2", "--reference", "mnist-test", "--device", "cpu"]
    words += ["--out", "swept", "--guidance-interval", "0,20"]
    main(["sweep", "large", "--over", "guidance=1,2", *words])
    measured = (folder / "swept" / "guidance=2.json").stat().st_mtime_ns
    main(["sweep", "large", "--over", "guidance=1,2", *words])  # which is there
    assert (folder / "swept" / "guidance=2.json").stat().st_mtime_ns == measured
    cells = json.loads((folder / "swept" / "sweep.json").read_text())["cells"]
    assert [cell["cell"] for cell in cells] == [{"guidance": "1"}, {"guidance": "2"}]
    assert [cell["network_calls"] for cell in cells] == [2, 4]
    assert cells[1]["conditions"]["samples"]["call"]["guidance_scale"] == 2


@pytest.mark.parametrize("name", ["classifier", "alone"])
def test_a_sweep_does_not_take_the_cells_of_another_classifier(name, make_pipeline, folder):
    HFDDPMPipeline(make_pipeline(STEPS, sample_size=28).unet, HFDDPMScheduler(**STEPS)).save_pretrained("large")
    guide = classifier(size=28)
    one = HFClassifierPipeline(guide) if name == "classifier" else guide
    one.save_pretrained("guide")
    words = ["sweep", "large", "--over", "classifier-scale=1", "--classifier", "guide", "-n", "6", "--allow-few"]
    words += ["--steps", "2", "--reference", "mnist-test", "--device", "cpu", "--out", "swept"]
    main(words)
    with torch.no_grad():
        next(guide.parameters()).add_(1)
    one.save_pretrained("guide")
    with pytest.raises(SystemExit, match="was measured with classifier_weights="):
        main(words)


def test_an_interval_is_no_axis_of_a_sweep(folder):
    with pytest.raises(SystemExit, match="there is no option --guidance-interval to vary"):
        main(["sweep", "free", "--over", "guidance-interval=0,10", "--reference", "mnist-test"])


def test_an_edit_needs_a_class_where_a_classifier_guides_it(folder):
    plain = drawn("plain", command="edit")
    off = ("--classifier-scale", "0")
    assert np.array_equal(plain, drawn("plain", "--classifier", "alone", *off, command="edit"))
    pipeline = HFDDPMPipeline.from_pretrained("plain")
    HFDDPMPipeline(pipeline.unet, pipeline.scheduler, classifier=classifier()).save_pretrained("with")
    assert np.array_equal(plain, drawn("with", command="edit"))
    for words in (["with", "--classifier-scale", "2"], ["plain", "--classifier", "alone"]):
        with pytest.raises(
            SystemExit, match="this classifier was trained with classes: pass the class of the images with --class"
        ):
            drawn(*words, command="edit")


@pytest.mark.parametrize("words", [("--guidance", "2"), ("--class", "1"), ("--labels", "balanced")])
def test_a_classifier_is_measured_without_options_of_samples_which_are_named_as_typed(words, folder):
    with pytest.raises(
        SystemExit, match=f"{words[0]} is not supported for 'classifier', which contains a noisy classifier"
    ):
        main(["evaluate", "classifier", "--data", "digits", *words, "--device", "cpu"])


def test_a_scale_of_1_beside_what_shapes_guidance_is_the_plain_walk_of_a_comparison(folder):
    off = ("--guidance", "1", "--guidance-rescale", "0.7")
    assert np.array_equal(drawn("free", "--eta", "0"), drawn("free", "--eta", "0", *off))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["free", "--guidance", "much"], "--guidance: 'much' must be a finite number"),
        (["free", "--guidance", "1" + 400 * "0"], "must be a finite number"),
        (["free", "--guidance", "nan"], "--guidance: 'nan' must be a finite number"),
        (["free", "--guidance-interval", "9,3"], "'9,3' must be two timesteps, the lower one first"),
        (["free", "--guidance-rescale", "2"], "--guidance-rescale: '2' must be a number from 0 to 1"),
        (["plain", "--guidance", "2"], "--guidance 2 must be 1: this network was trained without classes"),
        (["plain", "--classifier-max-norm", "0"], "--classifier-max-norm: '0' must be above 0"),
        (["plain", "--classifier-scale", "2"], "--classifier-scale 2.0 needs a classifier: pass one with --classifier"),
        (["plain", "--classifier", "nowhere"], "--classifier: there is no checkpoint folder at 'nowhere'"),
        (["plain", "--classifier", "free"], "--classifier free contains a diffusion model"),
        (["plain", "--classifier", "linear"], "--classifier linear: .*another noise schedule"),
        (
            ["plain", "--classifier", "alone", "--class", "sevn"],
            "--class sevn .*did you mean 'seven'",
        ),
        (["free", "--class", "9"], "--class 9 must be from 0 to 2, the network's classes"),
        (["free", "--classifier", "alone", "--classifier-gradient", "mean", "--eta", "0"], "pass --eta none"),
        (
            ["plain", "--classifier", "alone", "--classifier-gradient", "mean"],
            "mean needs Algorithm 2 without --corrector-steps: pass --eta none",
        ),
        (
            ["plain", "--classifier-gradient", "mean", "--eta", "none", "--corrector-steps", "1"],
            "without --corrector-steps",
        ),
        (["free", "--guidance-rescale", "0.7"], "--guidance-rescale 0.7 needs classifier-free guidance"),
        (
            ["plain", "--classifier", "alone", "--guidance-rescale", "0.7"],
            "needs classifier-free guidance, which .* leave it",
        ),
        (["free", "--guidance-interval", "0,9"], "0,9 needs guidance: pass --guidance .*, or pass --classifier"),
        (["plain", "--guidance-schedule", "linear"], "--guidance-schedule linear needs guidance: pass --classifier"),
        (["vae", "--guidance", "2"], "--guidance 2.0 is only for diffusion models, and .* contains a VAE"),
    ],
)
def test_a_mistake_is_one_sentence(words, message, folder, capsys):
    if words[0] == "vae":
        torch.manual_seed(0)
        HFVAEPipeline(HFVAE(sample_size=8, in_channels=1, latent_channels=2)).save_pretrained("vae")
    with pytest.raises(SystemExit) as raised:
        main(["sample", *words, "-n", "1", "--device", "cpu", "--out", "x.png"])
    said = f"{raised.value} {capsys.readouterr().err}"
    assert re.search(message, said) and "Traceback" not in said
    assert not (folder / "x.png").exists()
