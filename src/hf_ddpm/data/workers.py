"""Images that are decoded when they are needed, by workers of a torch DataLoader, for datasets larger than memory."""

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_ddpm.data.decode import ImageDecoder
from hf_ddpm.data.order import BatchPlan, SampleOrder
from hf_ddpm.data.raw import SEARCH, RawBatch, RawBatches, Shown, collate, crops, first_good
from hf_ddpm.data.resize import Crop

if TYPE_CHECKING:
    from datasets import Dataset

PlannedRow = tuple[int, Crop]


class WorkerStore:
    """Images that are decoded when needed, by `num_workers` processes of a torch DataLoader (0: by this process).

    `pin` puts the batches in pinned memory, for CUDA.
    """

    def __init__(
        self,
        dataset: "Dataset",
        image_column: str,
        decoder: ImageDecoder,
        labels: Tensor | None,
        num_workers: int,
        pin: bool,
    ) -> None:
        self._reader = _RowReader(dataset.select_columns([image_column]), image_column, decoder)
        self._labels = labels
        self._num_workers = num_workers
        self._pin = pin

    def raw_batches(self, plan: BatchPlan) -> RawBatches:
        """Decode the rows of each step, a few steps ahead if there are workers."""
        loader = torch.utils.data.DataLoader(
            self._reader,
            batch_sampler=_PlannedRows(plan, len(self._reader)),
            collate_fn=_as_it_is,
            num_workers=self._num_workers,
            pin_memory=self._pin,
            generator=torch.Generator(),  # its own, since it would otherwise draw from the global one at every start
        )
        for batch in loader:
            labels = None if self._labels is None else self._labels[batch.rows]
            yield batch._replace(labels=labels)


class _RowReader(torch.utils.data.Dataset[Shown]):
    """Random access to decoded rows; can be pickled for DataLoader workers."""

    def __init__(self, images: "Dataset", column: str, decoder: ImageDecoder) -> None:
        self._images, self._column, self._decoder = images, column, decoder

    def __len__(self) -> int:
        return len(self._images)

    def __getitems__(self, items: list[PlannedRow]) -> RawBatch:
        stored = self._images[[row for row, _ in items]][self._column]
        return collate([self._show(row, crop, one) for (row, crop), one in zip(items, stored, strict=True)])

    def _show(self, row: int, crop: Crop, stored: Any) -> Shown:
        rows = ((row + k) % len(self) for k in range(min(SEARCH, len(self))))
        return first_good(
            rows, lambda one: stored if one == row else self._images[one][self._column], self._decoder, crop
        )


class _PlannedRows(torch.utils.data.Sampler[list[PlannedRow]]):
    """A batch sampler: the rows and random crops of this process, one step after another, without end."""

    def __init__(self, plan: BatchPlan, num_images: int) -> None:
        self._plan, self._num_images = plan, num_images

    def __iter__(self) -> Iterator[list[PlannedRow]]:
        plan, order = self._plan, SampleOrder(self._num_images, self._plan.seed)
        for step in itertools.count(plan.start_step):
            first = plan.first_position(step)
            rows = order.rows(first, plan.local_size).tolist()
            yield list(zip(rows, crops(plan.seed, first, plan.local_size), strict=True))


def _as_it_is(batch: Any) -> Any:
    """Return a batch that `__getitems__` has collated already."""
    return batch
