"""A pipeline that is guided: by an exact classifier of a mixture of Gaussians, without one, and what it refuses."""

import math

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from hf_ddpm import HFDDPMPipeline, HFDDPMScheduler, unet_preset
from hf_ddpm.models import NoisyClassifier
from hf_ddpm.pipelines import HFClassifierPipeline

MEANS, WEIGHTS, WIDTH = torch.tensor([-0.5, 0.1, 0.8]), torch.tensor([0.2, 0.5, 0.3]), 0.3
SCHEDULE = {"num_train_timesteps": 100, "beta_schedule": "cosine"}


def at_level(x, t, scheduler):
    """For each component sqrt(alpha_bar) m_k - x, and the variance at the level t."""
    abar = scheduler.alphas_cumprod[int(t)].to(x.dtype)
    return abar.sqrt() * MEANS.to(x.dtype).view(-1, 1, 1, 1, 1) - x, abar * WIDTH**2 + 1 - abar


def logits(x, t, scheduler):
    """log w_k + log p(x_t | k) but for a constant, (B, K)."""
    away, variance = at_level(x, t, scheduler)
    return (WEIGHTS.to(x.dtype).log().view(-1, 1) - away.square().flatten(2).sum(2) / (2 * variance)).T


def exact_unet(scheduler, **classes):
    """eps of the mixture, or of a component for its label; 3 stands for no label."""
    network = unet_preset("tiny", sample_size=8, **classes).eval()

    class Exact(type(network)):
        def forward(self, x, t, class_labels=None):
            away, variance = at_level(x, t, scheduler)
            shares = logits(x, t, scheduler).softmax(dim=1)  # (B, K)
            if class_labels is not None:
                one = torch.nn.functional.one_hot(class_labels, 4)[:, :3].to(x.dtype)
                shares = torch.where((class_labels == 3).unsqueeze(1), shares, one)
            score = (shares.T.view(3, -1, 1, 1, 1) * away).sum(0) / variance
            abar = scheduler.alphas_cumprod[int(t)].to(x.dtype)
            eps = -(1 - abar).sqrt() * score
            v = (eps - (1 - abar).sqrt() * x) / abar.sqrt()
            return type("Output", (), {"sample": {"epsilon": eps, "v_prediction": v}[self.predicts]})

    network.__class__, network.predicts = Exact, "epsilon"
    return network


def exact_classifier(scheduler):
    network = NoisyClassifier(
        8, 1, 3, (8, 8), down_block_types=("ResnetDownsampleBlock2D",) * 2, attention_head_dim=8,
        noise_schedule=SCHEDULE, id2label={0: "dark", 1: "grey", 2: "bright"},
    ).eval()  # fmt: skip

    class Exact(type(network)):
        def forward(self, sample, timestep, return_dict=True):
            return type("Output", (), {"logits": logits(sample, timestep, scheduler)})

    network.__class__ = Exact
    return network


@pytest.fixture(scope="module")
def mixture():
    """A pipeline without classes and its classifier, and one with classes and a null class; both exact."""
    scheduler = HFDDPMScheduler(**SCHEDULE, clip_sample=False, timestep_spacing="trailing")
    guided = HFDDPMPipeline(exact_unet(scheduler), scheduler, classifier=exact_classifier(scheduler))
    names = {0: "dark", 1: "grey", 2: "bright"}
    own = HFDDPMPipeline(exact_unet(scheduler, num_class_embeds=4), scheduler, null_class=3, id2label=names)
    for pipeline in (guided, own):
        pipeline.set_progress_bar_config(disable=True)
    return guided, own


def noise(count=4):
    return torch.randn((count, 1, 8, 8), generator=torch.Generator().manual_seed(3))


LABELS = [0, 1, 2, 2]
CALL = {"num_inference_steps": 20, "output_type": "pt", "class_labels": LABELS}


def test_bayes_rule_holds_for_scores(mixture):
    """grad log p(x_t) + grad log p(y | x_t) = grad log p(x_t | y), at every level."""
    guided, own = mixture
    for t in (2, 40, 90):
        found = guided.score(noise(), t, LABELS)
        torch.testing.assert_close(found, own.score(noise(), t, LABELS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_classifier_and_the_difference_of_two_predictions_guide_alike(mixture, scale):
    """With exact networks s of the one is s of the other: the same walk, image for image."""
    guided, own = mixture
    call = {**CALL, "latents": noise(), "eta": 0.0}
    one = guided(4, **call, classifier_scale=scale).images
    two = own(4, **call, guidance_scale=scale).images
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)
    assert (own(4, **call).images - two).abs().max() > 0.01 or scale == 1


@pytest.mark.parametrize(
    "solver", [UniPCMultistepScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, DDIMScheduler]
)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_other_solvers_walk_as_if_the_network_had_the_classes(mixture, solver, prediction_type):
    guided, own = mixture
    kept = guided.scheduler
    try:
        outputs = []
        for pipeline, scales in ((guided, {"classifier_scale": 1.0}), (own, {})):
            pipeline.scheduler = solver.from_config(kept.config, prediction_type=prediction_type)
            pipeline.unet.predicts = prediction_type
            outputs.append(pipeline(4, **CALL, latents=noise(), **scales).images)
    finally:
        guided.scheduler = own.scheduler = kept
        guided.unet.predicts = own.unet.predicts = "epsilon"
    torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-3)


def test_algorithm_1_moves_the_mean_by_the_variance_times_the_gradient(mixture):
    """At x_t the classifier's gradient at x_t, at the mean that of the mean's own level; nothing in the last step."""
    guided, _ = mixture
    scheduler = guided.scheduler
    seen = {}
    for where in ("x_t", "mean"):
        steps = []
        guided(
            4, num_inference_steps=20, class_labels=LABELS, latents=noise(), classifier_gradient=where,
            classifier_scale=2.0, generator=torch.Generator().manual_seed(1), output_type="pt",
            callback_on_step_end=lambda _p, _i, t, at, steps=steps: steps.append((int(t), at["latents"])),
        )  # fmt: skip
        seen[where] = steps
    scheduler.set_timesteps(20)
    t, before = int(scheduler.timesteps[0]), int(scheduler.timesteps[1])
    drawn = torch.randn((4, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    output = guided.unet(noise(), t).sample
    still = scheduler.step(output, t, noise(), variance_noise=0 * drawn).prev_sample
    plain = scheduler.step(output, t, noise(), variance_noise=drawn).prev_sample
    std = (plain - still).std() / drawn.std()
    for where, (at, level) in {"x_t": (noise(), t), "mean": (still, before)}.items():
        away, variance = at_level(at, level, scheduler)
        shares = logits(at, level, scheduler).softmax(1).T.view(3, -1, 1, 1, 1)
        grad = (away[LABELS, range(4)] - (shares * away).sum(0)) / variance
        torch.testing.assert_close(seen[where][0][1] - plain, 2 * std**2 * grad, rtol=1e-2, atol=1e-4)


def test_no_scale_is_no_guidance_and_a_scale_of_its_own_is_1(mixture):
    guided, own = mixture
    call = {"num_inference_steps": 5, "output_type": "pt", "latents": noise(), "eta": 0.0}
    plain = guided(4, **call).images
    assert torch.equal(plain, guided(4, **call, class_labels=LABELS, classifier_scale=0.0).images)
    default = guided(4, **call, class_labels=["dark", "grey", "bright", "bright"]).images
    assert torch.equal(default, guided(4, **call, class_labels=LABELS, classifier_scale=1.0).images)
    assert not torch.equal(plain, default)
    assert torch.equal(
        own(4, **call, class_labels=LABELS).images, own(4, **call, class_labels=LABELS, guidance_scale=1).images
    )
    without = own(4, **call, class_labels=LABELS, guidance_scale=0.0).images
    torch.testing.assert_close(without, plain)


def test_outside_of_the_interval_nobody_is_asked_twice(mixture):
    _, own = mixture
    sizes = []
    hook = own.unet.register_forward_pre_hook(lambda _n, given: sizes.append(len(given[0])))
    own(4, num_inference_steps=4, class_labels=LABELS, guidance_scale=2.0, guidance_interval=(0, 60), eta=0.0)
    hook.remove()
    assert sizes == [4, 4, 8, 8]  # t = 99, 74, 49, 24


def test_guidance_goes_into_inversion_and_back_and_into_every_edit(mixture):
    guided, own = mixture
    generator = torch.Generator().manual_seed(0)
    x_0 = (MEANS[LABELS].view(-1, 1, 1, 1) + WIDTH * torch.randn((4, 1, 8, 8), generator=generator)).clamp(-1, 1)
    for pipeline, scale in ((guided, {"classifier_scale": 1.5}), (own, {"guidance_scale": 1.5})):
        found = pipeline.reconstruct(x_0, 100, class_labels=LABELS, clip=False, output_type="pt", **scale).images
        assert (2 * found - 1 - x_0).square().mean().sqrt() < 0.1
        ends = [pipeline.invert(x_0, 20, class_labels=LABELS, **given) for given in (scale, {"guidance_scale": 1.0})]
        assert (ends[0] - ends[1]).abs().max() > 0.01
        one = {"class_labels": LABELS, "generator": generator, "output_type": "pt", "num_inference_steps": 5, **scale}
        for made in (pipeline.vary(x_0, 60, **one), pipeline.inpaint(x_0, torch.ones(1), **one, num_resamples=2)):
            assert torch.isfinite(made.images).all()


def test_a_walk_is_guided_in_inference_mode(mixture):
    guided, _ = mixture
    call = {**CALL, "latents": noise(), "eta": 0.0}
    with torch.inference_mode():
        found = guided(4, **call).images
    torch.testing.assert_close(found.clone(), guided(4, **call).images)


def tiny(**more):
    """A classifier with weights of its own."""
    torch.manual_seed(0)
    config = {"noise_schedule": SCHEDULE, **more}
    size, channels, classes = (config.pop(key, value) for key, value in (("size", 8), ("channels", 1), ("classes", 3)))
    return NoisyClassifier(
        size,
        channels,
        classes,
        (8, 8),
        down_block_types=("ResnetDownsampleBlock2D",) * 2,
        attention_head_dim=8,
        **config,
    )


@pytest.mark.parametrize(
    ("classifier", "message"),
    [
        ({"size": 16}, r"the classifier has the sample size \(16, 16\), but the network has \(8, 8\)"),
        ({"channels": 3}, "the classifier has in_channels=3, but the network has 1"),
        ({"classes": 5}, "the classifier has 5 classes, but the network has 3"),
        ({"noise_schedule": {**SCHEDULE, "beta_schedule": "linear"}}, "was trained with another noise schedule"),
        ({"noise_schedule": {**SCHEDULE, "num_train_timesteps": 1000}}, "was trained with another noise schedule"),
        ({"noise_schedule": None}, "does not contain the noise schedule of its training"),
        (
            {"latents": {"class": "HFVAE", "scaling_factor": 1.0}},
            "trained on latents, but the network generates pixels",
        ),
        (
            {"id2label": {0: "dark", 1: "bright", 2: "grey"}},
            "class 1 is 'bright' for the classifier, but 'grey' for the network",
        ),
    ],
)
def test_a_classifier_of_something_else_is_refused(mixture, classifier, message):
    _, own = mixture
    parts = {"scheduler": own.scheduler, "null_class": 3, "id2label": own.config.id2label}
    with pytest.raises(ValueError, match=message):
        HFDDPMPipeline(own.unet, **parts, classifier=tiny(**classifier))
    own.register_modules(classifier=tiny(**classifier))  # assigned afterwards
    try:
        with pytest.raises(ValueError, match=message):
            own(4, **CALL)
    finally:
        own.register_modules(classifier=None)


@pytest.mark.parametrize(
    ("of", "call", "message"),
    [
        ("guided", {"guidance_scale": 2.0}, "guidance_scale=2.0 must be 1: this network was trained without classes"),
        ("guided", {"class_labels": None, "classifier_scale": 1.0}, "trained with 3 classes: pass class_labels"),
        ("guided", {"class_labels": "brigth"}, "is not the name of a class; did you mean 'bright'"),
        ("guided", {"class_labels": 3}, r"class_labels 3..3 must lie within 0..2"),
        ("guided", {"classifier_scale": "high"}, "classifier_scale='high' must be a finite number"),
        ("guided", {"classifier_gradient": "mean", "eta": 0.0}, "classifier_gradient='mean' requires Algorithm 2"),
        ("guided", {"class_labels": {1: 2}}, "must be whole numbers"),
        ("guided", {"class_labels": -1}, r"class_labels -1..-1 must lie within 0..2"),
        ("own", {"classifier_scale": 1.0}, "classifier_scale=1.0 requires a classifier"),
    ],
)
def test_guidance_that_the_networks_do_not_have_is_refused(mixture, of, call, message):
    pipeline = mixture[0] if of == "guided" else mixture[1]
    with pytest.raises(ValueError, match=message):
        pipeline(4, **CALL | call)


def test_a_network_of_one_class_more_than_its_classifier_may_lack_the_one_for_no_label(mixture):
    _, own = mixture
    message = "has 3 classes, but the network has 4: .*or pass null_class=3 if the network's last class stands for \"no"
    with pytest.raises(ValueError, match=message):
        HFDDPMPipeline(own.unet, own.scheduler, classifier=tiny())


def test_a_label_that_only_the_network_knows_is_refused_where_the_classifier_guides(mixture):
    unet = unet_preset("tiny", sample_size=8, class_embed_type="timestep")  # which counts no classes
    pipeline = HFDDPMPipeline(unet, mixture[0].scheduler, classifier=tiny())
    pipeline.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 2, "class_labels": [0, 7], "output_type": "pt"}
    with pytest.raises(ValueError, match=r"class_labels 0\.\.7 must lie within 0\.\.2, the classifier's classes"):
        pipeline(2, **call)
    assert pipeline(2, **call, classifier_scale=0).images.shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("classifier", "message"),
    [
        ("folder", "classifier of type str must be a NoisyClassifier"),
        (torch.nn.Linear(2, 2), "classifier of type Linear must be a NoisyClassifier"),
        (unet_preset("tiny"), "classifier of type UNet2DModel must be a NoisyClassifier"),
    ],
    ids=["word", "layer", "unet"],
)
def test_what_is_no_classifier_is_refused(mixture, classifier, message):
    with pytest.raises(ValueError, match=message):
        HFDDPMPipeline(mixture[0].unet, mixture[0].scheduler, classifier=classifier)
    with pytest.raises(ValueError, match="a pipeline: pass the network in it, its"):
        HFDDPMPipeline(mixture[0].unet, mixture[0].scheduler, classifier=HFClassifierPipeline(tiny()))


def test_labels_of_any_whole_type_and_of_numpy_are_labels(mixture):
    guided, own = mixture
    call = {"num_inference_steps": 3, "eta": 0.0, "latents": noise(), "output_type": "pt"}
    for pipeline in (guided, own):
        wanted = pipeline(4, **call, class_labels=LABELS).images
        for labels in (np.array(LABELS, np.uint8), torch.tensor(LABELS, dtype=torch.int16), np.array(LABELS)):
            assert torch.equal(pipeline(4, **call, class_labels=labels).images, wanted)
        names = np.array(["dark", "grey", "bright", "bright"])
        assert torch.equal(pipeline(4, **call, class_labels=names).images, wanted)


def test_a_schedule_that_ends_in_pure_noise_is_guided_from_the_next_step_on():
    """By its own scheduler and by a solver that keeps a small alpha_bar there."""
    schedule = {"num_train_timesteps": 20, "rescale_betas_zero_snr": True}
    config = {**schedule, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    scheduler = HFDDPMScheduler(**config)
    pipeline = HFDDPMPipeline(unet_preset("tiny"), scheduler, classifier=tiny(noise_schedule=schedule))
    for solver in (scheduler, UniPCMultistepScheduler.from_config(scheduler.config)):
        pipeline.scheduler = solver
        ask = pipeline._guided([0, 1, 2, 2], 4, classifier_scale=5.0)
        with torch.no_grad():
            assert ask(noise(), 19, 19).keys() == {"model_output"}
            assert torch.equal(ask(noise(), 19, 19)["model_output"], pipeline.unet(noise(), 19).sample)


def test_clip_after_guidance_counts_for_other_solvers_too(mixture):
    guided, _ = mixture
    kept, outputs = guided.scheduler, []
    for clip in (True, False):
        config = {**kept.config, "clip_sample": True, "clip_after_guidance": clip}
        guided.scheduler = UniPCMultistepScheduler.from_config(HFDDPMScheduler.from_config(config).config)
        try:
            with torch.no_grad():
                outputs.append(guided._guided(LABELS, 4, classifier_scale=50.0)(noise(), 90, 90)["model_output"])
        finally:
            guided.scheduler = kept
    assert (outputs[0] - outputs[1]).abs().max() > 0.1


def test_classes_without_one_for_no_label_cannot_be_guided_without_a_classifier(mixture):
    _, own = mixture
    pipeline = HFDDPMPipeline(unet_preset("tiny", num_class_embeds=3), own.scheduler)
    with pytest.raises(ValueError, match='trained without the class "no label"; train one with --label_dropout'):
        pipeline(4, **CALL, guidance_scale=1.5)


def test_a_solver_without_alpha_bar_is_refused(mixture):
    guided, _ = mixture
    kept = guided.scheduler
    guided.scheduler = EDMEulerScheduler()
    try:
        with pytest.raises(ValueError, match="EDMEulerScheduler has no alphas_cumprod"):
            guided(4, num_inference_steps=3, class_labels=LABELS)
    finally:
        guided.scheduler = kept


def test_a_classifier_that_has_diverged_is_said(mixture):
    guided, _ = mixture
    classifier = tiny()
    torch.nn.init.constant_(classifier.conv_in.weight, math.nan)
    pipeline = HFDDPMPipeline(guided.unet, guided.scheduler, classifier=classifier)
    with pytest.raises(ValueError, match="the gradient of the classifier is not finite"):
        pipeline(4, **CALL)


def test_a_learned_variance_stays_with_classifier_free_guidance_and_with_shifted_outputs(mixture):
    """The variance is that of the class; with both halves equal, guidance changes nothing."""
    torch.manual_seed(0)
    unet = unet_preset("tiny", num_class_embeds=4, out_channels=2)
    for weight in unet.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    scheduler = HFDDPMScheduler(**SCHEDULE, variance_type="learned_range")
    pipeline = HFDDPMPipeline(unet, scheduler, null_class=3, classifier=tiny())
    ask = pipeline._guided([0, 1, 2, 2], 4, guidance_scale=2.0, classifier_scale=1.0)
    with torch.no_grad():
        found = ask(noise(), 50, 50)
        plain = unet(noise(), 50, class_labels=torch.tensor(LABELS)).sample
    assert torch.equal(found["model_output"][:, 1:], plain[:, 1:])
    assert not torch.equal(found["model_output"][:, :1], plain[:, :1]) and found["score"].shape == (4, 1, 8, 8)
    pipeline.scheduler = DDPMScheduler.from_config(scheduler.config)
    with torch.no_grad():
        shifted = pipeline._guided([0, 1, 2, 2], 4, guidance_scale=2.0, classifier_scale=1.0)(noise(), 50, 50)
    assert shifted.keys() == {"model_output"} and torch.equal(shifted["model_output"][:, 1:], plain[:, 1:])
