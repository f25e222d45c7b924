"""What an `HFVAE` is built of: layers, sizes, and one sentence where they do not fit."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from hf_ddpm.models.image_size import side_unit

Network = Literal["mlp", "conv"]
Activation = Literal["relu", "tanh", "silu"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU}


def mlp(
    inputs: tuple[int, int, int], hidden_sizes: tuple[int, ...], outputs: tuple[int, int, int], activation: Activation
) -> nn.Sequential:
    """Linear layers from (B, *inputs) to (B, *outputs), `activation` between them."""
    sizes = [_numel(inputs), *hidden_sizes, _numel(outputs)]
    layers: list[nn.Module] = [nn.Flatten()]
    for i, o in pairwise(sizes):
        layers += [nn.Linear(i, o), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1], nn.Unflatten(1, outputs))


def unit_scale(mean: Tensor, variance: Tensor) -> float:
    """1 / std of draws of N(mean, variance), over all elements: Var(mean) and the mean of the variance make theirs.

    Raises:
        ValueError: it is not finite.
    """
    scale = float((mean.var(correction=0) + variance.mean()).rsqrt())
    if not 0 < scale < math.inf:  # NaN fails too
        raise ValueError(
            f"the latents have no scale (1 / std is {scale}): training diverged, or all images are encoded alike"
        )
    return scale


def _numel(shape: tuple[int, int, int]) -> int:
    return shape[0] * shape[1] * shape[2]


def check_sizes(**sizes: int | Sequence[int]) -> None:
    """Refuse what is no number, or no numbers, of something."""
    for name, given in sizes.items():
        values = given if isinstance(given, Sequence) else [given]
        if not all(isinstance(value, int) and value >= 1 for value in values):
            said = f"{list(values)} must be whole numbers" if values is given else f"{given} must be a whole number"
            raise ValueError(f"{name}={said} of at least 1")


def check_shape(what: str, given: Tensor, wanted: tuple[int | str, ...], remedy: str = "") -> None:
    """Refuse what is no tensor, or one of another shape than `wanted`, in which a letter stands for any number."""
    needed = f"({', '.join(map(str, wanted))}){remedy}"
    if not isinstance(given, Tensor):
        raise ValueError(f"{what} of type {type(given).__name__} must be a tensor of shape {needed}")
    sides = [want if isinstance(want, int) else side for want, side in zip(wanted, given.shape, strict=False)]
    if given.ndim != len(wanted) or sides != [*given.shape]:
        raise ValueError(f"{what} of shape {tuple(given.shape)} must have shape {needed}")


def each_timestep(timestep: Tensor | int, images: Tensor) -> Tensor:
    """A timestep for all `images` (B, ...), or one for each, as (B,) on their device.

    Raises:
        ValueError: neither.
    """
    t = torch.as_tensor(timestep, device=images.device)
    if t.shape not in ((), (1,), (len(images),)):
        raise ValueError(
            f"timesteps of shape {tuple(t.shape)} must be one number, or one for each of {len(images)} images"
        )
    return t.expand(len(images))


def check_halving(size: Sequence[int], levels: int) -> None:
    """Refuse an image that the levels of convolutions cannot halve."""
    unit = side_unit(levels)
    if any(side % unit or side < unit for side in size):
        raise ValueError(
            f"images of {size[0]}x{size[1]} do not fit {levels} levels: both sides must be multiples of {unit}"
        )


def check_groups(block_out_channels: Sequence[int], norm_num_groups: int) -> None:
    """Refuse widths that the groups do not divide."""
    if any(width % norm_num_groups for width in block_out_channels):
        raise ValueError(
            f"block_out_channels={list(block_out_channels)} must be multiples of norm_num_groups={norm_num_groups}"
        )
