"""What a push does not tell of this machine, and what only an installed package does."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def pushing(*parts: Any) -> Iterator[None]:
    """Leave only the last name of the place that each part was opened from in its config, until the block ends.

    Classifiers of transformers, whose config is no dictionary, and image processors, which have none, stay as they are.
    """
    configs = [(part, getattr(part, "config", None)) for part in parts]
    there = [part for part, config in configs if isinstance(config, Mapping) and "_name_or_path" in config]
    opened = [(part, part.config["_name_or_path"]) for part in there]
    try:
        for part, place in opened:
            part.register_to_config(_name_or_path=os.path.basename(os.path.normpath(str(place))))
        yield
    finally:
        for part, place in opened:
            part.register_to_config(_name_or_path=place)


def of_package(name: str) -> Any:
    """A function of the package that this file belongs to; None where the file came with a checkpoint (door 3)."""
    return getattr(sys.modules.get(__name__.partition(".")[0]), name, None)
