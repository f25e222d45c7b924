"""Images that are decoded once and kept in memory or on the device, for datasets of up to about a gigabyte."""

import itertools
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hf_ddpm.data.decode import ImageDecoder, Undecodable
from hf_ddpm.data.order import BatchPlan, SampleOrder
from hf_ddpm.data.raw import SEARCH, RawBatch, RawBatches, to_device, try_decode, widen

if TYPE_CHECKING:
    from datasets import Dataset

_CHUNK, _CHUNK_BYTES = 512, 2**26  # the most stored images, and bytes of them, that are read at a time
_SMALL = 8192  # bytes of an image file; below, threads wait for each other longer than Pillow decodes without the GIL


class MemoryStore:
    """All images, decoded once, by threads if they are large, and kept as uint8 or uint16 (N, C, H, W)."""

    def __init__(self, dataset: "Dataset", image_column: str, decoder: ImageDecoder, labels: Tensor | None) -> None:
        images = dataset.select_columns([image_column])
        self.bad: dict[int, Undecodable] = {}
        self.notes: Counter[str] = Counter()
        self._labels = labels
        self._pixels = torch.from_numpy(self._decode_all(images, image_column, decoder))
        self._row_of = torch.from_numpy(_next_good_row(len(images), self.bad))

    @property
    def pixels(self) -> Tensor:
        """All images, (N, C, H, W); a row that could not be decoded is zero and is never used."""
        return self._pixels

    def to(self, device: torch.device) -> None:
        """Move the pixels to a device, once; batches are then gathered there."""
        self._pixels = self._pixels.to(device)

    def raw_batches(self, plan: BatchPlan) -> RawBatches:
        """Gather the rows of each step."""
        order = SampleOrder(len(self._row_of), plan.seed)
        for step in itertools.count(plan.start_step):
            rows = self._row_of[torch.from_numpy(order.rows(plan.first_position(step), plan.local_size))]
            labels = None if self._labels is None else self._labels[rows]
            yield RawBatch(_gather(self._pixels, rows), labels, rows, {}, {})

    def _decode_all(self, images: "Dataset", column: str, decoder: ImageDecoder) -> np.ndarray:
        shape = (len(images), decoder.channels, *decoder.image_size)
        pixels = np.zeros(shape, dtype=np.uint8)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            for start, stored in _in_chunks(images, column):
                run = map if _are_small(stored) else threads.map
                for row, decoded in enumerate(run(lambda one: try_decode(decoder, one), stored), start):
                    if isinstance(decoded, Undecodable):
                        self.bad[row] = decoded
                        continue
                    pixels = pixels if pixels.dtype >= decoded.pixels.dtype else widen(pixels)
                    pixels[row] = decoded.pixels if pixels.dtype == decoded.pixels.dtype else widen(decoded.pixels)
                    self.notes.update(decoded.notes)
        return pixels


def _in_chunks(images: "Dataset", column: str) -> Iterator[tuple[int, list[Any]]]:
    """Yield stored images and the row of the first one, as many at a time as their bytes allow."""
    start, size = 0, 8
    while start < len(images):
        stored = images[start : start + size][column]
        yield start, stored
        start += len(stored)
        bytes_of_one = sum(map(len, _files(stored))) // len(stored)
        size = max(1, min(_CHUNK, 4 * size, _CHUNK_BYTES // max(1, bytes_of_one)))


def _files(stored: list[Any]) -> list[bytes]:
    """Return the image files among stored images that are in memory."""
    contents = [one.get("bytes") if isinstance(one, dict) else one for one in stored]
    return [content for content in contents if isinstance(content, bytes)]


def _are_small(stored: list[Any]) -> bool:
    """Return whether all of these are image files in memory with a few kilobytes each."""
    files = _files(stored)
    return len(files) == len(stored) and sum(map(len, files)) < _SMALL * len(files)


def _next_good_row(num_images: int, bad: dict[int, Undecodable]) -> np.ndarray:
    """Return the row to use for every row: itself, or the next one that is not bad (cyclic); -1 if none is near."""
    rows = np.arange(num_images)
    for row in bad:
        near = ((row + k) % num_images for k in range(min(SEARCH, num_images)))
        rows[row] = next((one for one in near if one not in bad), -1)
    return rows


def _gather(pixels: Tensor, rows: Tensor) -> Tensor:
    """Return pixels[rows]; uint16 is viewed as int16, because torch cannot index it."""
    rows = to_device(rows, pixels.device)
    if pixels.dtype == torch.uint16:
        return pixels.view(torch.int16).index_select(0, rows).view(torch.uint16)
    return pixels.index_select(0, rows)
