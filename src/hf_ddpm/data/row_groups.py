"""Read the parquet files of a dataset of `datasets` one row group at a time.

`datasets` 5 reads the next row groups of a file in advance, which takes 1 GiB of memory for 500 MiB of photos.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from datasets.builder import Key
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.streaming import extend_dataset_builder_for_streaming

if TYPE_CHECKING:
    from datasets import DatasetBuilder

_BATCH_BYTES = 2**23
_BUFFER_BYTES = 2**20  # of a file that is being read


class RowGroups(Parquet):
    """The parquet reader of `datasets` with less memory: about twice the largest row group of a file."""

    def _generate_tables(
        self, files: Sequence[str], row_groups_list: Sequence[Sequence[int] | None]
    ) -> Iterator[tuple[Key, pa.Table]]:
        """Yield the rows of files, of all their row groups or of some, with a key for each of the tables."""
        for number, (path, chosen) in enumerate(zip(files, row_groups_list, strict=True)):
            with open(path, "rb") as file:
                parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES)
                groups = range(parquet.num_row_groups) if chosen is None else chosen
                tables = (table for group in groups for table in self._read_group(parquet, group))
                for k, table in enumerate(tables):
                    yield Key(number, k), self._cast_table(table)

    def _read_group(self, parquet: pq.ParquetFile, group: int) -> Iterator[pa.Table]:
        described = parquet.metadata.row_group(group)
        rows = max(1, described.num_rows * _BATCH_BYTES // max(1, described.total_byte_size))
        columns = self.config.columns
        for batch in parquet.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False):
            yield pa.Table.from_batches([batch])


def read_row_groups(builder: "DatasetBuilder") -> "DatasetBuilder":
    """Return the builder of a dataset, which reads parquet files by row groups; others are returned as they are.

    The rows, their order and the cache of `datasets` remain the same.
    """
    if isinstance(builder, Parquet) and builder.config.filters is None:
        builder.__class__ = RowGroups
        extend_dataset_builder_for_streaming(builder)  # lets `open` in this module read addresses
    return builder
