"""Building blocks of an `HFVAE`, and checks of sizes and shapes that other networks use too."""

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
    """Build linear layers from (B, *inputs) to (B, *outputs), with `activation` between them."""
    sizes = [_numel(inputs), *hidden_sizes, _numel(outputs)]
    layers: list[nn.Module] = [nn.Flatten()]
    for i, o in pairwise(sizes):
        layers += [nn.Linear(i, o), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1], nn.Unflatten(1, outputs))


def unit_scale(mean: Tensor, variance: Tensor) -> float:
    """Compute 1 / std of draws from N(mean, variance), over all elements; their variance is Var(mean) + mean(variance).

    Raises:
        ValueError: If it is not finite.
    """
    scale = float((mean.var(correction=0) + variance.mean()).rsqrt())
    if not 0 < scale < math.inf:  # NaN fails too
        raise ValueError(
            f"the latents cannot be scaled because 1 / std is {scale}: training has diverged, or all images have the "
            "same latents"
        )
    return scale


def _numel(shape: tuple[int, int, int]) -> int:
    return shape[0] * shape[1] * shape[2]


def check_sizes(**sizes: int | Sequence[int]) -> None:
    """Reject sizes that are not positive whole numbers, or sequences of them."""
    for name, given in sizes.items():
        values = given if isinstance(given, Sequence) else [given]
        if not all(isinstance(value, int) and value >= 1 for value in values):
            said = f"{list(values)} must be whole numbers" if values is given else f"{given} must be a whole number"
            raise ValueError(f"{name}={said} of at least 1")


def check_shape(what: str, given: Tensor, wanted: tuple[int | str, ...], remedy: str = "") -> None:
    """Reject anything but a tensor with the shape `wanted`, in which a letter stands for any number."""
    needed = f"({', '.join(map(str, wanted))}){remedy}"
    if not isinstance(given, Tensor):
        raise ValueError(f"{what} of type {type(given).__name__} must be a tensor of shape {needed}")
    sides = [want if isinstance(want, int) else side for want, side in zip(wanted, given.shape, strict=False)]
    if given.ndim != len(wanted) or sides != [*given.shape]:
        raise ValueError(f"{what} of shape {tuple(given.shape)} must have shape {needed}")


def each_timestep(timestep: Tensor | int, images: Tensor) -> Tensor:
    """Return one timestep for all `images` (B, ...), or one for each, as (B,) on their device.

    Raises:
        ValueError: If there is neither one timestep nor one for each image.
    """
    t = torch.as_tensor(timestep, device=images.device)
    if t.shape not in ((), (1,), (len(images),)):
        raise ValueError(
            f"timesteps of shape {tuple(t.shape)} must be one number, or one for each image of a batch of size "
            f"{len(images)}"
        )
    return t.expand(len(images))


def check_halving(size: Sequence[int], levels: int, patch_size: int = 1) -> None:
    """Reject an image size that the levels of convolutions, on patches of the image, cannot halve."""
    unit = patch_size * side_unit(levels)
    if any(side % unit or side < unit for side in size):
        raise ValueError(
            f"images of size {size[0]}x{size[1]} do not fit a network with {levels} levels: height and width must be "
            f"multiples of {unit}"
        )


def check_levels(
    block_out_channels: Sequence[int], down_block_types: Sequence[str], up_block_types: Sequence[str]
) -> None:
    """Reject widths and block types of a UNet that are not one per level."""
    lengths = len(block_out_channels), len(down_block_types), len(up_block_types)
    if not lengths[0] == lengths[1] == lengths[2] > 0:
        raise ValueError(
            f"the lengths of block_out_channels, down_block_types and up_block_types are {lengths[0]}, {lengths[1]} "
            f"and {lengths[2]}: all must have one entry per level (down from the finest level, up from the coarsest)"
        )


def check_heads(key: str, divisor: int, widths: Sequence[int]) -> None:
    """Reject a number or a width of attention heads, the value of `key`, that does not divide `widths`."""
    if any(width % divisor for width in widths):
        raise ValueError(
            f"{key}={divisor} must divide the channels of the last level and of levels with attention, "
            f"{', '.join(map(str, dict.fromkeys(widths)))}"
        )


def check_groups(block_out_channels: Sequence[int], norm_num_groups: int) -> None:
    """Reject widths that are not multiples of the number of groups."""
    if any(width % norm_num_groups for width in block_out_channels):
        raise ValueError(
            f"block_out_channels={list(block_out_channels)} must be multiples of norm_num_groups={norm_num_groups}"
        )
