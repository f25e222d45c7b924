"""Gaussians in logarithms: their density, their divergence, and the probability that they give to a grey level."""

import math

import torch
from torch import Tensor

_TAIL = -1.0  # below it log Phi goes through erfcx; log_ndtr's own gradient cancels there, and explodes in float32


def gaussian_log_density(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log N(x; mean, exp(log_variance)) of each element, in nats; shapes that broadcast."""
    return -0.5 * (math.log(2 * math.pi) + log_variance + (x - mean).square() * torch.exp(-log_variance))


def gaussian_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N(mean1, exp(log_variance1)) || N(mean2, exp(log_variance2))) of each element, in nats."""
    ratio = log_variance1 - log_variance2
    return 0.5 * (ratio.exp() - 1 - ratio + (mean1 - mean2).square() * torch.exp(-log_variance2))


def discretized_gaussian_log_likelihood(
    x_0: Tensor, mean: Tensor, log_variance: Tensor, *, bit_depth: int = 8
) -> Tensor:
    """log of the probability that N(mean, exp(log_variance)) gives to the grey level of each element (DDPM, eq. 13).

    The levels are 2 k / (2^b - 1) - 1; a level's bin reaches half way to its neighbours, and to infinity at the ends.
    Values and gradients stay finite in float32 up to a distance of a hundred thousand standard deviations.

    Args:
        x_0: Images on the grid of levels in [-1, 1], (B, ...).
        mean, log_variance: The mean and the log-variance of the decoder p(x_0 | x_1), in shapes that broadcast to
            `x_0`.
        bit_depth: b.

    Returns:
        Tensor: The logarithms in nats, shaped as `x_0`, at most 0.
    """
    half_bin = 1 / (2**bit_depth - 1)
    precision = torch.exp(-0.5 * log_variance)
    distance, half_width = (x_0 - mean) * precision, half_bin * precision
    log_mass = _log_mass(-distance.abs(), half_width)
    open_below, open_above = log_cdf(distance + half_width), log_cdf(half_width - distance)
    at_bottom, at_top = x_0 < -1 + half_bin, x_0 > 1 - half_bin
    return torch.where(at_bottom, open_below, torch.where(at_top, open_above, log_mass))


def log_cdf(z: Tensor) -> Tensor:
    """log Phi(z) of the standard normal distribution, in nats, with a finite gradient wherever z^2 is finite."""
    return torch.where(z < _TAIL, _log_scaled_cdf(z) - z.square() / 2, torch.special.log_ndtr(z.clamp(min=_TAIL)))


def _log_mass(middle: Tensor, half_width: Tensor) -> Tensor:
    """log(Phi(middle + half_width) - Phi(middle - half_width)) for middle <= 0, so that neither Phi is rounded to 1.

    = log Phi(high) + log(1 - exp(d)) with d = log Phi(low) - log Phi(high). The squares in the two logarithms are
    subtracted as a product, (low^2 - high^2) / 2 = -2 half_width middle, because they dominate far from the mean.
    """
    low, high = middle - half_width, middle + half_width
    d = _log_scaled_cdf(low) - _log_scaled_cdf(high) + 2 * half_width * middle
    smallest = torch.finfo(d.dtype).tiny  # for a bin too narrow for its dtype, instead of -inf
    return log_cdf(high) + torch.log(-torch.expm1(d.clamp(max=-smallest)))


def _log_scaled_cdf(z: Tensor) -> Tensor:
    """log Phi(z) + z^2 / 2, which varies slowly where z is far below 0."""
    tail = torch.log(torch.special.erfcx(z.clamp(max=_TAIL) * -math.sqrt(0.5)) / 2)
    near = z.clamp(min=_TAIL)
    return torch.where(z < _TAIL, tail, torch.special.log_ndtr(near) + near.square() / 2)
