"""The output of every way of reading images: the integer pixels of one step, and the replacement of bad images.

An image that cannot be decoded is replaced by the next row that can be decoded (cyclic, within `SEARCH` rows; in a
stream, within the global batch), so that a bad file moves no other sample, and all processes agree without
communication.
"""

from collections import Counter
from collections.abc import Callable, Generator, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hf_ddpm.data.decode import Decoded, ImageDecoder, Undecodable, UndecodableError, stored_name
from hf_ddpm.data.order import position_uniforms
from hf_ddpm.data.resize import Crop

SEARCH = 100  # the number of rows that are tried from a bad image on


class RawBatch(NamedTuple):
    """This process's part of a step: integer pixels (b, C, H, W), labels and rows int64 (b,), bad images and notes."""

    pixels: Tensor
    labels: Tensor | None
    rows: Tensor
    bad: dict[int, Undecodable]
    notes: dict[str, int]


RawBatches = Generator[RawBatch, None, None]


class Shown(NamedTuple):
    """The image at a position: its row, its pixels, and the bad rows that were skipped."""

    row: int
    decoded: Decoded
    bad: dict[int, Undecodable]


def try_decode(decoder: ImageDecoder, stored: Any, crop: Crop | None = None) -> Decoded | Undecodable:
    """Return the decoded image, or the reason why it cannot be decoded."""
    try:
        return decoder(stored, crop)
    except UndecodableError as error:
        return Undecodable(stored_name(stored), str(error))


def first_good(rows: Iterable[int], read: Callable[[int], Any], decoder: ImageDecoder, crop: Crop | None) -> Shown:
    """Return the first of `rows` that can be decoded, or row -1 and zeros. `read` returns a stored image."""
    bad: dict[int, Undecodable] = {}
    for row in rows:
        decoded = try_decode(decoder, read(row), crop)
        if isinstance(decoded, Decoded):
            return Shown(row, decoded, bad)
        bad[row] = decoded
    return Shown(-1, Decoded(np.zeros((decoder.channels, *decoder.image_size), np.uint8), ()), bad)


def collate(shown: list[Shown]) -> RawBatch:
    """Stack images; a single 16-bit image makes the batch 16-bit."""
    arrays = [one.decoded.pixels for one in shown]
    if any(array.dtype == np.uint16 for array in arrays):
        arrays = [array if array.dtype == np.uint16 else widen(array) for array in arrays]
    bad = {row: reason for one in shown for row, reason in one.bad.items()}
    notes = dict(Counter(note for one in shown for note in one.decoded.notes))  # pinning would double a Counter
    rows = torch.tensor([one.row for one in shown], dtype=torch.int64)
    return RawBatch(torch.from_numpy(np.stack(arrays)), None, rows, bad, notes)


def crops(seed: int, first: int, count: int) -> list[Crop]:
    """Return the random numbers of the crop at each position."""
    return [(across, down, size) for across, down, size in position_uniforms(seed, first, count)[:, 1:].tolist()]


def widen(pixels: np.ndarray) -> np.ndarray:
    """Convert 8-bit values to the 16-bit scale: k * 257, which is the same x in [-1, 1]."""
    return pixels.astype(np.uint16) * np.uint16(257)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to `device`, through pinned memory and without waiting for CUDA."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
