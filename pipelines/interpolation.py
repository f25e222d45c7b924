"""Interpolation between tensors, and checks of calls that mix two images."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Interpolation = Literal["lerp", "slerp"]


def slerp(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """Interpolate latents spherically, each image separately (DDIM, eq. 67); the sine weights preserve the norm.

    Args:
        first, second: Latents, (B, ...), such as x_T of a sampler.
        weight: The weight of `second`: 0 is `first`, 1 is `second`.

    Returns:
        Tensor: The interpolated latents, shaped as `first`. Nearly parallel latents are mixed linearly, which is the
        limit there, and so is a latent of zeros, which has no direction.
    """
    a, b = first.flatten(1).cpu().double(), second.flatten(1).cpu().double()  # the CPU always supports float64
    cosine = (a * b).sum(dim=1, keepdim=True) / (a.norm(dim=1, keepdim=True) * b.norm(dim=1, keepdim=True))
    theta = cosine.nan_to_num(1).clamp(-1, 1).acos()  # (B, 1)
    parallel = theta.sin() < 1e-6
    sine = torch.where(parallel, 1, theta.sin())
    from_a = torch.where(parallel, 1 - weight, ((1 - weight) * theta).sin() / sine)
    from_b = torch.where(parallel, weight, (weight * theta).sin() / sine)
    return (from_a * a + from_b * b).to(first).view(first.shape)


def shares_of(weights: Sequence[float]) -> list[float]:
    """Return the weights of the second image as numbers.

    Raises:
        ValueError: If they are not a list of numbers in [0, 1].
    """
    try:
        shares = [float(weight) for weight in weights]
    except (TypeError, ValueError):
        shares = [-1.0]
    if not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"weights={weights!r} must be a list of numbers in [0, 1], the weights of the second image")
    return shares


def check_pairs(first: Tensor, second: Tensor) -> None:
    """Reject two batches that do not form pairs.

    Raises:
        ValueError: If their shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"images of shapes {tuple(first.shape)} and {tuple(second.shape)} do not form pairs: pass equal numbers of "
            "images of the same size"
        )
