"""Parts of a data set by their names: `train`, `train[:4500]`, `train+test`, as `datasets` writes them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hf_ddpm.errors import UserError, did_you_mean


def check_slice(split: str) -> None:
    """Refuse what looks like a slice and is none, before anything is opened."""
    if not re.search(r"[\[\]]", split):
        return
    import datasets

    try:
        datasets.ReadInstruction.from_spec(split)
    except (ValueError, AssertionError) as error:
        raise UserError(
            f"split {split!r} is no slice; write 'train[:5000]', 'train[5000:]', 'train[-5000:]' or 'train[:90%]'"
        ) from error


def parts_of(split: str, lengths: Mapping[str, int], source: str) -> list[tuple[str, range]]:
    """The name and the rows of each part of `split`.

    Args:
        split: what is asked for.
        lengths: of the splits that there are.
        source: as the user named it.

    Raises:
        UserError: there is no such split, or it is empty.
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
    """Split and rows of each absolute instruction of `split`; `UserError` for one that ends before it begins."""
    found = []
    for part in parts:
        start, stop = part.from_ or 0, lengths[part.splitname] if part.to is None else part.to
        if stop < start:
            raise UserError(
                f"split {split!r} begins at row {start} and ends before row {stop} of {lengths[part.splitname]}; "
                "write 'train[first:last]' with first below last"
            )
        found.append((part.splitname, range(start, stop)))
    return found


def empty_error(source: str, split: str) -> UserError:
    """What to say of a split without images."""
    return UserError(f"the data set {source!r}, split {split!r}, is empty")


def split_error(source: str, split: str, available: Sequence[str]) -> UserError:
    """What to say of a split that is not there."""
    return UserError(
        f"there is no split {split!r} in {source!r}; available: {', '.join(sorted(available))}"
        f"{did_you_mean(split, available)}"
    )
