"""Reading of JSON configs from untrusted sources: limits on their size, and one error for values of the wrong type."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MOST_BETAS = 2**25  # the largest size of a scheduler's config in bytes, enough for a million betas
MOST_OBJECTS = 10**4  # lists and objects in a file: each takes at least 64 bytes of memory, but only two bytes of text
DEEPEST = 16  # the deepest nesting of lists and objects
# the errors that a value of the wrong type causes
WRONG_KIND = (TypeError, AttributeError, LookupError, ArithmeticError, NameError, NotImplementedError)


def read_config(file: Path, most: int, shown: str) -> dict[str, Any]:
    """Read the JSON object in a file of at most `most` bytes, which error messages call `shown`.

    Raises:
        ValueError: If the file does not contain a JSON object, or is larger than such a file needs to be.
    """
    if file.stat().st_size > most:
        raise ValueError(f"{shown} has {file.stat().st_size} bytes, but at most {most} are allowed")
    text = file.read_bytes()
    objects = text.count(b"{") + text.count(b"[")
    if objects > MOST_OBJECTS:
        raise ValueError(f"{shown} has {objects} lists and objects, but at most {MOST_OBJECTS} are allowed")
    try:
        found = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shown} cannot be read as JSON ({error}): restore it from another copy") from error
    if not isinstance(found, dict):
        raise ValueError(f"{shown} does not contain a JSON object {{...}}: restore it from another copy")
    if _is_deep(found, DEEPEST):
        raise ValueError(f"{shown} nests lists and objects more than {DEEPEST} levels deep, which no config needs")
    return found


@contextmanager
def wrong_kind_as_value_error(source: object) -> Iterator[None]:
    """Raise a `ValueError` in place of the errors that a class raises for config values of the wrong type."""
    try:
        yield
    except WRONG_KIND as error:
        reason = str(error).partition(", but expected one of")[0]  # torch then lists all its signatures
        raise ValueError(
            f"{source}: a value in config.json or scheduler_config.json, or an argument, has the wrong type, such as "
            f"'1000' instead of 1000: correct it ({type(error).__name__}: {reason})"
        ) from error


def _is_deep(value: Any, levels: int) -> bool:
    inside = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deep(entry, levels - 1) for entry in inside if isinstance(entry, (dict, list)))
