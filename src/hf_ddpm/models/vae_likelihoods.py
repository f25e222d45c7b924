"""The likelihoods p(x|z) of a VAE's decoder (Kingma & Welling 2014, arXiv 1312.6114, appendix C).

Images are x in [-1, 1], (B, C, H, W); every `log_prob` sums over an image's elements and returns (B,) in nats.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from torch.nn import functional as F

from hf_ddpm.models.gaussian import discretized_gaussian_log_likelihood, gaussian_log_density

Likelihood = Literal[
    "bernoulli", "gaussian", "gaussian_global", "gaussian_optimal", "gaussian_fixed", "discretized_gaussian"
]

_GREY_LEVEL = 2 / 255  # the distance between two 8-bit grey levels
LEAST_LOG_VARIANCE = {  # of a learned sigma, which would go to 0 at pixels that never change
    "gaussian": 2 * math.log(_GREY_LEVEL),  # a density, which would grow without bound
    "gaussian_global": 2 * math.log(_GREY_LEVEL),
    "discretized_gaussian": 2 * math.log(_GREY_LEVEL / 10),  # a probability, at most 1 for any sigma
}


@dataclass(frozen=True)
class Bernoulli:
    """Each element is white (1) with probability sigmoid(logit), else black (-1) (appendix C.1).

    For greys between the two, `log_prob` is the cross-entropy, which does not correspond to a normalised density.

    Attributes:
        logits: The logits, (B, C, H, W).
    """

    logits: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """sum of y log p + (1 - y) log(1 - p) with p = sigmoid(logit) and y = (x + 1) / 2, as (B,) in nats.

        Computed as -(max(logit, 0) - y logit + log(1 + exp(-|logit|))), in which nothing cancels or overflows.
        """
        y = ((x + 1) / 2).expand_as(self.logits)
        return -_sum_per_image(F.binary_cross_entropy_with_logits(self.logits, y, reduction="none"))

    @property
    def mean(self) -> Tensor:
        """The mean image, 2 sigmoid(logit) - 1."""
        return torch.tanh(self.logits / 2)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw black and white images, -1 or 1."""
        device = self.logits.device if generator is None else generator.device
        chance = torch.rand(self.logits.shape, generator=generator, device=device).to(self.logits.device)
        return torch.where(chance < torch.sigmoid(self.logits), 1.0, -1.0).to(self.logits.dtype)


@dataclass(frozen=True)
class Gaussian:
    """Independent normal elements (appendix C.2), a density on real numbers.

    Attributes:
        location: mu', (B, C, H, W).
        log_variance: log sigma'^2, for each element or one for all, in a shape that broadcasts.
    """

    location: Tensor
    log_variance: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """-1/2 sum of log(2 pi sigma'^2) + (x - mu')^2 / sigma'^2, as (B,) in nats."""
        return _sum_per_image(gaussian_log_density(x, self.location, self.log_variance))

    @property
    def mean(self) -> Tensor:
        """The mean image: mu', clipped to [-1, 1]."""
        return self.location.clamp(-1, 1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw images from p(x|z), clipped to [-1, 1]."""
        noise = randn_tensor(
            self.location.shape, generator=generator, device=self.location.device, dtype=self.location.dtype
        )
        return (self.location + torch.exp(0.5 * self.log_variance) * noise).clamp(-1, 1)


@dataclass(frozen=True)
class DiscretizedGaussian:
    """The probabilities that a `Gaussian` gives to the 256 grey levels k / 127.5 - 1 (Ho et al. 2020, eq. 13)."""

    location: Tensor
    log_variance: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """sum of log P(level of x), as (B,) in nats; at most 0, so that the negative is a code length."""
        return _sum_per_image(discretized_gaussian_log_likelihood(x, self.location, self.log_variance))

    @property
    def mean(self) -> Tensor:
        """The mean image, without rounding to levels."""
        return self.location.clamp(-1, 1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw images on the grid of grey levels."""
        drawn = Gaussian(self.location, self.log_variance).sample(generator)
        return ((drawn + 1) * 127.5).round() / 127.5 - 1


DecoderDistribution = Bernoulli | Gaussian | DiscretizedGaussian


def outputs_per_channel(likelihood: Likelihood) -> int:
    """Return the number of decoder outputs per element: 2 if each element has its own sigma', else 1."""
    return 2 if likelihood in ("gaussian", "discretized_gaussian") else 1


def decoder_distribution(
    likelihood: Likelihood, output: Tensor, log_variance: Tensor | None = None
) -> DecoderDistribution:
    """Return p(x|z) for an output of the decoder.

    Args:
        likelihood: One of `Likelihood`.
        output: The output, (B, C, H, W), or (B, 2C, H, W) with the log-variances in the second half.
        log_variance: The log-variance of `gaussian_global` and `gaussian_optimal`.
    """
    match likelihood:
        case "bernoulli":
            return Bernoulli(output)
        case "gaussian_fixed":
            return Gaussian(output, output.new_zeros(()))
        case "gaussian_optimal":
            return Gaussian(output, _given(log_variance))
        case "gaussian_global":
            return Gaussian(output, bounded_below(_given(log_variance), LEAST_LOG_VARIANCE[likelihood]))
        case "gaussian":
            location, raw = output.chunk(2, dim=1)
            return Gaussian(location, bounded_below(raw, LEAST_LOG_VARIANCE[likelihood]))
        case _:
            location, raw = output.chunk(2, dim=1)
            return DiscretizedGaussian(location, bounded_below(raw, LEAST_LOG_VARIANCE[likelihood]))


def optimal_log_variance(x: Tensor, location: Tensor) -> Tensor:
    """log of the mean squared error: the single sigma^2 for which images are most probable (arXiv 2006.13202, eq. 6).

    The result is (1,), without a gradient, because by the envelope theorem the gradient of the loss needs none through
    it. In training it is computed from the images of one process and one part of a batch, which changes it a little.
    """
    error = (x - location.detach()).square().mean()
    return error.clamp(min=_GREY_LEVEL**2).log().view(1)


def bounded_below(value: Tensor, least: float) -> Tensor:
    """least + softplus(value - least): never below `least`, with a gradient everywhere (arXiv 2006.13202, sec. 3)."""
    return least + F.softplus(value - least)


def _given(log_variance: Tensor | None) -> Tensor:
    if log_variance is None:
        raise ValueError("log_variance is missing: this likelihood has one sigma for all elements")
    return log_variance


def _sum_per_image(values: Tensor) -> Tensor:
    return values.flatten(1).sum(dim=1)
