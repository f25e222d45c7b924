"""Guidance of sampling towards a class, with each formula below its equation.

Bayes' rule says grad log p(x_t | y) = grad log p(x_t) + grad log p(y | x_t). A classifier on noisy images gives the
last term (ADM, arXiv 2105.05233, section 4), and so does the difference of a network with and without the class
(classifier-free guidance, arXiv 2207.12598). A scale of more than 1 trades diversity for fidelity.
"""

import math
import reprlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from hf_ddpm.schedulers.annotations import check_choice

GradientAt = Literal["x_t", "mean"]
GuidanceSchedule = Literal["constant", "linear", "cosine"]
PREDICTIONS = ("epsilon", "sample", "v_prediction")  # what `shift_output` can shift


@dataclass(frozen=True)
class Guidance:
    """The settings of guidance; the keywords are those of a call of the pipeline.

    Args:
        guidance_scale: s of `classifier_free`; 1 disables it.
        guidance_rescale: phi of `rescaled`, in [0, 1]; 0 disables it.
        guidance_interval: (low, high), the timesteps with guidance, both included (arXiv 2404.07724); None is all.
        guidance_schedule: The strength of guidance by timestep: `constant`, or growing from 0 at the noise to twice the
            scale at the image, `linear` or `cosine`, which is the scale on average over t (arXiv 2404.13040).
        classifier_scale: The factor of a classifier's gradient; 0 disables it.
        classifier_gradient: Where the gradient is computed: at `x_t`, as in the code of ADM, or at the `mean` of
            p(x_{t-1} | x_t), at that mean's level of noise, as in its Algorithm 1.
        classifier_max_norm: The largest norm of an image's gradient before it is multiplied; None is no limit.

    Raises:
        ValueError: If a value is invalid.
    """

    guidance_scale: float = 1.0
    guidance_rescale: float = 0.0
    guidance_interval: tuple[int, int] | None = None
    guidance_schedule: GuidanceSchedule = "constant"
    classifier_scale: float = 0.0
    classifier_gradient: GradientAt = "x_t"
    classifier_max_norm: float | None = None

    def __post_init__(self) -> None:
        for name in ("guidance_scale", "guidance_rescale", "classifier_scale"):
            _check_number(name, getattr(self, name))
        if not 0 <= self.guidance_rescale <= 1:
            raise ValueError(f"guidance_rescale={self.guidance_rescale} must lie in [0, 1]; 0 disables it")
        if self.classifier_max_norm is not None:
            _check_number("classifier_max_norm", self.classifier_max_norm)
            if self.classifier_max_norm <= 0:
                raise ValueError(f"classifier_max_norm={self.classifier_max_norm} must be positive or None (no limit)")
        check_choice("guidance_schedule", self.guidance_schedule, get_args(GuidanceSchedule))
        check_choice("classifier_gradient", self.classifier_gradient, get_args(GradientAt))
        if self.guidance_interval is not None:
            _check_interval(self.guidance_interval)

    def share(self, t: int | Tensor, num_timesteps: int) -> float:
        """Return the strength of guidance at the timestep `t` of `num_timesteps`, relative to the scale; 0 is none."""
        if self.guidance_schedule == "constant" and self.guidance_interval is None:
            return 1.0  # without waiting for a timestep on a device
        level = float(t)
        if self.guidance_interval is not None and not self.guidance_interval[0] <= level <= self.guidance_interval[1]:
            return 0.0
        noise = (level + 1) / num_timesteps  # 1 is pure noise
        match self.guidance_schedule:
            case "linear":
                return 2 * (1 - noise)
            case "cosine":
                return 1 + math.cos(math.pi * noise)
            case _:
                return 1.0

    def scales(self, t: int | Tensor, num_timesteps: int) -> tuple[float, float]:
        """Return the scale of `classifier_free` and that of the classifier's gradient at the timestep `t`."""
        share = self.share(t, num_timesteps)
        return 1 + share * (self.guidance_scale - 1), share * self.classifier_scale


def classifier_free(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """eps_u + s (eps_c - eps_u): s = 0 is without the class, 1 with it, and larger values extrapolate.

    Ho and Salimans (arXiv 2207.12598, eq. 6) write it with w = s - 1. Predictions of x_0, v and the mean are affine in
    eps, so that the same line guides them. Shapes (B, C, H, W).
    """
    return unconditional + scale * (conditional - unconditional)


def rescaled(guided: Tensor, conditional: Tensor, share: float) -> Tensor:
    """phi sd(eps_c) / sd(eps) eps + (1 - phi) eps, each image with its own standard deviations (B, C, H, W).

    Lin et al. 2024 (arXiv 2305.08891, eq. 15 and 16): large scales make a prediction too wide, and images too bright.
    """
    dims = tuple(range(1, guided.ndim))
    ratio = conditional.std(dims, keepdim=True) / guided.std(dims, keepdim=True)
    return share * ratio * guided + (1 - share) * guided


def gradient(log_probability: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """grad_x log p(y | x), (B, C, H, W) in float32 or better, for images that do not affect each other.

    The log-probabilities are summed over the batch, so that one backward pass gives the gradient of every image. No
    graph is kept, and the caller may be in `torch.no_grad` or `torch.inference_mode`.

    Args:
        log_probability: A function that maps images (B, C, H, W) to their log-probabilities (B,).
        x: The images at which the gradient is computed.

    Raises:
        ValueError: If the gradient is not finite.
    """
    with torch.inference_mode(False), torch.enable_grad():
        at = x.detach().clone().to(torch.promote_types(x.dtype, torch.float32)).requires_grad_()
        (found,) = torch.autograd.grad(log_probability(at).sum(), at)
    if not torch.isfinite(found).all():
        if not torch.isfinite(at).all():
            raise ValueError("x_t is not finite: the weights of the network have diverged")
        raise ValueError(
            "the gradient of the classifier is not finite: its weights have diverged, or its precision is too low, "
            "load it with dtype=torch.float32"
        )
    return found


def clipped_norm(score: Tensor, max_norm: float | None) -> Tensor:
    """Shorten the score of each image to a norm of at most `max_norm`; None leaves it unchanged."""
    if max_norm is None:
        return score
    norms = torch.linalg.vector_norm(score, dim=tuple(range(1, score.ndim)), keepdim=True)
    return score * (max_norm / norms.clamp(min=torch.finfo(score.dtype).tiny)).clamp(max=1)


def shift_output(
    output: Tensor,
    score: Tensor,
    x_t: Tensor,
    alpha_bar: float,
    prediction_type: str,
    clip_range: float | None = None,
) -> Tensor:
    """Shift eps in a network's output by -sqrt(1 - alpha_bar) score (ADM, Algorithm 2), for any diffusers solver.

    x_0 moves by (1 - alpha_bar) / sqrt(alpha_bar) score, v by -sqrt((1 - alpha_bar) / alpha_bar) score. If alpha_bar is
    0 the output is unchanged, because x_t is pure noise there.

    Args:
        output: The output, (B, C, H, W), or (B, 2C, H, W) with a learned variance in the second half, which is left
            unchanged.
        score: What is added to grad log q(x_t), shaped as `x_t`.
        x_t: The input of the network, (B, C, H, W).
        alpha_bar: alpha_bar at the level of x_t.
        prediction_type: `epsilon`, `sample` or `v_prediction`.
        clip_range: An x_0 within [-clip_range, clip_range] stays within, and one outside moves no further away; None
            is no limit.

    Raises:
        ValueError: If the prediction type is not one of these.
    """
    check_choice("prediction_type", prediction_type, PREDICTIONS)
    if alpha_bar <= 0:
        return output
    alpha, sigma = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    prediction, variance = output[:, : x_t.shape[1]].to(score.dtype), output[:, x_t.shape[1] :]
    shift = sigma**2 / alpha * score
    if clip_range is not None:
        x_0 = x_0_of(prediction, x_t, alpha_bar, prediction_type)
        low, high = x_0.clamp(max=-clip_range), x_0.clamp(min=clip_range)  # an x_0 outside may only come closer
        shift = torch.minimum(torch.maximum(x_0 + shift, low), high) - x_0
    from_x_0 = {"epsilon": -alpha / sigma, "sample": 1.0, "v_prediction": -1 / sigma}[prediction_type]
    return torch.cat([(prediction + from_x_0 * shift).to(output.dtype), variance], dim=1)


def x_0_of(prediction: Tensor, x_t: Tensor, alpha_bar: float, prediction_type: str) -> Tensor:
    """Return the x_0 that a prediction implies at x_t; types are as in `shift_output`, all shapes (B, C, H, W)."""
    alpha, sigma = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    match prediction_type:
        case "epsilon":
            return (x_t - sigma * prediction) / alpha
        case "sample":
            return prediction
        case _:  # "v_prediction"
            return alpha * x_t - sigma * prediction


def _check_number(name: str, value: Any) -> None:
    try:
        is_finite = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number with 400 digits
        is_finite = False
    if not is_finite:
        raise ValueError(f"{name}={reprlib.repr(value)} must be a finite number")


def _check_interval(interval: Any) -> None:
    numbers = isinstance(interval, list | tuple) and [isinstance(end, Real) for end in interval] == [True, True]
    if not numbers or not interval[0] <= interval[1]:
        raise ValueError(f"guidance_interval={interval!r} must be two timesteps (low, high), such as (0, 500)")


UNGUIDED = Guidance()
GUIDANCE = tuple(field.name for field in fields(Guidance))
