"""Parts of a dataset by their names, in the notation of `datasets`: `train`, `train[:4500]`, `train+test`."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hf_ddpm.errors import UserError, did_you_mean


def check_slice(split: str) -> None:
    """Reject an invalid slice before anything is opened."""
    if not re.search(r"[\[\]]", split):
        return
    import datasets

    try:
        datasets.ReadInstruction.from_spec(split)
    except (ValueError, AssertionError) as error:
        raise UserError(
            f"split {split!r} is not a valid slice; use 'train[:5000]', 'train[5000:]', 'train[-5000:]' or "
            "'train[:90%]'"
        ) from error


def parts_of(split: str, lengths: Mapping[str, int], source: str) -> list[tuple[str, range]]:
    """Return the name and the rows of each part of `split`.

    Args:
        split: The requested split.
        lengths: The number of rows of each existing split.
        source: The name of the dataset in messages.

    Raises:
        UserError: If there is no such split, or it is empty.
    """
    import datasets

    split = "+".join(lengths) if split == "all" else split
    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute(dict(lengths))
    except (ValueError, AssertionError) as error:
        raise split_error(source, split, list(lengths)) from error
    found = [(name, rows) for name, rows in slices(split, parts, lengths) if len(rows)]
    if not found:
        raise empty_error(source, split)
    return found


def slices(split: str, parts: Sequence[Any], lengths: Mapping[str, int]) -> list[tuple[str, range]]:
    """Return the name and rows of each part of `split`; raise a `UserError` for one that ends before it begins."""
    found = []
    for part in parts:
        start, stop = part.from_ or 0, lengths[part.splitname] if part.to is None else part.to
        if stop < start:
            raise UserError(
                f"split {split!r} begins at row {start} and ends before row {stop} of {lengths[part.splitname]}; "
                "use 'train[first:last]' with first below last"
            )
        found.append((part.splitname, range(start, stop)))
    return found


def empty_error(source: str, split: str) -> UserError:
    """Return the error for a split without images."""
    return UserError(f"the dataset {source!r}, split {split!r}, is empty")


def split_error(source: str, split: str, available: Sequence[str]) -> UserError:
    """Return the error for a split that does not exist."""
    return UserError(
        f"there is no split {split!r} in {source!r}; available: {', '.join(sorted(available))}"
        f"{did_you_mean(split, available)}"
    )
