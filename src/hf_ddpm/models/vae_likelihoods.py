"""p(x|z), what the decoder of a VAE says of images (Kingma & Welling 2014, arXiv 1312.6114, appendix C).

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

_GREY_LEVEL = 2 / 255  # the distance of two 8-bit grey levels
LEAST_LOG_VARIANCE = {  # of a sigma that is learned: pixels that never change would send it to 0
    "gaussian": 2 * math.log(_GREY_LEVEL),  # a density, which would grow without bound
    "gaussian_global": 2 * math.log(_GREY_LEVEL),
    "discretized_gaussian": 2 * math.log(_GREY_LEVEL / 10),  # a mass, at most 1 whatever sigma
}


@dataclass(frozen=True)
class Bernoulli:
    """Each element is white (1) with probability sigmoid(logit), else black (-1) (appendix C.1).

    For greys between the two `log_prob` is the cross-entropy, which no normalised density belongs to.

    Attributes:
        logits: (B, C, H, W).
    """

    logits: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """sum of y log p + (1 - y) log(1 - p) with p = sigmoid(logit) and y = (x + 1) / 2, as (B,) in nats.

        Computed as max(logit, 0) - y logit + log(1 + exp(-|logit|)), where nothing cancels and nothing overflows.
        """
        y = ((x + 1) / 2).expand_as(self.logits)
        return -_sum_per_image(F.binary_cross_entropy_with_logits(self.logits, y, reduction="none"))

    @property
    def mean(self) -> Tensor:
        """The mean image, 2 sigmoid(logit) - 1."""
        return torch.tanh(self.logits / 2)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Black and white images, -1 or 1."""
        device = self.logits.device if generator is None else generator.device
        chance = torch.rand(self.logits.shape, generator=generator, device=device).to(self.logits.device)
        return torch.where(chance < torch.sigmoid(self.logits), 1.0, -1.0).to(self.logits.dtype)


@dataclass(frozen=True)
class Gaussian:
    """Independent normal elements (appendix C.2), a density on real numbers.

    Attributes:
        location: mu', (B, C, H, W).
        log_variance: log sigma'^2, of each element or one for all; a shape that broadcasts.
    """

    location: Tensor
    log_variance: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """-1/2 sum of log(2 pi sigma'^2) + (x - mu')^2 / sigma'^2, as (B,) in nats."""
        return _sum_per_image(gaussian_log_density(x, self.location, self.log_variance))

    @property
    def mean(self) -> Tensor:
        """The mean image: mu', where images are."""
        return self.location.clamp(-1, 1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Images with the noise that the decoder sees in them, clipped to [-1, 1]."""
        noise = randn_tensor(
            self.location.shape, generator=generator, device=self.location.device, dtype=self.location.dtype
        )
        return (self.location + torch.exp(0.5 * self.log_variance) * noise).clamp(-1, 1)


@dataclass(frozen=True)
class DiscretizedGaussian:
    """The masses that a `Gaussian` gives to the 256 grey levels k / 127.5 - 1 (Ho et al. 2020, eq. 13)."""

    location: Tensor
    log_variance: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """sum of log P(level of x), as (B,) in nats; at most 0, so a code length."""
        return _sum_per_image(discretized_gaussian_log_likelihood(x, self.location, self.log_variance))

    @property
    def mean(self) -> Tensor:
        """The mean image, but for the rounding to levels."""
        return self.location.clamp(-1, 1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Images on the grid of grey levels."""
        drawn = Gaussian(self.location, self.log_variance).sample(generator)
        return ((drawn + 1) * 127.5).round() / 127.5 - 1


DecoderDistribution = Bernoulli | Gaussian | DiscretizedGaussian


def outputs_per_channel(likelihood: Likelihood) -> int:
    """How many numbers the decoder says of an element: 2 where each has its own sigma', else 1."""
    return 2 if likelihood in ("gaussian", "discretized_gaussian") else 1


def decoder_distribution(
    likelihood: Likelihood, output: Tensor, log_variance: Tensor | None = None
) -> DecoderDistribution:
    """p(x|z) of the decoder's output.

    Args:
        likelihood: one of `Likelihood`.
        output: (B, C, H, W), or (B, 2C, H, W) with the log-variances behind.
        log_variance: of `gaussian_global` and `gaussian_optimal`.
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
    """log of the mean squared error: the one sigma^2 under which images are most probable (arXiv 2006.13202, eq. 6).

    By the envelope theorem the gradient of the loss needs none through it, so there is none: (1,). In training it is
    that of the images computed together, so parts and processes of a batch change it a little.
    """
    error = (x - location.detach()).square().mean()
    return error.clamp(min=_GREY_LEVEL**2).log().view(1)


def bounded_below(value: Tensor, least: float) -> Tensor:
    """least + softplus(value - least): no lower, with a gradient everywhere (arXiv 2006.13202, sec. 3)."""
    return least + F.softplus(value - least)


def _given(log_variance: Tensor | None) -> Tensor:
    if log_variance is None:
        raise ValueError("log_variance is missing: this likelihood has one sigma for all elements")
    return log_variance


def _sum_per_image(values: Tensor) -> Tensor:
    return values.flatten(1).sum(dim=1)
