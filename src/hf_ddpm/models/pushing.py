"""Pushing without the paths of this machine, and access to functions that need the installed package."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def pushing(*parts: Any) -> Iterator[None]:
    """Shorten the path that each part was loaded from, in its config, to the last component until the block ends.

    Classifiers from transformers, whose config is not a dictionary, and image processors, which have no config, are
    left unchanged.
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
    """Return a function of the package that this file belongs to; None if the file came with a checkpoint (door 3)."""
    return getattr(sys.modules.get(__name__.partition(".")[0]), name, None)
