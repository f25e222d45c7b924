"""Images that are read in order from a stream, for datasets larger than the disk."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hf_ddpm.data.columns import LabelCoder
from hf_ddpm.data.decode import ImageDecoder, stored_bytes
from hf_ddpm.data.order import BatchPlan
from hf_ddpm.data.raw import RawBatches, Shown, collate, crops, first_good
from hf_ddpm.data.resize import Crop
from hf_ddpm.errors import UserError

if TYPE_CHECKING:
    from datasets import IterableDataset


BUFFER_BYTES = 2**28  # the largest size of the stored images in a shuffle buffer


class StreamStore:
    """Images that are read in order from a `datasets.IterableDataset` through a shuffle buffer, once per epoch.

    Epoch e is shuffled with the seed (seed, e). Every process reads the whole stream and decodes its own part. Resuming
    reads the stream up to the position where it was: at most one epoch to find its length, then the part of the epoch
    that was used. `rows` are positions in the endless stream. With `num_workers` above 0, that many threads decode the
    images, two steps ahead.
    """

    def __init__(
        self,
        dataset: "IterableDataset",
        image_column: str,
        decoder: ImageDecoder,
        labels: LabelCoder | None,
        shuffle_buffer: int,
        num_workers: int,
    ) -> None:
        self._dataset = dataset.select_columns([image_column] + ([labels.column] if labels else []))
        self._image_column = image_column
        self._decoder = decoder
        self._labels = labels
        self._shuffle_buffer = shuffle_buffer
        self._num_workers = num_workers

    def raw_batches(self, plan: BatchPlan) -> RawBatches:
        """Read, shuffle and decode one step after another."""
        if self._num_workers == 0:
            return self._read(plan, map)
        return _two_ahead(self._read_with_threads(plan))

    def _read_with_threads(self, plan: BatchPlan) -> RawBatches:
        with ThreadPoolExecutor(self._num_workers) as threads:
            yield from self._read(plan, threads.map)

    def _read(self, plan: BatchPlan, mapper: Callable[..., Iterable[Shown]]) -> RawBatches:
        records = self._records(plan.seed, plan.start_step * plan.batch_size)
        for step in itertools.count(plan.start_step):
            window = list(itertools.islice(records, plan.batch_size))
            start = step * plan.batch_size
            images = _Images(start, [record[self._image_column] for record in window], self._decoder)
            first = plan.first_position(step)
            positions = range(first, first + plan.local_size)
            batch = collate(list(mapper(images.show, positions, crops(plan.seed, first, plan.local_size))))
            yield batch._replace(labels=self._encode(window, start, batch.rows.tolist()))

    def _encode(self, window: list[dict[str, Any]], start: int, rows: list[int]) -> Tensor | None:
        if self._labels is None or -1 in rows:
            return None
        return torch.from_numpy(self._labels.encode([window[row - start][self._labels.column] for row in rows], rows))

    def _records(self, seed: int, start: int) -> Iterator[dict[str, Any]]:
        """Yield records of the endless stream from position `start` on."""
        epoch, skip = 0, start
        while True:
            length = 0
            for record in self._epoch(seed, epoch):
                if length >= skip:
                    yield record
                length += 1
            if length == 0:
                raise UserError(f"the stream ends before its first image (epoch {epoch})")
            epoch, skip = (epoch + 1, 0) if skip < length else divmod(skip, length)

    def _epoch(self, seed: int, epoch: int) -> Iterable[dict[str, Any]]:
        if self._shuffle_buffer < 2:
            return self._dataset
        generator = np.random.default_rng([seed, epoch])
        interleaved = self._dataset.shuffle(
            generator=generator,
            buffer_size=1,  # only the order of the shards: the buffer of `datasets` has no limit in bytes
            max_buffer_input_shards=min(10, self._dataset.num_shards),  # 1: no interleaving, which takes 5 s per epoch
        )
        return _shuffled(interleaved, self._image_column, generator, self._shuffle_buffer)


def _shuffled(
    records: Iterable[dict[str, Any]], image_column: str, generator: np.random.Generator, size: int
) -> Iterator[dict[str, Any]]:
    """Yield records in random order, drawn from a buffer of at most `size` of them and `BUFFER_BYTES`."""
    buffer: list[dict[str, Any]] = []
    num_bytes = 0
    for record in records:
        buffer.append(record)
        num_bytes += stored_bytes(record[image_column])
        while len(buffer) > size or num_bytes > BUFFER_BYTES:
            drawn = int(generator.integers(len(buffer)))
            buffer[drawn], buffer[-1] = buffer[-1], buffer[drawn]
            num_bytes -= stored_bytes(buffer[-1][image_column])
            yield buffer.pop()
    generator.shuffle(buffer)
    yield from buffer


class _Images:
    """A window of stored images, with the rows first .. first + len - 1."""

    def __init__(self, first: int, stored: Sequence[Any], decoder: ImageDecoder) -> None:
        self._first, self._stored, self._decoder = first, stored, decoder

    def show(self, row: int, crop: Crop) -> Shown:
        """Return the image of `row`, or the next one in this window that can be decoded."""
        candidates = [self._first + (row - self._first + k) % len(self._stored) for k in range(len(self._stored))]
        return first_good(candidates, lambda one: self._stored[one - self._first], self._decoder, crop)


def _two_ahead(batches: RawBatches) -> RawBatches:
    """Yield the same batches, read by one thread two steps ahead of their use."""
    reader = ThreadPoolExecutor(1)
    try:
        pending = deque(reader.submit(next, batches) for _ in range(2))
        while True:
            batch = pending.popleft().result()
            pending.append(reader.submit(next, batches))
            yield batch
    finally:
        reader.shutdown(wait=True, cancel_futures=True)
        batches.close()
