"""Sampling: against diffusers' pipelines, invariances of seeds and batches, every stock scheduler, and bad calls."""

import diffusers
import numpy as np
import pytest
import torch

from hf_ddpm import HFDDPMPipeline, HFDDPMScheduler

STOCK_SCHEDULERS = [
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
]


def images(pipeline, batch_size=2, seed=0, output_type="pt", **kwargs):
    kwargs.setdefault("generator", torch.Generator().manual_seed(seed))
    kwargs.setdefault("num_inference_steps", 5)
    return pipeline(batch_size, output_type=output_type, **kwargs).images


@pytest.fixture
def gaussian_pipeline(make_gaussian_pipeline):
    """A pipeline whose network knows the truth for data N(0.3, 0.2^2): every solver must find the data."""
    return make_gaussian_pipeline(0.3, 0.2, timestep_spacing="trailing", beta_schedule="scaled_linear")


def test_ddpm_pipeline_draws_the_same(make_pipeline):
    pipeline = make_pipeline()
    stock = diffusers.DDPMPipeline(pipeline.unet, diffusers.DDPMScheduler())
    stock.set_progress_bar_config(disable=True)
    ours, theirs = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    for _ in range(2):  # the second batch too: the generator has been drawn from equally often
        one = stock(2, generator=theirs, num_inference_steps=20, output_type="np").images
        assert np.abs(images(pipeline, generator=ours, num_inference_steps=20, output_type="np") - one).max() < 1e-4


def test_our_scheduler_drops_into_stock_pipelines(make_pipeline):
    pipeline = make_pipeline()
    for stock in (diffusers.DDPMPipeline, diffusers.DDIMPipeline):
        dropped = stock(pipeline.unet, pipeline.scheduler)
        dropped.set_progress_bar_config(disable=True)
        out = dropped(2, generator=torch.Generator().manual_seed(0), num_inference_steps=5, output_type="np").images
        assert out.shape == (2, 8, 8, 1)
    assert np.allclose(
        diffusers.DDPMPipeline(pipeline.unet, HFDDPMScheduler())(
            2, generator=torch.Generator().manual_seed(0), num_inference_steps=5, output_type="np"
        ).images,
        images(pipeline, output_type="np"),
        atol=1e-6,
    )


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # numpy on the sigmas of diffusers' solvers
@pytest.mark.parametrize("name", STOCK_SCHEDULERS)
def test_every_solver_finds_gaussian_data(name, gaussian_pipeline):
    pipeline = gaussian_pipeline
    pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config)
    out = images(pipeline, 64, num_inference_steps=100) * 2 - 1
    assert out.mean().item() == pytest.approx(0.3, abs=0.02)
    assert out.std().item() == pytest.approx(0.2, rel=0.1)


@pytest.mark.parametrize("eta", [None, 0.0, 1.0])
def test_our_own_sampler_finds_gaussian_data(eta, gaussian_pipeline):
    out = images(gaussian_pipeline, 64, num_inference_steps=200, eta=eta) * 2 - 1
    assert out.mean().item() == pytest.approx(0.3, abs=0.02)
    assert out.std().item() == pytest.approx(0.2, rel=0.1)


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.DDIMScheduler(),
        diffusers.DDPMScheduler(),
        diffusers.DDPMScheduler(variance_type="fixed_large"),
        diffusers.DDPMParallelScheduler(),
        diffusers.DPMSolverMultistepScheduler(variance_type="learned_range"),
        diffusers.EulerDiscreteScheduler(),
        diffusers.UniPCMultistepScheduler(),
    ],
    ids=lambda scheduler: f"{type(scheduler).__name__} {scheduler.config.get('variance_type')}",
)
def test_solvers_without_variances_see_the_prediction_of_a_2c_network(scheduler, make_pipeline):
    """The images are those of a network that ends in the first C of the 2C channels."""
    both, first = make_pipeline(out_channels=2), make_pipeline()
    cut = both.unet.state_dict()
    cut |= {name: cut[name][:1] for name in ("conv_out.weight", "conv_out.bias")}
    first.unet.load_state_dict(cut)
    both.scheduler = first.scheduler = scheduler
    assert torch.equal(images(both), images(first))


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_solvers_with_variances_see_2c(variance, make_pipeline):
    pipeline = make_pipeline(out_channels=2)
    pipeline.scheduler = diffusers.DDPMScheduler(variance_type=variance)
    expected = images(pipeline)
    pipeline.scheduler = diffusers.DDPMParallelScheduler(variance_type=variance)
    assert torch.equal(images(pipeline), expected)
    pipeline.scheduler = diffusers.DDPMScheduler()
    assert not torch.allclose(images(pipeline), expected)


def test_image_i_is_fixed_by_its_generator_whatever_the_batch(make_pipeline):
    pipeline = make_pipeline()
    generators = [torch.Generator().manual_seed(i) for i in range(4)]
    together = images(pipeline, 4, generator=generators)
    alone = images(pipeline, 1, generator=[torch.Generator().manual_seed(2)])
    assert torch.allclose(together[2:3], alone, atol=1e-3)


def test_steps_default_to_training(make_pipeline):
    seen = []
    pipeline = make_pipeline({"num_train_timesteps": 12})
    images(pipeline, num_inference_steps=None, callback_on_step_end=lambda p, i, t, k: seen.append(int(t)))
    assert seen == list(range(11, -1, -1))


def test_custom_timesteps(make_pipeline):
    seen = []
    images(
        make_pipeline(),
        num_inference_steps=None,
        timesteps=[900, 30, 2],
        callback_on_step_end=lambda p, i, t, k: seen.append((i, int(t))),
    )
    assert seen == [(0, 900), (1, 30), (2, 2)]


def test_the_callback_may_replace_the_latents(make_pipeline):
    def black(pipeline, i, t, tensors):
        return {"latents": torch.full_like(tensors["latents"], -1.0)}

    assert (images(make_pipeline(), callback_on_step_end=black) == 0).all()


def test_latents_stand_for_the_draw(make_pipeline):
    pipeline = make_pipeline()
    x_T = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    drawn = images(pipeline, eta=0.0)
    assert torch.equal(images(pipeline, latents=x_T, eta=0.0), drawn)


def test_initial_noise_is_scaled_for_sigma_solvers(make_pipeline):
    pipeline = make_pipeline()
    pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    seen = []
    original = pipeline.scheduler.scale_model_input

    def watch(sample, t):
        seen.append(sample.std().item())
        return original(sample, t)

    pipeline.scheduler.scale_model_input = watch
    images(pipeline, 16)
    assert seen[0] == pytest.approx(float(pipeline.scheduler.init_noise_sigma), rel=0.1)
    assert seen[0] > 2


def test_output_types_agree(make_pipeline):
    pipeline = make_pipeline()
    pt, array, pil = (images(pipeline, output_type=kind) for kind in ("pt", "np", "pil"))
    assert np.array_equal(pt.permute(0, 2, 3, 1).numpy(), array)
    assert pil[0].mode == "L"
    assert np.array_equal(np.asarray(pil[1]), (array[1, ..., 0] * 255).round().astype(np.uint8))
    assert torch.equal(
        pipeline(2, 5, generator=torch.Generator().manual_seed(0), output_type="pt", return_dict=False)[0], pt
    )


def test_colour_and_non_square_images(make_pipeline):
    pipeline = make_pipeline(in_channels=3, out_channels=3, sample_size=(8, 16))
    assert images(pipeline, output_type="pil")[0].size == (16, 8)


def test_class_labels_reach_the_network(make_pipeline):
    pipeline = make_pipeline(num_class_embeds=4)
    zero, one, mixed = (images(pipeline, class_labels=c) for c in (0, 1, [0, 1]))
    assert torch.allclose(zero[0], mixed[0], atol=1e-5)
    assert torch.allclose(one[1], mixed[1], atol=1e-5)
    assert not torch.allclose(zero, one, atol=1e-3)


def test_half_precision_pipeline(make_pipeline):
    pipeline = make_pipeline().to(torch.bfloat16)
    out = images(pipeline, num_inference_steps=3)
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps=0 must be a whole number from 1 to 1000"),
        ({"num_inference_steps": 1001}, "1001 must be a whole number from 1 to 1000"),
        ({"num_inference_steps": 5, "timesteps": [1]}, "timesteps cannot be combined with num_inference_steps"),
        ({"eta": -0.1}, "eta=-0.1 must lie in"),
        ({"eta": "0"}, "eta='0' must lie in"),
        ({"batch_size": 0}, "batch_size=0 must be a whole number of at least 1"),
        ({"batch_size": 2.0}, "batch_size=2.0 must be a whole number"),
        ({"num_inference_steps": "3"}, "num_inference_steps='3' must be a whole number"),
        ({"corrector_steps": 1.5}, "corrector_steps=1.5 must be a whole number"),
        ({"corrector_steps": 1, "corrector_snr": 0}, "^corrector_snr=0 must be positive"),
        ({"generator": 42}, "generator=42 must be a torch.Generator or a list of them"),
        ({"generator": [1, 2]}, "must be a torch.Generator or a list of them"),
        ({"latents": np.zeros((2, 1, 8, 8))}, "latents of type ndarray must be a tensor"),
        ({"generator": [torch.Generator()]}, r"list of 1 generator\(s\) does not fit batch_size=2"),
        ({"output_type": "jpeg"}, "'pil', 'np', 'pt'"),
        ({"class_labels": 1}, "without classes"),
        ({"latents": torch.zeros(1, 3, 8, 8)}, r"must have shape \(2, 1, 8, 8\)"),
    ],
)
def test_bad_calls_are_one_sentence(call, sentence, make_pipeline):
    with pytest.raises(ValueError, match=sentence):
        make_pipeline()(**({"batch_size": 2, "num_inference_steps": 3 if "timesteps" not in call else None} | call))


def test_a_network_of_any_size_takes_sizes_that_it_can_halve(make_pipeline):
    pipeline = make_pipeline(sample_size=None)
    unit = 2 ** (len(pipeline.unet.config.block_out_channels) - 1)
    fits = torch.zeros(1, 1, 3 * unit, unit)
    assert pipeline(1, 2, latents=fits, output_type="pt").images.shape == fits.shape
    odd = torch.zeros(1, 1, 3 * unit + 1, unit)
    with pytest.raises(ValueError, match=f"latents of size .* do not fit .*: use sides that are multiples of {unit}"):
        pipeline(1, 2, latents=odd)
    with pytest.raises(ValueError, match=f"images of size .* do not fit .* multiples of {unit}"):
        pipeline.invert(odd, 2)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (None, "4 classes: pass class_labels"),
        (4, r"within 0\.\.3"),
        ([0, 1, 2], "do not fit batch_size=2"),
        (1.5, "class_labels=1.5 must be whole numbers"),
        (True, "class_labels=True must be whole numbers"),
        ("3", "class_labels='3' must be whole numbers"),
    ],
)
def test_bad_labels(labels, sentence, make_pipeline):
    with pytest.raises(ValueError, match=sentence):
        images(make_pipeline(num_class_embeds=4), class_labels=labels)


@pytest.mark.parametrize("variance_type", ["learned", "learned_range"])
def test_a_network_without_the_variances_that_the_scheduler_reads_is_refused(variance_type, make_pipeline):
    with pytest.raises(ValueError, match="requires 2 output channels, but the network has 1: use the one that it was"):
        make_pipeline({"variance_type": variance_type})


def test_dpm_solver_would_cut_four_channels_with_variances_to_three(make_pipeline):
    pipeline = make_pipeline({"variance_type": "learned_range"}, in_channels=4, out_channels=8)
    config = pipeline.scheduler.config
    pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(config)
    with pytest.raises(ValueError, match="keeps 3 of 4 channels"):
        images(pipeline)
    pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(config, variance_type=None)
    assert images(pipeline).shape == (2, 4, 8, 8)


def test_a_network_in_training_samples_without_dropout_and_goes_on_training(make_pipeline):
    pipeline = make_pipeline(dropout=0.5)
    x_0 = torch.zeros(2, 1, 8, 8)
    still = images(pipeline, eta=0.0), pipeline.invert(x_0, 3)
    pipeline.unet.train()
    frozen = pipeline.unet.mid_block.eval()
    assert torch.equal(images(pipeline, eta=0.0), still[0])
    assert torch.equal(pipeline.invert(x_0, 3), still[1])
    assert pipeline.unet.training
    assert pipeline.unet.conv_in.training
    assert not frozen.training


def test_eta_for_a_solver_without_it_is_refused(make_pipeline):
    pipeline = make_pipeline()
    pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    with pytest.raises(ValueError, match=r"eta=0\.5 is not supported by DPMSolverMultistepScheduler"):
        images(pipeline, eta=0.5)


def test_stock_schedulers_become_ours_in_the_constructor(make_pipeline):
    unet = make_pipeline().unet
    for stock in (
        diffusers.DDPMScheduler(variance_type="fixed_large"),
        diffusers.DDIMScheduler(beta_schedule="scaled_linear"),
    ):
        pipeline = HFDDPMPipeline(unet, stock)
        assert type(pipeline.scheduler) is HFDDPMScheduler
        assert torch.allclose(pipeline.scheduler.alphas_cumprod, stock.alphas_cumprod.double(), atol=1e-5)


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # numpy on the sigmas of diffusers' solvers
@pytest.mark.parametrize("num_steps", [10, 20])
@pytest.mark.parametrize(
    "name",
    ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "HeunDiscreteScheduler", "EulerDiscreteScheduler"],
)
def test_solvers_of_few_steps_map_noise_onto_gaussian_data(name, num_steps, gaussian_pipeline):
    """The ODE's solution is x_0 = 0.3 + 0.2 x_T; solvers are there to undercut DDIM's error."""
    x_T = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    exact = 0.3 + 0.2 * x_T

    def error() -> float:
        out = images(gaussian_pipeline, 16, latents=x_T, num_inference_steps=num_steps, **eta) * 2 - 1
        return (out - exact).abs().mean().item()

    eta = {"eta": 0.0}
    ddim = error()
    gaussian_pipeline.scheduler = getattr(diffusers, name).from_config(gaussian_pipeline.scheduler.config)
    eta = {}
    assert error() < (1.2 if name.startswith("Euler") else 0.9) * ddim < 0.06  # Euler in sigma is DDIM
