"""Turn errors of libraries while rows are read into one sentence."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from hf_ddpm.errors import FULL_MEMORY, UserError, quoted


@contextmanager
def reading(source: str) -> Iterator[None]:
    """Turn the errors that libraries raise for a damaged file, while rows of a dataset are read, into a `UserError`.

    Raises:
        UserError: If the rows cannot be read.
    """
    import pyarrow as pa
    from datasets.exceptions import DatasetsError

    try:
        yield
    except UserError:
        raise
    except (
        DatasetsError,
        pa.ArrowException,
        OSError,
        ValueError,
        RuntimeError,
        EOFError,
        IndexError,
        KeyError,
        struct.error,
        zlib.error,
    ) as error:
        cause = error.__cause__ if isinstance(error, DatasetsError) and error.__cause__ else error
        if any(words in str(cause) for words in FULL_MEMORY):
            raise
        reason = quoted(cause) or type(cause).__name__
        raise UserError(
            f"the dataset {source!r} cannot be read further ({reason}): one of its files is damaged, download it again"
        ) from error
