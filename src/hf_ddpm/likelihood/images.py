"""The images whose likelihood is asked: whole numbers on their grid, each with the index that fixes its noise."""

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from hf_ddpm.data import ImageData
from hf_ddpm.errors import UserError
from hf_ddpm.sampling import mixed_seed

_ROUNDING = 2.0**-23  # of k / 127.5 - 1 computed in float32, in whatever order
_READ_AT_ONCE = 64


class Stream(IntEnum):
    """What random numbers of an image are for: other streams, unrelated numbers."""

    NOISE = 0
    DEQUANTISATION = 1
    PROBE = 2
    LATENT = 3


class GridImages(NamedTuple):
    """n images as grey levels. `grid_images` checks and makes them.

    levels: k in 0 .. 2^b - 1, int32 (n, C, H, W). labels: int64 (n,), or None. indices: int64 (n,), the numbers that
    fix each image's noise, as a rule rows of the data set. bit_depth: b.
    """

    levels: Tensor
    labels: Tensor | None
    indices: Tensor
    bit_depth: int

    @property
    def bin_width(self) -> float:
        """2 / (2^b - 1), the distance of two grey levels in [-1, 1]."""
        return 2 / (2**self.bit_depth - 1)

    def x_0(self, rows: Tensor) -> Tensor:
        """x_0 = 2 k / (2^b - 1) - 1 of some rows, float64 (len(rows), C, H, W), exact to its last bit."""
        largest = 2**self.bit_depth - 1
        return (2 * self.levels[rows].double() - largest) / largest

    def labels_of(self, rows: Tensor) -> Tensor | None:
        """The classes of some rows."""
        return None if self.labels is None else self.labels[rows]

    def generator(self, seed: int, row: int, stream: Stream, number: int = 0) -> torch.Generator:
        """The generator of one image for one purpose: the same in any batch and any process."""
        return torch.Generator().manual_seed(mixed_seed(seed, int(self.indices[row]), int(stream), number))


def grid_images(
    x_0: Tensor, *, bit_depth: int = 8, labels: Tensor | None = None, indices: Tensor | None = None
) -> GridImages:
    """Check that images lie on the grid 2 k / (2^b - 1) - 1, on which alone a discretised likelihood means anything.

    Args:
        x_0: float (n, C, H, W) in [-1, 1]; what float32 rounds is forgiven, nothing else.
        bit_depth: b, from 1 to 16.
        labels: int64 (n,), for class-conditional networks.
        indices: int64 (n,), what fixes the noise of each image; its place in the batch unless given.

    Raises:
        UserError: another type, shape or range, or values between the levels.
    """
    if not isinstance(x_0, Tensor) or x_0.dtype not in (torch.float32, torch.float64):
        kind = x_0.dtype if isinstance(x_0, Tensor) else type(x_0).__name__
        raise UserError(
            f"images are {kind}: give a float32 or float64 tensor, hf_ddpm.data.to_float makes it of pixels"
        )
    if x_0.ndim != 4 or not len(x_0):
        raise UserError(f"images have shape {tuple(x_0.shape)}: give (n, C, H, W) with n of at least 1")
    if bit_depth not in range(1, 17):
        raise UserError(f"bit_depth={bit_depth} must be a whole number within 1..16, the images' own: 8 for most files")
    if labels is not None and labels.shape != (len(x_0),):
        raise UserError(f"labels have shape {tuple(labels.shape)}: give ({len(x_0)},), one for each image")
    if indices is not None and (indices.shape != (len(x_0),) or len(indices.unique()) < len(indices)):
        raise UserError(f"indices of shape {tuple(indices.shape)} must be {len(x_0)} different whole numbers")
    levels = torch.stack([_levels(image, row, bit_depth) for row, image in enumerate(x_0)])
    return GridImages(levels, labels, torch.arange(len(x_0)) if indices is None else indices, bit_depth)


def draw_images(data: ImageData, num_images: int, seed: int) -> GridImages:
    """The first `num_images` of the data set in an order that `seed` shuffles, so that classes in sorted folders mix.

    More images of the same seed are the same images and others. Nothing is cached, so no more than these are decoded.

    Raises:
        UserError: fewer images in the data set, a stream, or an image that cannot be decoded.
    """
    if data.num_images is None:
        raise UserError(f"{data.source!r} is a stream, of which no fixed set can be drawn: set streaming to false")
    if data.num_images < num_images:
        raise UserError(
            f"{num_images} images are asked for and {data.source!r}, split {data.split!r}, has {data.num_images:,}: "
            "take another split or a larger data set"
        )
    size = min(_READ_AT_ONCE, num_images)
    batches = data.batches(batch_size=size, seed=seed)
    drawn = [batch for batch, _ in zip(batches, range(-(-num_images // size)), strict=False)]
    batches.close()
    x_0, indices = (torch.cat(parts)[:num_images] for parts in zip(*((b.x_0, b.indices) for b in drawn), strict=True))
    labels = [b.labels for b in drawn if b.labels is not None]
    return grid_images(
        x_0, bit_depth=data.bit_depth, labels=torch.cat(labels)[:num_images] if labels else None, indices=indices
    )


def share(num_images: int, rank: int, world_size: int) -> Tensor:
    """The rows that one of several processes takes: every `world_size`-th from `rank` on."""
    return torch.arange(rank, num_images, world_size)


def normal_noise(generators: Sequence[torch.Generator], shape: torch.Size) -> Tensor:
    """Standard normal noise, float64 (len(generators), *shape), each part from its own generator."""
    return torch.stack([torch.randn(shape, generator=g, dtype=torch.float64) for g in generators])


def _levels(image: Tensor, row: int, bit_depth: int) -> Tensor:
    """The grey levels of one image, (C, H, W) int32."""
    x, largest = image.double(), 2**bit_depth - 1
    levels = ((x + 1) * largest / 2).round()
    if not bool(((levels >= 0) & (levels <= largest)).all()):  # NaN is neither
        raise UserError(
            f"image {row} has values from {float(x.min()):.4g} to {float(x.max()):.4g}, outside [-1, 1]: "
            "scale pixels by hf_ddpm.data.to_float"
        )
    off = (x - (2 * levels - largest) / largest).abs()
    if float(off.max()) > _ROUNDING:
        raise UserError(
            f"image {row} holds {float(x.flatten()[off.argmax()])!r}, which is none of the {2**bit_depth} levels "
            f"2 k / {largest} - 1 of {bit_depth} bits: resize before rounding to integers, never after, or give the "
            "images' own bit depth"
        )
    return levels.to(torch.int32)
