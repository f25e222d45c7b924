"""p(x|z) against torch.distributions, its masses and its samples, and logits where the source note's formula fails."""

import math
from typing import get_args

import pytest
import torch
from torch.distributions import Bernoulli, Normal

from hf_ddpm.models.vae_likelihoods import (
    LEAST_LOG_VARIANCE,
    Likelihood,
    bounded_below,
    decoder_distribution,
    optimal_log_variance,
    outputs_per_channel,
)

LIKELIHOODS = get_args(Likelihood)
GAUSSIANS = [word for word in LIKELIHOODS if word.startswith("gaussian")]
PER_ELEMENT = ("gaussian", "discretized_gaussian")
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def decoded(likelihood, size=(5, 2, 3, 4), dtype=torch.float64):
    """A decoder's output around 0 and the sigma that all elements share, both with gradients."""
    g = torch.Generator().manual_seed(0)
    channels = outputs_per_channel(likelihood) * size[1]
    output = torch.randn(size[0], channels, *size[2:], generator=g, dtype=dtype).requires_grad_()
    return output, torch.tensor([-2.5], dtype=dtype, requires_grad=True)


def images(size=(5, 2, 3, 4), dtype=torch.float64):
    """On the grid of 8-bit levels, both ends among them."""
    x = torch.randint(256, size, generator=torch.Generator().manual_seed(1)).to(dtype) / 127.5 - 1
    x.view(-1)[0], x.view(-1)[-1] = -1, 1
    return x


def normal(likelihood, output, log_variance):
    """torch's distribution. The floor least + softplus(raw - least) is log(e^least + e^raw): variances add."""
    location, raw = output.chunk(2, dim=1) if likelihood in PER_ELEMENT else (output, log_variance)
    variance = torch.ones_like(location) if likelihood == "gaussian_fixed" else raw.exp()
    if likelihood in LEAST_LOG_VARIANCE:
        variance = variance + math.exp(LEAST_LOG_VARIANCE[likelihood])
    return Normal(location, variance.sqrt())


def assert_same_values_and_gradients(found, wanted, inputs):
    torch.testing.assert_close(found, wanted, **EXACT)
    weights = torch.arange(1.0, len(found) + 1, dtype=found.dtype)
    pairs = (torch.autograd.grad((v * weights).sum(), inputs, allow_unused=True) for v in (found, wanted))
    for got, expected in zip(*pairs, strict=True):
        torch.testing.assert_close(got, expected, **EXACT)


# Values and gradients


@pytest.mark.parametrize("largest", [1.0, 15.0])
def test_bernoulli_is_torchs(largest):
    logits = torch.linspace(-largest, largest, 120, dtype=torch.float64).view(5, 2, 3, 4).requires_grad_()
    y = torch.bernoulli(torch.full_like(logits, 0.5), generator=torch.Generator().manual_seed(0))
    found = decoder_distribution("bernoulli", logits).log_prob(2 * y - 1)
    assert_same_values_and_gradients(found, Bernoulli(logits=logits).log_prob(y).flatten(1).sum(dim=1), [logits])


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-6)])
def test_bernoulli_keeps_the_small_cost_of_a_pixel_that_is_certain_and_right(dtype, tolerance):
    """-log(1 + exp(-l)) of a white pixel: y l - softplus(l) cancels there, and softplus is cut at 20."""
    logits = torch.tensor([12.0, 15.0, 19.9, 20.1, 25.0], dtype=torch.float64)
    white = torch.ones(5, 1, 1, 1, dtype=dtype)
    found = decoder_distribution("bernoulli", logits.view(5, 1, 1, 1).to(dtype)).log_prob(white)
    torch.testing.assert_close(found.double(), -torch.exp(-logits).log1p(), rtol=tolerance, atol=0)


def test_greys_under_bernoulli_have_the_cross_entropy():
    output, _ = decoded("bernoulli")
    x, p = images(), torch.sigmoid(output)
    wanted = (x + 1) / 2 * p.log() + (1 - x) / 2 * (1 - p).log()
    found = decoder_distribution("bernoulli", output).log_prob(x)
    assert_same_values_and_gradients(found, wanted.flatten(1).sum(dim=1), [output])


def test_the_mean_image_of_a_bernoulli_is_that_of_its_coins():
    output, _ = decoded("bernoulli")
    torch.testing.assert_close(decoder_distribution("bernoulli", output).mean, 2 * Bernoulli(logits=output).mean - 1)


@pytest.mark.parametrize("likelihood", GAUSSIANS)
def test_gaussians_are_torchs(likelihood):
    output, log_variance = decoded(likelihood)
    found = decoder_distribution(likelihood, output, log_variance).log_prob(images())
    wanted = normal(likelihood, output, log_variance).log_prob(images()).flatten(1).sum(dim=1)
    assert_same_values_and_gradients(found, wanted, [output, log_variance])


def test_discretized_is_the_difference_of_torchs_cdf():
    """Of locations near the images and sigma near 1: farther away the difference of two numbers near 1 loses digits."""
    output = (0.3 * decoded("discretized_gaussian")[0]).detach().requires_grad_()
    x, distribution = images(), normal("discretized_gaussian", output, None)
    above = torch.where(x == 1, torch.ones_like(x), distribution.cdf(x + 1 / 255))
    below = torch.where(x == -1, torch.zeros_like(x), distribution.cdf(x - 1 / 255))
    found = decoder_distribution("discretized_gaussian", output).log_prob(x)
    assert_same_values_and_gradients(found, (above - below).log().flatten(1).sum(dim=1), [output])


@pytest.mark.parametrize("location", [-1.4, 0.003, 1.0])
@pytest.mark.parametrize("raw", [-40.0, -5.0, 2.0])
def test_the_masses_of_the_256_levels_sum_to_one(location, raw):
    x = (torch.arange(256, dtype=torch.float64) / 127.5 - 1).view(256, 1, 1, 1)
    output = torch.tensor([location, raw], dtype=torch.float64).view(1, 2, 1, 1).expand(256, 2, 1, 1)
    log_masses = decoder_distribution("discretized_gaussian", output).log_prob(x)
    assert log_masses.max() <= 0 and log_masses.exp().sum().item() == pytest.approx(1, abs=1e-12)


# Extremes


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("value", [-200.0, 200.0])
def test_extreme_outputs_stay_finite_in_float32(likelihood, value):
    """Logits, locations and log-variances of +-200, seen from white, grey and black."""
    x = torch.tensor([-1.0, 1 / 255, 1.0]).view(3, 1, 1, 1)
    output = torch.full((3, outputs_per_channel(likelihood), 1, 1), value, requires_grad=True)
    shared = torch.tensor([0.3 if likelihood == "gaussian_optimal" else value], requires_grad=True)
    log_prob = decoder_distribution(likelihood, output, shared).log_prob(x)
    gradients = torch.autograd.grad(log_prob.sum(), [output, shared], allow_unused=True)
    assert log_prob.isfinite().all() and all(g.isfinite().all() for g in gradients if g is not None)
    assert decoder_distribution(likelihood, output, shared).mean.abs().max() <= 1


def test_a_learned_sigma_stops_at_a_grey_level():
    """sigma^2 >= (2/255)^2 for a density and a hundredth of it for masses: constant pixels cannot send it to 0."""
    output = torch.tensor([0.0, -1000.0]).view(1, 2, 1, 1)
    for likelihood, sigma in {"gaussian": 2 / 255, "discretized_gaussian": 0.2 / 255}.items():
        found = decoder_distribution(likelihood, output).log_variance.exp().sqrt().item()
        assert found == pytest.approx(sigma, rel=1e-5)
    shared = decoder_distribution("gaussian_global", output, torch.tensor([-1000.0])).log_variance
    assert shared.exp().sqrt().item() == pytest.approx(2 / 255, rel=1e-5)
    assert optimal_log_variance(output, output).exp().sqrt().item() == pytest.approx(2 / 255, rel=1e-5)
    assert bounded_below(torch.tensor(3.0), -9.7).item() == pytest.approx(3, abs=1e-5)


# The source note's formula


def naive_bernoulli(x, p):
    """x log(p + 1e-8) + (1 - x) log(1 - p + 1e-8), the source note's, with x in [0, 1] and p a probability."""
    return x * (p + 1e-8).log() + (1 - x) * (1 - p + 1e-8).log()


def test_the_notes_bernoulli_agrees_to_1e_8_over_the_probability_of_the_pixel():
    """In float64, which is below 1e-6 for logits within +-4."""
    logits = torch.linspace(-4, 4, 81, dtype=torch.float64).view(81, 1, 1, 1)
    for y in (0.0, 1.0):
        x = torch.full_like(logits, y)
        ours = decoder_distribution("bernoulli", logits).log_prob(2 * x - 1)
        difference = (naive_bernoulli(x, logits.sigmoid()).flatten() - ours).abs()
        probability = torch.where(x == 1, logits, -logits).sigmoid().flatten()
        assert (difference <= 1.001e-8 / probability).all() and difference.max() < 1e-6


def test_the_notes_bernoulli_caps_the_cost_at_18_nats_and_cannot_be_learned_from_there():
    logits = torch.tensor([-16.0, -40.0, 16.0, 40.0]).view(4, 1, 1, 1).requires_grad_()
    x = torch.tensor([1.0, 1, 0, 0]).view(4, 1, 1, 1)  # each pixel is certain, and wrong
    ours = decoder_distribution("bernoulli", logits).log_prob(2 * x - 1)
    naive = naive_bernoulli(x, logits.sigmoid()).flatten()
    torch.testing.assert_close(ours, -torch.tensor([16.0, 40, 16, 40]))
    assert naive[[1, 3]].tolist() == pytest.approx([math.log(1e-8)] * 2)  # -18.4 whether 19 or 40
    assert naive[2] > -15.9  # p is 1 - 1.2e-7, the last float32 below 1
    slope = torch.autograd.grad(naive.sum(), logits)[0].flatten().abs()
    assert slope[1] < 1e-8 and slope[3] == 0
    assert torch.autograd.grad(ours.sum(), logits)[0].abs().min() > 0.9999


def test_the_notes_bernoulli_rewards_images_that_were_not_mapped_to_0_1():
    """Fed with x in [-1, 1] it gains without end; ours maps them, and no image costs less than nothing."""
    logits = torch.full((1, 1, 1, 1), -15.0)
    black = torch.full((1, 1, 1, 1), -1.0)
    assert naive_bernoulli(black, logits.sigmoid()).item() > 14
    assert -1e-6 < decoder_distribution("bernoulli", logits).log_prob(black).item() <= 0


# Samples


def wanted_moments(likelihood, output, log_variance):
    """Mean and variance of one element: of a coin, or of a normal variable that is clipped and, maybe, rounded."""
    if likelihood == "bernoulli":
        return output.tanh().item(), 1 - output.tanh().item() ** 2  # logits are twice `output`
    quantiles = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    values = normal(likelihood, output, log_variance).icdf(quantiles).clamp(-1, 1)
    if likelihood == "discretized_gaussian":
        values = ((values + 1) * 127.5).round() / 127.5 - 1
    return values.mean().item(), values.var().item()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_samples_have_the_mean_and_the_variance_of_the_distribution(likelihood):
    """Within five standard errors; clipping to [-1, 1] taken into account, which sigma = 1 needs."""
    output = torch.tensor([0.4, -2.0][: outputs_per_channel(likelihood)], dtype=torch.float64).view(1, -1, 1, 1)
    shared, n = torch.tensor([-3.0], dtype=torch.float64), 40_000
    mean, variance = wanted_moments(likelihood, output, shared)
    many = output.expand(n, -1, 1, 1) * (2 if likelihood == "bernoulli" else 1)
    distribution = decoder_distribution(likelihood, many, shared)
    first, again = (distribution.sample(torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again) and first.dtype == output.dtype and first.shape == (n, 1, 1, 1)
    squares = (first - mean).square()
    assert abs(first.mean().item() - mean) < 5 * (variance / n) ** 0.5
    assert abs(squares.mean().item() - variance) < 5 * squares.std().item() / n**0.5 + 1e-9
    assert first.abs().max() <= 1


def test_samples_on_the_grid_come_as_often_as_their_masses():
    output = torch.tensor([0.95, -6.0], dtype=torch.float64).view(1, 2, 1, 1)  # sigma 0.05: a tenth is white
    x = (torch.arange(256, dtype=torch.float64) / 127.5 - 1).view(256, 1, 1, 1)
    masses = decoder_distribution("discretized_gaussian", output.expand(256, 2, 1, 1)).log_prob(x).exp()
    samples = decoder_distribution("discretized_gaussian", output.expand(50_000, 2, 1, 1)).sample(
        torch.Generator().manual_seed(0)
    )
    counts = torch.bincount(((samples.flatten() + 1) * 127.5).round().long(), minlength=256)
    assert 0.1 < masses[-1] < 0.5
    assert ((counts - 50_000 * masses).abs() < 5 * (50_000 * masses * (1 - masses)).sqrt() + 1).all()


# Bad input


@pytest.mark.parametrize("likelihood", ["gaussian_global", "gaussian_optimal"])
def test_a_shared_sigma_must_be_given(likelihood):
    with pytest.raises(ValueError, match="log_variance is missing"):
        decoder_distribution(likelihood, torch.zeros(1, 1, 2, 2))
