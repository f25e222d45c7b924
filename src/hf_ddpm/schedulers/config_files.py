"""Configs in JSON that a stranger may have written: read within bounds, and one sentence where they fit no class."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MOST_BETAS = 2**25  # bytes of a scheduler's config: those of a million betas
MOST_OBJECTS = 10**4  # lists and objects in a file: 64 bytes and more each, whose text has two
DEEPEST = 16  # of lists in lists
# what a wrong value ends in
WRONG_KIND = (TypeError, AttributeError, LookupError, ArithmeticError, NameError, NotImplementedError)


def read_config(file: Path, most: int, shown: str) -> dict[str, Any]:
    """The JSON object of a file of at most so many bytes, which a sentence calls `shown`.

    Raises:
        ValueError: it holds something else, or more than such a file needs.
    """
    if file.stat().st_size > most:
        raise ValueError(f"{shown} has {file.stat().st_size} bytes, and {most} are allowed")
    text = file.read_bytes()
    objects = text.count(b"{") + text.count(b"[")
    if objects > MOST_OBJECTS:
        raise ValueError(f"{shown} has {objects} lists and objects, and {MOST_OBJECTS} are allowed")
    try:
        found = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shown} cannot be read as JSON ({error}): restore it from another copy") from error
    if not isinstance(found, dict):
        raise ValueError(f"{shown} holds no JSON object {{...}}: restore it from another copy")
    if _is_deep(found, DEEPEST):
        raise ValueError(f"{shown} nests more than {DEEPEST} lists and objects, which no config does")
    return found


@contextmanager
def wrong_kind_as_value_error(source: object) -> Iterator[None]:
    """Turn what a class makes of a config whose values it does not take into a `ValueError`."""
    try:
        yield
    except WRONG_KIND as error:
        reason = str(error).partition(", but expected one of")[0]  # torch goes on with all its signatures
        raise ValueError(
            f"{source}: a value in config.json or scheduler_config.json, or an argument, is of the wrong kind, such as "
            f"'1000' for 1000: mend it ({type(error).__name__}: {reason})"
        ) from error


def _is_deep(value: Any, levels: int) -> bool:
    inside = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deep(entry, levels - 1) for entry in inside if isinstance(entry, (dict, list)))
