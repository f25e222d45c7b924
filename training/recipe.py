"""Recipes: a family's name and YAML blocks of constructor keywords, checked before anything is built.

A block's keys, types and defaults are the constructor's own signature, so there is no second list of options to keep.
"""

import functools
import inspect
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from hf_ddpm.data import ImageData
from hf_ddpm.errors import UserError, did_you_mean
from hf_ddpm.kinds import FAMILY

Recipe = dict[str, Any]
"""`family`, and the keywords of each of its blocks."""


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
    """A recipe without the name of its family."""
    return {name: block for name, block in recipe.items() if name != FAMILY}


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


def built(block: str, constructor: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a constructor with a recipe's keywords; what it refuses becomes the user's sentence."""
    try:
        return constructor(*args, **kwargs)
    except ValueError as error:
        raise UserError(f"{block}: {error}") from error


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
    init = inspect.unwrap(block.constructor.__init__ if inspect.isclass(block.constructor) else block.constructor)
    hints = get_type_hints(init)
    parameters = inspect.signature(init).parameters.values()
    own = [p.replace(annotation=hints.get(p.name, Any)) for p in parameters if p.name not in ("self", *block.supplied)]
    return {p.name: p for p in (*block.more, *own)}


def _convert(name: str, value: Any, annotation: Any) -> Any:
    """`value` as `annotation` wants it (1 as 1.0, "1e-4" as a number, lists as they are), or a `UserError`."""
    for choice in _alternatives(annotation):
        converted = _as_type(value, choice)
        if converted is not NotImplemented:
            return converted
    raise UserError(f"{name}={value!r} must be {describe(annotation)}{did_you_mean(str(value), _choices(annotation))}")


def _alternatives(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, types.UnionType):
        return [inner for choice in get_args(annotation) for inner in _alternatives(choice)]
    return [annotation]


def _as_type(value: Any, annotation: Any) -> Any:
    """The value as one plain type, or `NotImplemented` if it is not one."""
    origin = get_origin(annotation) or annotation
    if origin is Any:
        return value
    if origin is Literal:
        return value if value in get_args(annotation) else NotImplemented
    if origin is float and isinstance(value, str) and re.fullmatch(r"[-+]?\d+\.?\d*e[-+]?\d+", value):
        return float(value)  # YAML reads 1e-4, without a dot, as a string
    if origin is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if origin in (int, str, bool, type(None)):
        exact = isinstance(value, origin) and not (origin is int and isinstance(value, bool))
        return value if exact else NotImplemented
    if isinstance(value, (list, tuple)) and inspect.isclass(origin) and issubclass(origin, Sequence):
        inner = [choice for choice in get_args(annotation) if choice is not Ellipsis] or [Any]
        kinds = inner if len(inner) == len(value) else [inner[0]] * len(value)
        items = [
            next((c for k in _alternatives(kind) if (c := _as_type(item, k)) is not NotImplemented), NotImplemented)
            for item, kind in zip(value, kinds, strict=True)
        ]
        fixed = get_origin(annotation) is tuple and Ellipsis not in get_args(annotation) and len(inner) != len(value)
        return NotImplemented if NotImplemented in items or fixed else tuple(items)
    return NotImplemented


def describe(annotation: Any) -> str:
    """What a value of this annotation may be, in words."""
    words = []
    for choice in _alternatives(annotation):
        origin = get_origin(choice) or choice
        if origin is Literal:
            words.append("one of " + ", ".join(map(str, get_args(choice))))
        elif origin is type(None):
            words.append("null")
        elif get_args(choice):
            words.append("a list of " + ", ".join(describe(a) for a in get_args(choice) if a is not Ellipsis))
        else:
            words.append(getattr(origin, "__name__", str(origin)))
    return " or ".join(dict.fromkeys(words))


def hint(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: the nearest known one, or the first known ones."""
    return did_you_mean(word, known) or f"; known are {', '.join(list(known)[:12])}"


def _choices(annotation: Any) -> list[str]:
    return [str(c) for a in _alternatives(annotation) if get_origin(a) is Literal for c in get_args(a)]
