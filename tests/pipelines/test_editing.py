"""Inversion, variation, interpolation and inpainting on exact Gaussian denoisers and a tiny random network."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from hf_ddpm.pipelines import slerp
from hf_ddpm.pipelines.editing import repaint_path

M, S = 0.3, 0.2


@pytest.fixture
def gaussian(make_gaussian_pipeline):
    """A pipeline whose network knows the truth for data of independent pixels N(M, S^2)."""

    def make(**scheduler):
        return make_gaussian_pipeline(M, S, **{"beta_schedule": "cosine"} | scheduler)

    return make


def pictures(batch: int = 2, seed: int = 0) -> torch.Tensor:
    noise = torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return (M + S * noise).clamp(-1, 1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- inversion -----------------------------------------------------------------------------------------------------


def test_invert_finds_the_gaussian_code_of_gaussian_data(gaussian):
    """The flow of N(M, S^2) data is x_T = (x_0 - M) / S; a thousand Euler steps come close."""
    x_0 = pictures()
    x_T = gaussian(timestep_spacing="trailing").invert(x_0)
    assert (x_T - (x_0 - M) / S).abs().max() < 0.05


def test_reconstruction_error_falls_with_the_number_of_steps(gaussian):
    pipeline, x_0 = gaussian(), pictures()
    errors = []
    for num_steps in (10, 40, 160):
        back = pipeline.reconstruct(x_0, num_steps, output_type="pt").images * 2 - 1
        errors.append((back - x_0).square().mean().item())
    assert errors[0] > 4 * errors[1] > 16 * errors[2]
    assert errors[2] < 1e-3


@pytest.mark.parametrize("steps", [{"timestep_spacing": "quadratic"}, {"timestep_spacing": "trailing"}, {}])
def test_reconstruct_is_invert_and_ddim_on_the_same_list(steps, make_pipeline):
    pipeline, x_0 = make_pipeline(), pictures()
    x_T = pipeline.invert(x_0, 7, **steps)
    clipped, free = (
        pipeline.reconstruct(x_0, 7, output_type="pt", clip=clip, **steps).images for clip in (True, False)
    )
    assert torch.equal(clipped, pipeline(2, 7, latents=x_T, eta=0.0, output_type="pt", **steps).images)
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, clip_sample=False)
    assert torch.equal(free, pipeline(2, 7, latents=x_T, eta=0.0, output_type="pt", **steps).images)


def test_only_clipping_brings_back_images_from_where_a_wrong_epsilon_is_all_there_is(gaussian):
    """A network that is 1% wrong, cosine from T-1, where x_0 = (x - sigma eps) / 5e-5; see `reconstruct`."""
    pipeline, x_0 = gaussian(timestep_spacing="trailing", clip_sample=True), pictures()
    pipeline.unet.register_forward_hook(lambda module, inputs, output: setattr(output, "sample", 0.99 * output.sample))

    def error(clip: bool) -> float:
        return (pipeline.reconstruct(x_0, 100, output_type="pt", clip=clip).images * 2 - 1 - x_0).square().mean().item()

    assert error(clip=True) < 1e-3
    assert error(clip=False) > 10 * error(clip=True)


def test_a_reconstruction_that_fails_leaves_the_scheduler_as_it_was(make_pipeline):
    pipeline = make_pipeline()
    before = pipeline.scheduler
    with pytest.raises(ValueError, match="output_type='jpeg'"):
        pipeline.reconstruct(pictures(), 7, output_type="jpeg", clip=False)
    assert pipeline.scheduler is before
    with pytest.raises(ValueError, match=r"eta=1\.0 is not supported: reconstruct is deterministic"):
        pipeline.reconstruct(pictures(), 7, eta=1.0)


def test_inverting_asks_the_network_at_the_level_of_the_sample(make_pipeline):
    """S calls: the image itself at t = 0, then every level on the way but the last."""
    pipeline, seen = make_pipeline(), []
    pipeline.unet.register_forward_hook(lambda module, inputs, output: seen.append(int(inputs[1])))
    pipeline.invert(pictures(), timesteps=[900, 500, 20])
    assert seen == [0, 20, 500]


def test_inverting_with_classes_and_learned_variances(make_pipeline):
    pipeline = make_pipeline({"variance_type": "learned_range"}, num_class_embeds=3, out_channels=2)
    codes = [pipeline.invert(pictures(), 5, class_labels=label) for label in (0, 1)]
    assert not torch.allclose(*codes, atol=1e-3)
    out = pipeline.reconstruct(pictures(), 5, class_labels=1, output_type="pt").images
    assert out.shape == (2, 1, 8, 8)


# --- images as inputs ----------------------------------------------------------------------------------------------


def test_pil_images_bytes_and_floats_are_the_same_images(make_pipeline):
    pipeline = make_pipeline()
    pixels = torch.randint(256, (2, 1, 8, 8), generator=generator(), dtype=torch.uint8)
    pil = [Image.fromarray(p[0].numpy()) for p in pixels]
    expected = pipeline.invert(pixels.float() / 127.5 - 1, 3)
    assert torch.allclose(pipeline.invert(pixels, 3), expected, atol=1e-5)
    assert torch.allclose(pipeline.invert(pil, 3), expected, atol=1e-5)
    assert torch.allclose(pipeline.invert(pil[1], 3), expected[1:], atol=1e-5)


def test_what_a_pipeline_returns_is_an_image_for_it(make_pipeline):
    """One image, a list or a batch of each output type is read as the same x_0."""
    pipeline = make_pipeline()
    drawn = {
        output_type: pipeline(2, 3, generator=generator(), output_type=output_type).images
        for output_type in ("pil", "np", "pt")
    }
    expected = pipeline.invert(drawn["pt"] * 2 - 1, 3)
    assert (drawn["pt"] * 2 - 1).min() < 0
    for output_type, images in drawn.items():
        for given in (images, list(images)):
            assert torch.allclose(pipeline.invert(given, 3), expected, atol=1e-2 if output_type == "pil" else 1e-5)
        assert torch.allclose(pipeline.invert(images[1], 3), expected[1:], atol=1e-2 if output_type == "pil" else 1e-5)
    mixed = pipeline.interpolate(*drawn["pt"].split(1), [0.0, 1.0], 200, num_inference_steps=3, output_type="pt")
    assert pipeline.invert(mixed, 3).shape == (2, 1, 8, 8)


@pytest.mark.parametrize("darkest", [0.0, -1e-6])
def test_an_image_without_a_negative_value_is_in_0_1(darkest, make_pipeline):
    """So is one that resizing left a little below 0."""
    pipeline, pixels = make_pipeline(), torch.randint(150, 256, (1, 1, 8, 8), generator=generator(), dtype=torch.uint8)
    pixels[..., 0, 0] = 0
    images = pixels.float() / 255
    images[..., 0, 0] = darkest
    assert torch.allclose(pipeline.invert(images, 3), pipeline.invert(pixels, 3), atol=1e-4)


def test_colour_images_of_other_shapes(make_pipeline):
    pipeline = make_pipeline(in_channels=3, out_channels=3, sample_size=(8, 16))
    picture = Image.fromarray(np.arange(8 * 16 * 3, dtype=np.uint8).reshape(8, 16, 3))
    assert pipeline.invert(picture, 3).shape == (1, 3, 8, 16)


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (torch.zeros(1, 1, 9, 8), r"shape \(1, 1, 9, 8\) must have shape \(B, 1, 8, 8\)"),
        (torch.zeros(0, 1, 8, 8), r"shape \(0, 1, 8, 8\)"),
        (torch.zeros(1, 3, 8, 8), r"\(B, 1, 8, 8\)"),
        (torch.full((1, 1, 8, 8), 200.0), r"from 200 to 200 must lie in \[0, 1\] or in \[-1, 1\]: divide by 255"),
        (torch.full((1, 1, 8, 8), float("nan")), "the images have values that are not finite"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.int64), "dtype torch.int64 must be uint8"),
        (np.zeros((1, 8, 9, 1)), r"shape \(1, 1, 8, 9\) must have shape \(B, 1, 8, 8\)"),
        (np.full((1, 8, 8, 1), 255.0), r"from 255 to 255 must lie in \[0, 1\]"),
        (np.full((1, 8, 8, 1), "a"), "a NumPy array of shape .* and type <U1 must have shape"),
        ([torch.zeros(1, 8, 8), torch.zeros(1, 4, 4)], "have different sizes, types or devices"),
        ([torch.zeros(1, 8, 8), Image.new("L", (8, 8))], "type Tensor are not supported: pass only PIL images, only"),
        ([np.zeros((8, 8))], r"a NumPy array of shape \(8, 8\) and type float64 must have shape \(B, H, W, C\)"),
        ([], "type empty list are not supported"),
        (Image.new("I;16", (8, 8)), "mode I;16 does not fit a network with 1 channels: scale it to 8 bits"),
        (Image.new("RGBA", (8, 8)), r"mode RGBA .*: paste it on a background, then image.convert\('L'\)"),
        (Image.new("LAB", (8, 8)), "mode LAB .*: convert it to RGB with PIL.ImageCms"),
        (Image.new("La", (8, 8)), r"mode La .*: use image.convert\('LA'\), and paste it on a background"),
        ("cat.png", "type str are not supported"),
        (Image.new("RGB", (8, 8)), r"mode RGB does not fit a network with 1 channels: image.convert\('L'\)"),
        (Image.new("1", (8, 8), 1), "mode 1 does not fit"),
        (Image.new("P", (8, 8), 1), "mode P does not fit"),
        (Image.new("I;16", (8, 8), 500), "mode I;16 does not fit"),
        (Image.new("F", (8, 8), 0.5), "mode F does not fit"),
        (Image.new("L", (9, 9)), r"shape \(1, 1, 9, 9\)"),
        ([Image.new("L", (8, 8)), Image.new("L", (4, 4))], "the images have different sizes: resize them"),
    ],
)
def test_images_that_do_not_fit(images, sentence, make_pipeline):
    with pytest.raises(ValueError, match=sentence):
        make_pipeline().invert(images, 3)


# --- starting on the way -------------------------------------------------------------------------------------------


def test_start_timestep_begins_there_and_goes_on_with_the_list_below(make_pipeline):
    seen = []
    make_pipeline()(
        num_inference_steps=5,
        latents=torch.zeros(1, 1, 8, 8),
        start_timestep=450,
        callback_on_step_end=lambda p, i, t, k: seen.append(int(t)),
    )
    assert seen == [450, 400, 200, 0]


def test_varying_keeps_more_of_the_image_from_lower_levels(gaussian):
    x_0 = pictures(8)
    kept = []
    for t in (999, 600, 200, 20):
        out = gaussian().vary(x_0, t, generator=generator(), num_inference_steps=100, output_type="pt").images * 2 - 1
        kept.append(torch.corrcoef(torch.stack([out.flatten(), x_0.flatten()]))[0, 1].item())
    assert kept == sorted(kept)
    assert kept[0] < 0.1
    assert kept[-1] > 0.95


def test_varied_gaussian_data_are_gaussian_data(gaussian):
    x_0 = torch.full((64, 1, 8, 8), M) + S * torch.randn(64, 1, 8, 8, generator=generator())
    out = gaussian().vary(x_0.clamp(-1, 1), 500, generator=generator(1), output_type="pt").images * 2 - 1
    assert out.mean().item() == pytest.approx(M, abs=0.02)
    assert out.std().item() == pytest.approx(S, rel=0.05)


# --- interpolation -------------------------------------------------------------------------------------------------


def test_slerp_keeps_the_norm_and_its_ends():
    a, b = (torch.randn(3, 1, 16, 16, generator=generator(seed)) for seed in (0, 1))
    assert torch.allclose(slerp(a, b, 0.0), a, atol=1e-6)
    assert torch.allclose(slerp(a, b, 1.0), b, atol=1e-6)
    b *= (a.flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)
    for weight in (0.25, 0.5, 0.9):
        assert torch.allclose(slerp(a, b, weight).flatten(1).norm(dim=1), a.flatten(1).norm(dim=1), rtol=1e-5)
    assert ((a / 2 + b / 2).flatten(1).norm(dim=1) < 0.8 * a.flatten(1).norm(dim=1)).all()  # a straight mean does not


def test_slerp_is_each_images_own_and_survives_parallel_latents():
    a, b = (torch.randn(3, 1, 4, 4, generator=generator(seed)) for seed in (0, 1))
    assert torch.allclose(slerp(a, b, 0.3)[1:2], slerp(a[1:2], b[1:2], 0.3), atol=1e-6)
    assert torch.allclose(slerp(a, 2 * a, 0.5), 1.5 * a, atol=1e-5)


def test_slerp_is_equation_67():
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    for weight in (0.2, 0.5):
        angle = torch.tensor(weight * torch.pi / 2)
        assert torch.allclose(slerp(a, b, weight), torch.stack([angle.cos(), angle.sin()])[None], atol=1e-6)


def test_interpolation_shares_its_noise_between_images_and_weights(make_pipeline):
    pipeline, x_0, y_0 = make_pipeline(), pictures(), pictures(seed=1)
    calls = {"num_inference_steps": 10, "output_type": "pt"}
    mixed = pipeline.interpolate(x_0, y_0, [0.0, 0.5, 1.0], 500, generator=generator(), **calls)
    for end, images in ((x_0, mixed[0]), (y_0, mixed[2])):
        assert torch.equal(pipeline.vary(end, 500, generator=generator(), **calls).images, images)
    same = pipeline.interpolate(x_0, x_0, [0.0, 0.7], 500, generator=generator(), **calls)
    assert torch.allclose(same[0], same[1], atol=1e-5)


def test_interpolating_at_the_lowest_level_mixes_the_pixels(gaussian):
    x_0, y_0 = pictures(), pictures(seed=1)
    (mixed,) = gaussian().interpolate(x_0, y_0, [0.25], 0, generator=generator(), output_type="pt")
    assert torch.allclose(mixed * 2 - 1, 0.75 * x_0 + 0.25 * y_0, atol=0.05)


def test_interpolation_without_a_generator_follows_torchs_seed(make_pipeline):
    pipeline, runs = make_pipeline(), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        mixed = pipeline.interpolate(pictures(), pictures(seed=1), [0.5], 500, num_inference_steps=5, output_type="pt")
        runs.append((mixed[0], torch.rand(1)))
    assert torch.equal(runs[0][0], runs[1][0]) and torch.equal(runs[0][1], runs[1][1])
    assert not torch.equal(runs[0][0], runs[2][0])


def test_interpolation_needs_pairs(make_pipeline):
    with pytest.raises(ValueError, match=r"images of shapes \(2, .*\) and \(3, .*\) do not form pairs"):
        make_pipeline().interpolate(pictures(2), pictures(3), [0.5], 500)


# --- inpainting ----------------------------------------------------------------------------------------------------


def test_the_known_part_stays_and_the_rest_is_painted_anew(make_pipeline):
    pipeline, x_0 = make_pipeline(), pictures()
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1
    out = pipeline.inpaint(x_0, mask, 20, generator=generator(), output_type="pt").images * 2 - 1
    assert torch.allclose(out[..., :4], x_0[..., :4], atol=1e-6)
    assert (out[..., 4:] - x_0[..., 4:]).abs().mean() > 0.05


def test_resampling_makes_the_new_part_fit_the_known_one(make_pipeline):
    """Pixels come in pairs of correlation 0.95; given one of each, the other must follow it, which takes resampling."""
    pipeline = make_pipeline({"clip_sample": False, "beta_schedule": "cosine", "num_train_timesteps": 100})
    abar = pipeline.scheduler.alphas_cumprod
    covariance = S**2 * torch.tensor([[1, 0.95], [0.95, 1]], dtype=torch.float64)

    class Exact(type(pipeline.unet)):
        def forward(self, x, t, class_labels=None):
            a = abar[int(t)]
            precision = torch.linalg.inv(a * covariance + (1 - a) * torch.eye(2, dtype=torch.float64))
            pairs = x.double().view(len(x), -1, 2)
            eps = (1 - a).sqrt() * (pairs @ precision)
            return type("Output", (), {"sample": eps.view(x.shape).to(x.dtype)})

    pipeline.unet.__class__ = Exact
    first = S * torch.randn(32, 1, 8, 4, 1, generator=generator())
    x_0 = torch.cat([first, torch.zeros_like(first)], dim=-1).view(32, 1, 8, 8)
    mask = torch.tensor([0.0, 1.0]).repeat(4)

    def correlation(num_resamples: int) -> float:
        out = pipeline.inpaint(
            x_0.clamp(-1, 1), mask, jump_length=5, num_resamples=num_resamples, generator=generator(1), output_type="pt"
        ).images.view(-1, 2)
        return torch.corrcoef(out.T)[0, 1].item()

    once, often = correlation(1), correlation(10)
    assert often > once + 0.05
    assert often > 0.85


def test_repaint_path():
    assert repaint_path(4, 1, 1) == [4, 3, 2, 1, 0]
    assert repaint_path(4, 2, 2) == [4, 3, 2, 1, 3, 2, 1, 0]
    assert repaint_path(3, None, 1) == [3, 2, 1, 0]
    assert repaint_path(1, None, 10) == [1, 0]
    assert repaint_path(4, None, 2) == [4, 3, 2, 1, 4, 3, 2, 1, 0]
    path = repaint_path(250, None, 10)
    assert (path[0], path[-1], min(path), max(path)) == (250, 0, 0, 250)
    ups = sum(there > here for here, there in pairwise(path))
    assert ups == 9 * len(range(1, 241, 10))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ({"mask": torch.full((8, 8), 0.5)}, "the values of the mask must be 0 .* or 1"),
        ({"mask": torch.ones(3, 3)}, r"mask of shape \(3, 3\) must broadcast to \(2, 1, 8, 8\)"),
        ({"jump_length": 0}, "jump_length=0 must be from 1 to 19"),
        ({"jump_length": 20}, "jump_length=20 must be from 1 to 19"),
        ({"num_resamples": 0}, "num_resamples=0 must be a whole number of at least 1"),
        ({"num_resamples": 1.5}, "num_resamples=1.5 must be a whole number of at least 1"),
        ({"mask": np.ones((8, 8))}, "mask of type ndarray must be a tensor"),
        ({"output_type": "jpeg"}, "'pil', 'np', 'pt'"),
    ],
)
def test_inpainting_that_cannot_be(call, sentence, make_pipeline):
    with pytest.raises(ValueError, match=sentence):
        make_pipeline().inpaint(pictures(), **({"mask": torch.ones(8, 8), "num_inference_steps": 20} | call))


# --- the score -----------------------------------------------------------------------------------------------------


def test_the_pipelines_score_is_the_gradient_of_the_log_density(gaussian):
    pipeline, x_t = gaussian(), torch.randn(2, 1, 8, 8, generator=generator())
    for t in (0, 300, 999):
        a = pipeline.scheduler.alphas_cumprod[t].float()
        expected = -(x_t - a.sqrt() * M) / (a * S**2 + 1 - a)
        assert torch.allclose(pipeline.score(x_t, t), expected, rtol=1e-4, atol=1e-4)


def test_a_score_is_of_a_batch_of_images(make_pipeline):
    with pytest.raises(ValueError, match=r"x_t of shape \(1, 8, 8\) must have shape \(B, 1, H, W\)"):
        make_pipeline().score(torch.zeros(1, 8, 8), 5)


def test_weights_may_be_a_tensor(make_pipeline):
    weights, pipeline = torch.linspace(0, 1, 3), make_pipeline()
    walk = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), "output_type": "pt"}
    mixed, listed = (pipeline.interpolate(pictures(1), -pictures(1), w, 50, **walk) for w in (weights, [0, 0.5, 1]))
    assert all(torch.equal(one, other) for (one,), (other,) in zip(mixed, listed, strict=True))


@pytest.mark.parametrize("weights", [0.5, [1.5], [-0.1], ["half"]])
def test_weights_that_mix_nothing(weights, make_pipeline):
    with pytest.raises(ValueError, match=r"weights=.* must be a list of numbers in \[0, 1\]"):
        make_pipeline().interpolate(pictures(1), pictures(1), weights, 50)


@pytest.mark.parametrize("t", ["a", 1.5, -1, 1000])
def test_a_level_that_is_none(t, make_pipeline):
    with pytest.raises(ValueError, match=r"must be a whole number within 0\.\.999"):
        make_pipeline().vary(pictures(1), t)


def test_langevin_correctors_mend_what_few_steps_leave_wrong(gaussian):
    """Five DDIM steps make Gaussian data too narrow; steps at each level bring the marginals back."""
    pipeline = gaussian(timestep_spacing="trailing")
    x_T = torch.randn(64, 1, 8, 8, generator=generator())

    def error(corrector_steps: int) -> float:
        out = (
            pipeline(
                64,
                timesteps=[999, 800, 500, 200, 60, 15, 0],
                latents=x_T,
                eta=0.0,
                output_type="pt",
                generator=generator(1),
                corrector_steps=corrector_steps,
                corrector_snr=0.2,
            ).images
            * 2
            - 1
        )
        return abs(out.std().item() / S - 1)

    without, some, many = error(0), error(5), error(40)
    assert without > 0.05
    assert some < 0.7 * without
    assert many < 0.4 * without


def test_predictor_and_corrector_converge_to_mean_and_covariance(make_pipeline):
    """Pairs of pixels with a mean and a correlation: few steps get the covariance wrong, correctors get it right."""
    pipeline = make_pipeline({"clip_sample": False, "beta_schedule": "cosine", "num_train_timesteps": 100})
    abar, mean = pipeline.scheduler.alphas_cumprod, torch.tensor([0.2, -0.1], dtype=torch.float64)
    truth = torch.tensor([[0.04, 0.03], [0.03, 0.0625]], dtype=torch.float64)

    class Exact(type(pipeline.unet)):
        def forward(self, x, t, class_labels=None):
            a = abar[int(t)]
            precision = torch.linalg.inv(a * truth + (1 - a) * torch.eye(2, dtype=torch.float64))
            eps = (1 - a).sqrt() * (x.double().view(len(x), -1, 2) - a.sqrt() * mean) @ precision
            return type("Output", (), {"sample": eps.view(x.shape).to(x.dtype)})

    pipeline.unet.__class__ = Exact

    def errors(corrector_steps: int) -> tuple[float, float]:
        images = pipeline(
            500,
            timesteps=[99, 60, 30, 10, 3, 0],
            eta=0.0,
            output_type="pt",
            generator=generator(),
            corrector_steps=corrector_steps,
            corrector_snr=0.25,
        ).images
        out = images.double().view(-1, 2) * 2 - 1
        return (out.mean(dim=0) - mean).abs().max().item(), (out.T.cov() - truth).abs().max().item()

    covariance = {k: errors(k)[1] for k in (0, 10, 60)}
    assert covariance[0] > 2 * covariance[10] > 4 * covariance[60]
    assert covariance[60] < 0.006
    assert max(errors(k)[0] for k in (0, 60)) < 0.01


def test_what_needs_our_scheduler_says_so(make_pipeline):
    from diffusers import DPMSolverMultistepScheduler

    pipeline = make_pipeline()
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    x = torch.zeros(1, 1, 8, 8)
    for what, call in {
        "invert": lambda: pipeline.invert(x, 5),
        "inpaint": lambda: pipeline.inpaint(x, x, 20),
        "score": lambda: pipeline.score(x, 5),
        "start_timestep": lambda: pipeline(latents=x, start_timestep=5, num_inference_steps=5),
        "corrector_steps": lambda: pipeline(corrector_steps=1, num_inference_steps=5),
        "vary": lambda: pipeline.vary(x, 5),
    }.items():
        with pytest.raises(ValueError, match=f"{what} requires an HFDDPMScheduler, not DPMSolverMultistepScheduler"):
            call()
    with pytest.raises(ValueError, match="timestep_spacing='ddim10' is not supported in a call with DPMSolver"):
        pipeline(timestep_spacing="ddim10")


def test_zero_terminal_snr_starts_from_noise_at_its_end_only(make_pipeline):
    zero_snr = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    pipeline = make_pipeline(zero_snr)
    assert len(pipeline(num_inference_steps=5, timestep_spacing="linspace").images) == 1
    for walk in ({"num_inference_steps": 5, "timestep_spacing": "quadratic"}, {"timesteps": [500, 0]}):
        with pytest.raises(ValueError, match="has pure noise only at t = 999: use timestep_spacing='trailing' "):
            pipeline(**walk)
        assert len(pipeline.vary(pictures(1), 300, **walk).images) == 1


@pytest.mark.parametrize(
    ("t", "sentence"), [(1000, r"timestep 1000 must be .* within 0\.\.999"), (-1, "timestep -1 must")]
)
def test_varying_from_a_level_that_is_none(t, sentence, make_pipeline):
    with pytest.raises(ValueError, match=sentence):
        make_pipeline().vary(pictures(), t, num_inference_steps=5)


def test_a_network_without_a_size_takes_images_of_any(make_pipeline):
    pipeline = make_pipeline(sample_size=None)
    assert pipeline.invert(torch.zeros(1, 1, 16, 8), 2).shape == (1, 1, 16, 8)


def test_start_timestep_needs_latents(make_pipeline):
    with pytest.raises(ValueError, match=r"start_timestep=300 requires latents.* vary\(images, 300\)"):
        make_pipeline()(start_timestep=300, num_inference_steps=5)


def test_a_callback_sees_x_0_on_the_way(make_pipeline):
    seen = []
    pipeline = make_pipeline()
    out = pipeline(
        2, 5, eta=0.0, output_type="pt", generator=generator(), callback_on_step_end=lambda p, i, t, k: seen.append(k)
    ).images
    assert len(seen) == 5
    assert torch.equal((seen[-1]["pred_original_sample"] / 2 + 0.5).clamp(0, 1), out)  # the last step returns x_0


def test_spacings_of_a_call(make_pipeline):
    seen = []
    pipeline = make_pipeline()
    for keywords in ({"timestep_spacing": "3,2"}, {"num_inference_steps": 4, "timestep_spacing": "quadratic"}):
        pipeline(callback_on_step_end=lambda p, i, t, k: seen.append(int(t)), **keywords)
    assert seen == [999, 500, 499, 250, 0, 800, 355, 88, 0]


def test_editing_needs_no_package_of_ours(make_pipeline, run_python, tmp_path):
    """Door 3 has all of it."""
    make_pipeline().save_pretrained(tmp_path / "checkpoint")
    code = f"""
import torch
from diffusers import DiffusionPipeline
folder = {str(tmp_path / "checkpoint")!r}
pipeline = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
pipeline.set_progress_bar_config(disable=True)
x = torch.zeros(1, 1, 8, 8)
print(tuple(pipeline.invert(x, 3).shape), len(pipeline.inpaint(x, x, 12).images))
print(len(pipeline.interpolate(x, x, [0, 1], 9)))
"""
    assert run_python(code, without_hf_ddpm=True).stdout.strip() == "(1, 1, 8, 8) 1\n2"
