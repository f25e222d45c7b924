"""Recipes: a family's name and YAML blocks of constructor keywords, checked before anything is built.

A block's keys, types and defaults are the constructor's own signature, so there is no second list of options to keep.
"""

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import yaml

from hf_ddpm.data import ImageData
from hf_ddpm.errors import UserError, did_you_mean
from hf_ddpm.kinds import FAMILY
from hf_ddpm.schedulers.annotations import as_annotated, choices_of, described, parameters_of

Recipe = dict[str, Any]
"""`family`, and the keywords of each of its blocks."""
HISTORY = "history"  # in the recipe.yaml of a run: what it was resumed with that it did not begin with


class Block(NamedTuple):
    """What a block of a recipe is made into.

    Attributes:
        constructor: a class or function; its parameters are the keys.
        supplied: those that the family supplies, which are no keys.
        more: keys that the family itself reads.
    """

    constructor: Callable[..., Any]
    supplied: tuple[str, ...] = ()
    more: tuple[inspect.Parameter, ...] = ()


Blocks = Mapping[str, Block]


def blocks_of(recipe: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """A recipe without the name of its family and the history of its run."""
    return {name: block for name, block in recipe.items() if name not in (FAMILY, HISTORY)}


def check_blocks(recipe: Mapping[str, Any], blocks: Blocks) -> Recipe:
    """The recipe with every value converted to its declared type.

    Raises:
        UserError: an unknown block or key, with the nearest one; a wrong type; a required key that is missing.
    """
    given = blocks_of(recipe)
    for block, values in given.items():
        if block not in blocks:
            raise UserError(f"unknown block {block!r}{hint(block, blocks)}")
        for key in values:
            if key not in keys_of(blocks[block]):
                raise UserError(f"unknown key {block}.{key}{hint(key, keys_of(blocks[block]))}")
    for block in given:
        for key, parameter in keys_of(blocks[block]).items():
            if parameter.default is parameter.empty and key not in given[block]:
                raise UserError(f"{block}.{key} is missing: give it in the recipe or as --{block}.{key}")
    return {
        block: {
            key: _convert(f"{block}.{key}", value, keys_of(blocks[block])[key].annotation)
            for key, value in values.items()
        }
        for block, values in given.items()
    }


def image_shape(recipe: Recipe) -> tuple[Any, int]:
    """The size and the channels of the recipe's images.

    Raises:
        UserError: more channels than a PNG has.
    """
    keys = keys_of(Block(ImageData))
    size, channels = (recipe["data"].get(key, keys[key].default) for key in ("image_size", "channels"))
    if not 1 <= channels <= 4:
        raise UserError(f"data.channels={channels}: training draws grids as PNG, which have 1, 2, 3 or 4 channels")
    return size, channels


@functools.cache
def keys_of(block: Block) -> dict[str, inspect.Parameter]:
    """The keys of a block, annotations resolved."""
    own = [p for name, p in parameters_of(block.constructor).items() if name not in block.supplied]
    return {p.name: p for p in (*block.more, *own)}


def _convert(name: str, value: Any, annotation: Any) -> Any:
    """`value` as `annotation` wants it (1 as 1.0, "1e-4" as a number, lists as they are), or a `UserError`."""
    for candidate in (value, _with_numbers(value)):
        converted = as_annotated(candidate, annotation)
        if converted is not NotImplemented:
            return converted
    raise UserError(f"{name}={value!r} must be {described(annotation)}{did_you_mean(value, choices_of(annotation))}")


def read_word(text: str, annotation: Any) -> Any:
    """What a word of the command line, or a plain word of a recipe, is for a key of this type.

    A key that takes text gets the word as it stands: `no`, `0042` and `2026-11-28` are no bool, number and date there.
    """
    try:
        value = yaml.safe_load(text) if text.strip() else text
    except yaml.YAMLError:
        value = text
    if re.fullmatch(r"[-+]?\d+", text):
        value = int(text)  # 0042 is no octal number
    quoted = text[:1] in ("'", '"') and text[:1] == text[-1:]  # as YAML and JSON write text
    for candidate in (_with_numbers(value), text):
        wanted = candidate in choices_of(annotation) or not isinstance(candidate, str) or quoted
        if (wanted or candidate is text) and as_annotated(candidate, annotation) is not NotImplemented:
            return text if candidate is None and text != "null" else candidate
    return value


def _with_numbers(value: Any) -> Any:
    """A value of YAML with the numbers that YAML reads as strings: 1e-4, without a dot."""
    if isinstance(value, list):
        return [_with_numbers(entry) for entry in value]
    is_number = isinstance(value, str) and re.fullmatch(r"[-+]?\d+\.?\d*e[-+]?\d+", value)
    return float(value) if is_number else value


def hint(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: the nearest known one, or the first known ones."""
    return did_you_mean(word, known) or f"; known are {', '.join(list(known)[:12])}"
