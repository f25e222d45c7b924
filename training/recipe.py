"""Recipes: the name of a family and YAML blocks of constructor arguments, which are checked before anything is built.

The keys, types and defaults of a block are those of the constructor's signature, so there is no second list of options.
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
"""The `family`, and the arguments of each of its blocks."""
HISTORY = "history"  # in the recipe.yaml of a run: the changes with which it was resumed


class Block(NamedTuple):
    """What a block of a recipe constructs.

    Attributes:
        constructor: A class or function, whose parameters are the keys.
        supplied: The parameters that the family supplies, which are not keys.
        more: Further keys, which the family itself reads.
    """

    constructor: Callable[..., Any]
    supplied: tuple[str, ...] = ()
    more: tuple[inspect.Parameter, ...] = ()


Blocks = Mapping[str, Block]


def blocks_of(recipe: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return a recipe without the name of its family and the history of its run."""
    return {name: block for name, block in recipe.items() if name not in (FAMILY, HISTORY)}


def check_blocks(recipe: Mapping[str, Any], blocks: Blocks) -> Recipe:
    """Return the recipe with every value converted to its declared type.

    Raises:
        UserError: If a block or key is unknown (the message names the nearest one), a value has the wrong type, or a
            required key is missing.
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
                raise UserError(f"{block}.{key} is missing: set it in the recipe or with --{block}.{key}")
    return {
        block: {
            key: _convert(f"{block}.{key}", value, keys_of(blocks[block])[key].annotation)
            for key, value in values.items()
        }
        for block, values in given.items()
    }


def image_shape(recipe: Recipe) -> tuple[Any, int]:
    """Return the size and the channels of the recipe's images.

    Raises:
        UserError: If there are more channels than a PNG file can have.
    """
    keys = keys_of(Block(ImageData))
    size, channels = (recipe["data"].get(key, keys[key].default) for key in ("image_size", "channels"))
    if not 1 <= channels <= 4:
        raise UserError(f"data.channels={channels} must be 1, 2, 3 or 4, because grids of samples are PNG files")
    return size, channels


@functools.cache
def keys_of(block: Block) -> dict[str, inspect.Parameter]:
    """Return the keys of a block, with resolved annotations."""
    own = [p for name, p in parameters_of(block.constructor).items() if name not in block.supplied]
    return {p.name: p for p in (*block.more, *own)}


def _convert(name: str, value: Any, annotation: Any) -> Any:
    """Convert `value` to its annotated type (1 to 1.0, "1e-4" to a number, a list to a tuple), or raise `UserError`."""
    for candidate in (value, _with_numbers(value)):
        converted = as_annotated(candidate, annotation)
        if converted is not NotImplemented:
            return converted
    raise UserError(f"{name}={value!r} must be {described(annotation)}{did_you_mean(value, choices_of(annotation))}")


def read_word(text: str, annotation: Any) -> Any:
    """Parse a word of the command line, or a plain word of a recipe, for a key of this type.

    A key for text gets the word as it is: `no`, `0042` and `2026-11-28` do not become a bool, a number and a date.
    """
    try:
        value = yaml.safe_load(text) if text.strip() else text
    except yaml.YAMLError:
        value = text
    if re.fullmatch(r"[-+]?\d+", text):
        value = int(text)  # 0042 is not an octal number
    quoted = text[:1] in ("'", '"') and text[:1] == text[-1:]  # like text in YAML and JSON
    for candidate in (_with_numbers(value), text):
        wanted = candidate in choices_of(annotation) or not isinstance(candidate, str) or quoted
        if (wanted or candidate is text) and as_annotated(candidate, annotation) is not NotImplemented:
            return text if candidate is None and text != "null" else candidate
    return value


def _with_numbers(value: Any) -> Any:
    """Convert the numbers that YAML reads as strings, such as 1e-4 without a dot, to floats."""
    if isinstance(value, list):
        return [_with_numbers(entry) for entry in value]
    is_number = isinstance(value, str) and re.fullmatch(r"[-+]?\d+\.?\d*e[-+]?\d+", value)
    return float(value) if is_number else value


def hint(word: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown word: the most similar known word, or the first known ones."""
    return did_you_mean(word, known) or f"; known names include {', '.join(list(known)[:12])}"
