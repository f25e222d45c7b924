"""Shorten the folders, files and addresses in facts, recipes and configs to their last part before they are published.

Fields with a path are recognised by their names; names on the Hub, which are kept, were recorded when they were opened.
"""

import re
from collections.abc import Iterator, Mapping, Set
from typing import Any

# Fields of data, of skipped images, of a recipe's run, VAE and evaluation, of a measurement, of what diffusers loaded.
PLACES = {"source", "file", "output_dir", "vae", "test_source", "reference", "init_from", "checkpoint", "_name_or_path"}
WORDS = {"class_names", "id2label"}  # written by the author of the data: a class may be called /m/01g317
ABSOLUTE = re.compile(r"[/\\~]|[A-Za-z]:[/\\]|file:")
HUB_NAME = re.compile(r"hf://.+|[\w.-]+(/[\w.-]+)?")


def without_places(value: Any, on_the_hub: Set[str] = frozenset(), *, field: str = "") -> Any:
    """Return facts, recipes and configs without the folders of this machine.

    Args:
        value: A value of JSON or YAML.
        on_the_hub: The names that are kept, from `names_on_the_hub`.
        field: The field of the value.
    """
    if isinstance(value, Mapping):
        return {
            key: inner if key in WORDS else without_places(inner, on_the_hub, field=key) for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_places(inner, on_the_hub, field=field) for inner in value]
    if not isinstance(value, str) or value in on_the_hub:
        return value
    key = field.rpartition(".")[2]  # the history of a run contains block.key
    return last_name(value) if key in PLACES or ABSOLUTE.match(value) else value


def names_on_the_hub(facts: Any) -> frozenset[str]:
    """Return every `source` in the facts that was found on the Hub when it was opened; older facts do not record it."""
    return frozenset(name for name in _found(facts) if HUB_NAME.fullmatch(name))


def last_name(place: str) -> str:
    """Return the last part of a path of any operating system, or of an address without its query."""
    place = place.partition("?")[0] if "://" in place else place
    return re.split(r"[/\\]", place.rstrip("/\\"))[-1]


def _found(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if value.get("origin") == "hub" and isinstance(value.get("source"), str):
            yield value["source"]
        value = list(value.values())
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _found(inner)
