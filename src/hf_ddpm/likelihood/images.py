"""Images whose likelihood is measured: integers on a grid, each with the index that determines its noise."""

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from hf_ddpm.data import ImageData
from hf_ddpm.errors import UserError
from hf_ddpm.sampling import mixed_seed

_ROUNDING = 2.0**-23  # the error of k / 127.5 - 1 in float32, in any order of operations
_READ_AT_ONCE = 64


class Stream(IntEnum):
    """The purpose of random numbers of an image: different streams have unrelated numbers."""

    NOISE = 0
    DEQUANTISATION = 1
    PROBE = 2
    LATENT = 3


class GridImages(NamedTuple):
    """n images as grey levels, which `grid_images` checks and creates.

    levels: k in 0 .. 2^b - 1, int32 (n, C, H, W). labels: int64 (n,), or None. indices: int64 (n,), the numbers that
    determine each image's noise, usually the rows of the dataset. bit_depth: b.
    """

    levels: Tensor
    labels: Tensor | None
    indices: Tensor
    bit_depth: int

    @property
    def bin_width(self) -> float:
        """2 / (2^b - 1), the distance between two grey levels in [-1, 1]."""
        return 2 / (2**self.bit_depth - 1)

    def x_0(self, rows: Tensor) -> Tensor:
        """Return x_0 = 2 k / (2^b - 1) - 1 of some rows, float64 (len(rows), C, H, W), exact to the last bit."""
        largest = 2**self.bit_depth - 1
        return (2 * self.levels[rows].double() - largest) / largest

    def labels_of(self, rows: Tensor) -> Tensor | None:
        """Return the classes of some rows, or None."""
        return None if self.labels is None else self.labels[rows]

    def generator(self, seed: int, row: int, stream: Stream, number: int = 0) -> torch.Generator:
        """Return the generator of one image for one purpose: the same in any batch and any process."""
        return torch.Generator().manual_seed(mixed_seed(seed, int(self.indices[row]), int(stream), number))


def grid_images(
    x_0: Tensor, *, bit_depth: int = 8, labels: Tensor | None = None, indices: Tensor | None = None
) -> GridImages:
    """Check that images lie on the grid 2 k / (2^b - 1) - 1, without which a discretised likelihood has no meaning.

    Args:
        x_0: Float images (n, C, H, W) in [-1, 1]; only the rounding of float32 is tolerated.
        bit_depth: b, from 1 to 16.
        labels: The classes, int64 (n,), for class-conditional networks.
        indices: The numbers that determine the noise of each image, int64 (n,); by default its place in the batch.

    Raises:
        UserError: If the type, the shape or the range is wrong, or if values lie between the levels.
    """
    if not isinstance(x_0, Tensor) or x_0.dtype not in (torch.float32, torch.float64):
        kind = x_0.dtype if isinstance(x_0, Tensor) else type(x_0).__name__
        raise UserError(
            f"images must be a float32 or float64 tensor, not {kind}: hf_ddpm.data.to_float converts pixels"
        )
    if x_0.ndim != 4 or not len(x_0):
        raise UserError(f"images have shape {tuple(x_0.shape)}, but need (n, C, H, W) with n of at least 1")
    if bit_depth not in range(1, 17):
        raise UserError(f"bit_depth={bit_depth} must be an integer from 1 to 16, that of the images: 8 for most files")
    if labels is not None and labels.shape != (len(x_0),):
        raise UserError(f"labels have shape {tuple(labels.shape)}, but need ({len(x_0)},), one for each image")
    if indices is not None and (indices.shape != (len(x_0),) or len(indices.unique()) < len(indices)):
        raise UserError(f"indices of shape {tuple(indices.shape)} must be different integers of shape ({len(x_0)},)")
    levels = torch.stack([_levels(image, row, bit_depth) for row, image in enumerate(x_0)])
    return GridImages(levels, labels, torch.arange(len(x_0)) if indices is None else indices, bit_depth)


def draw_images(data: ImageData, num_images: int, seed: int) -> GridImages:
    """Return the first `num_images` of the dataset in an order shuffled by `seed`, which mixes the classes of folders.

    A larger `num_images` with the same seed gives the same images and more. Nothing is cached, and no others are
    decoded.

    Raises:
        UserError: If the dataset has fewer images or is a stream, or if an image cannot be decoded.
    """
    if data.num_images is None:
        raise UserError(f"{data.source!r} is a stream, from which no fixed set can be drawn: set streaming to false")
    if data.num_images < num_images:
        raise UserError(
            f"{num_images} images are requested, but {data.source!r}, split {data.split!r}, has {data.num_images:,}: "
            "use another split or a larger dataset"
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
    """Return the rows of one of several processes: every `world_size`-th row, starting with `rank`."""
    return torch.arange(rank, num_images, world_size)


def normal_noise(generators: Sequence[torch.Generator], shape: torch.Size) -> Tensor:
    """Draw standard normal noise, float64 (len(generators), *shape), each part from its own generator."""
    return torch.stack([torch.randn(shape, generator=g, dtype=torch.float64) for g in generators])


def _levels(image: Tensor, row: int, bit_depth: int) -> Tensor:
    """Return the grey levels of one image, (C, H, W) int32."""
    x, largest = image.double(), 2**bit_depth - 1
    levels = ((x + 1) * largest / 2).round()
    if not bool(((levels >= 0) & (levels <= largest)).all()):  # also false for NaN
        raise UserError(
            f"image {row} has values from {float(x.min()):.4g} to {float(x.max()):.4g}, outside [-1, 1]: "
            "scale pixels with hf_ddpm.data.to_float"
        )
    off = (x - (2 * levels - largest) / largest).abs()
    if float(off.max()) > _ROUNDING:
        raise UserError(
            f"image {row} contains {float(x.flatten()[off.argmax()])!r}, which is not one of the {2**bit_depth} levels "
            f"2 k / {largest} - 1 for bit_depth={bit_depth}: resize before rounding to integers, never after, or set "
            "the bit depth of the images"
        )
    return levels.to(torch.int32)
