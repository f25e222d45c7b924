"""What a push does not tell of this machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def pushing(*parts: Any) -> Iterator[None]:
    """Leave only the last name of the place that each part was opened from in its config, until the block ends."""
    there = [part for part in parts if part is not None and "_name_or_path" in part.config]
    opened = [(part, part.config["_name_or_path"]) for part in there]
    try:
        for part, place in opened:
            part.register_to_config(_name_or_path=os.path.basename(os.path.normpath(str(place))))
        yield
    finally:
        for part, place in opened:
            part.register_to_config(_name_or_path=place)
