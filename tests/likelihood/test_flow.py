"""The flow of Gaussian data is linear and known; on images it is one number for any batch."""

import math

import pytest
import torch

from hf_ddpm import HFDDPMScheduler
from hf_ddpm.errors import UserError
from hf_ddpm.likelihood import FlowTerms, Network, NoiseAngle, flow_log_density, flow_terms
from hf_ddpm.likelihood.images import share

STEPS = 100
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def log_normal(x, mean, covariance):
    return torch.distributions.MultivariateNormal(mean, covariance).log_prob(x)


def points(n, *shape):
    return 0.5 * torch.randn(n, *shape, generator=torch.Generator().manual_seed(5)).double()


# --- the level between steps --------------------------------------------------------------------------------------


def test_the_angle_is_the_schedule_at_whole_steps():
    scheduler = HFDDPMScheduler(beta_schedule="cosine")
    angle = NoiseAngle(scheduler)
    found = torch.tensor([math.cos(angle(t)) ** 2 for t in range(1000)], dtype=torch.float64)
    torch.testing.assert_close(found, scheduler.alphas_cumprod, rtol=1e-9, atol=1e-14)
    assert angle(-1) == 0


def log_snr(phi):
    return -2 * math.log(math.tan(phi))


def test_between_steps_it_is_the_curve_that_the_steps_sample():
    """The linear schedule's product is a ratio of Gamma functions; the cosine schedule is a formula of t."""
    first, rise = 1e-4, (0.02 - 1e-4) / 999
    a = (1 - first) / rise

    def linear(t):
        return math.exp((t + 1) * math.log(rise) + math.lgamma(a + 1) - math.lgamma(a - t))

    def cosine(t):
        u = [((s + 0.008) / 1.008) * math.pi / 2 for s in ((t + 1) / 1000, 0)]
        return (math.cos(u[0]) / math.cos(u[1])) ** 2

    for name, curve in (("linear", linear), ("cosine", cosine)):
        angle = NoiseAngle(HFDDPMScheduler(beta_schedule=name))
        error = {t: log_snr(angle(t)) - math.log(curve(t) / (1 - curve(t))) for t in (0.3, 0.5, 1.5, 7.5, 400.5, 950.5)}
        assert max(map(abs, error.values())) < 1e-3, (name, error)


def test_a_jagged_curve_still_rises_and_its_slope_is_the_derivative():
    betas = [0.5 if t % 7 == 3 else 1e-4 for t in range(50)]
    angle = NoiseAngle(HFDDPMScheduler(50, trained_betas=betas))
    grid = torch.linspace(-1, 49, 2001, dtype=torch.float64).tolist()
    values = torch.tensor([angle(t) for t in grid], dtype=torch.float64)
    assert (values.diff() > 0).all()
    for t in (0.37, 12.9, 30.5, 48.2):
        assert angle.slope(t) == pytest.approx((angle(t + 1e-6) - angle(t - 1e-6)) / 2e-6, rel=1e-4)
    with pytest.raises(ValueError, match=r"t=49.5 must be from -1 to 49"):
        angle(49.5)


# --- the density --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scheduler",
    [
        {"prediction_type": "epsilon"},
        {"prediction_type": "mean", "variance_type": "fixed_large"},
        {"prediction_type": "epsilon", "variance_type": "learned"},
        {"prediction_type": "sample", "beta_schedule": "cosine"},
        {"prediction_type": "v_prediction", "beta_schedule": "cosine"},
        {"prediction_type": "v_prediction", **ZERO_SNR},
        {"prediction_type": "sample", **ZERO_SNR},
    ],
    ids=lambda keywords: "-".join(map(str, keywords.values())),
)
def test_the_estimate_is_the_density_of_gaussian_data(scheduler, gaussian):
    """Against the flow's own closed form closely, against -log p(x) up to the noise of the first level and q(x_T)."""
    mean, variance = 0.1, 0.25
    network = gaussian(mean, variance, size=4, **scheduler)
    x = points(6, 1, 2, 2)
    found = flow_log_density(network, x, None, torch.ones(1, *x.shape).double(), steps=STEPS)

    abar = network.scheduler.alphas_cumprod
    std = (abar * variance + 1 - abar).sqrt()
    x_T = abar[-1].sqrt() * mean + std[-1] / std[0] * abar[0].sqrt() * (x - mean)
    scale = (std[-1] / std[0] * abar[0].sqrt()).log()
    exact = (-0.5 * (x_T.square() + math.log(2 * math.pi)) + scale).flatten(1).sum(dim=1)
    torch.testing.assert_close(found, exact, rtol=0, atol=2e-4)

    eye = torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(found, log_normal(x.flatten(1), mean * eye[0] ** 0, variance * eye), rtol=0, atol=0.02)


def test_the_trace_of_correlated_data(gaussian):
    """Both signs of the product of two probes average the off-diagonal part away exactly; one alone does not."""
    covariance = torch.tensor([[0.3, 0.2], [0.2, 0.2]], dtype=torch.float64)
    network = gaussian([0.2, -0.1], covariance, beta_schedule="cosine")
    x = points(5, 2, 1, 1)
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double().view(2, 1, 2, 1, 1).expand(2, 5, 2, 1, 1)
    found = flow_log_density(network, x, None, signs, steps=STEPS)
    abar = network.scheduler.alphas_cumprod[0]
    of_first_level = covariance + (1 - abar) / abar * torch.eye(2, dtype=torch.float64)
    exact = log_normal(x.flatten(1), torch.tensor([0.2, -0.1]).double(), of_first_level)
    torch.testing.assert_close(found, exact, rtol=0, atol=5e-4)
    one_sided = flow_log_density(network, x, None, signs[:1], steps=STEPS)
    assert (one_sided - exact).abs().min() > 0.1


def test_the_error_falls_with_the_fourth_power_of_the_step(gaussian):
    network = gaussian(size=4)
    x = points(3, 1, 2, 2)
    exact, first, second = (
        flow_log_density(network, x, None, torch.ones(1, *x.shape).double(), steps=n) for n in (80, 8, 16)
    )
    assert (first - exact).abs().max() / (second - exact).abs().max() > 12


def bits_apart(found, exact):
    """The largest difference of log densities, in bits/dim of four dimensions."""
    return (found - exact).abs().max().item() / (4 * math.log(2))


def test_an_epsilon_network_that_is_1_percent_wrong_costs_little_where_alpha_is_nearly_0(gaussian):
    """v divides its error by alpha = 5e-5 at the last t: steps that are long there count it a hundred times over."""
    x = points(4, 1, 2, 2)
    right, wrong = (gaussian(size=4, share=s, beta_schedule="cosine", prediction_type="epsilon") for s in (1, 0.99))
    probes = torch.ones(1, *x.shape).double()
    exact, coarse, found, fine = (
        flow_log_density(network, x, None, probes, steps=steps)
        for network, steps in ((right, 50), (wrong, 25), (wrong, 50), (wrong, 400))
    )
    assert bits_apart(coarse, fine) < 0.04 and bits_apart(found, fine) < 0.01
    assert bits_apart(found.mean(), exact.mean()) < 0.05


@pytest.mark.parametrize("beta_schedule", ["linear", "cosine"])
def test_fifty_steps_are_enough_for_v(beta_schedule, gaussian):
    network, x = gaussian(size=4, beta_schedule=beta_schedule, prediction_type="v_prediction"), points(4, 1, 2, 2)
    probes = torch.ones(1, *x.shape).double()
    found, exact = (flow_log_density(network, x, None, probes, steps=steps) for steps in (50, 400))
    assert bits_apart(found, exact) < 1e-5


# --- images -------------------------------------------------------------------------------------------------------


def test_bits_of_dequantised_images_count_the_width_of_the_bins(gaussian, gaussian_images):
    """-log2 p(x + u) / D - log2 w; at 16 bits u is nothing, and p is known."""
    images = gaussian_images(5, (1, 2, 2))
    network = gaussian(size=4, beta_schedule="cosine")
    found = flow_terms(network, images, torch.arange(5), seed=0, steps=STEPS)
    x = images.x_0(torch.arange(5)).flatten(1)
    nats = log_normal(x, torch.full((4,), 0.1).double(), 0.25 * torch.eye(4).double())
    torch.testing.assert_close(found.bits, -nats / (4 * math.log(2)) - math.log2(2 / 65535), rtol=0, atol=0.01)


def test_dequantisation_is_uniform_in_the_bin_and_follows_the_index(gaussian, random_images):
    from hf_ddpm.likelihood.flow import dequantised

    images = random_images(3, (1, 32, 32), bit_depth=4)
    rows = torch.arange(3)
    u = (dequantised(images, rows, seed=0) - images.x_0(rows)) / images.bin_width
    assert u.min() >= -0.5 and u.max() < 0.5
    assert u.mean().item() == pytest.approx(0, abs=0.03) and u.var().item() == pytest.approx(1 / 12, rel=0.05)
    assert torch.equal(dequantised(images, rows[1:2], seed=0), dequantised(images, rows, seed=0)[1:2])
    assert not torch.equal(dequantised(images, rows, seed=1), dequantised(images, rows, seed=0))


@pytest.mark.parametrize("variance_type", ["fixed_small", "learned"])
def test_neither_batches_nor_processes_change_it(variance_type, make_pipeline, random_images):
    channels = {"out_channels": 2} if variance_type == "learned" else {}
    pipeline = make_pipeline({"num_train_timesteps": 50, "variance_type": variance_type}, **channels)
    network, images = Network(pipeline.unet, pipeline.scheduler), random_images(5)
    whole = flow_terms(network, images, torch.arange(5), seed=0, steps=3, num_probes=2, batch_size=5)
    parts = [flow_terms(network, images, share(5, r, 2), seed=0, steps=3, num_probes=2, batch_size=2) for r in (0, 1)]
    torch.testing.assert_close(tuple(FlowTerms.merged(parts)), tuple(whole), rtol=1e-6, atol=0)
    assert all(weight.grad is None for weight in pipeline.unet.parameters())
    other = flow_terms(network, images, torch.arange(5), seed=1, steps=3, batch_size=5)
    assert (other.bits - whole.bits).abs().min() > 1e-6


def test_a_network_in_bfloat16_is_asked_at_the_times_of_the_grid(make_pipeline, random_images):
    pipeline = make_pipeline({"num_train_timesteps": 1000})
    asked = {}
    for dtype in (torch.float64, torch.bfloat16):
        unet, seen = pipeline.unet.to(dtype), []
        hook = unet.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[1].double()))
        flow_terms(Network(unet, pipeline.scheduler), random_images(1), torch.arange(1), seed=0, steps=5)
        hook.remove()
        asked[dtype] = torch.cat(seen)
    torch.testing.assert_close(asked[torch.bfloat16], asked[torch.float64].float().double(), rtol=0, atol=0)


def test_what_the_ode_cannot_do(make_pipeline, random_images):
    pipeline = make_pipeline({"num_train_timesteps": 8})
    network, images = Network(pipeline.unet, pipeline.scheduler), random_images(1)
    with pytest.raises(UserError, match="steps=0 and num_probes=1 must both be at least 1 for the ODE"):
        flow_terms(network, images, torch.arange(1), seed=0, steps=0)
    whole_steps = make_pipeline({"num_train_timesteps": 8}, time_embedding_type="learned", num_train_timesteps=8)
    with pytest.raises(UserError, match="learned embedding for each integer t"):
        flow_terms(Network(whole_steps.unet, pipeline.scheduler), images, torch.arange(1), seed=0, steps=1)


def test_without_torchdiffeq_the_sentence_names_the_extra(make_pipeline, random_images, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    pipeline = make_pipeline({"num_train_timesteps": 8})
    with pytest.raises(UserError, match=r"pip install 'hf_ddpm\[measure\]'"):
        flow_terms(Network(pipeline.unet, pipeline.scheduler), random_images(1), torch.arange(1), seed=0, steps=1)
