"""What values an argument may have: they are held against its annotation, from a recipe, a config or a call."""

import difflib
import functools
import inspect
import reprlib
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

PLAIN = (bool, int, float, str, list, tuple, dict, type(None))  # what a config or a recipe can hold


@functools.cache
def parameters_of(constructor: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a class or a function but for `self`, with resolved annotations; `Any` where there is none."""
    init = inspect.unwrap(constructor.__init__ if inspect.isclass(constructor) else constructor)
    hints = get_type_hints(init)
    parameters = inspect.signature(init).parameters.values()
    return {p.name: p.replace(annotation=hints.get(p.name, Any)) for p in parameters if p.name != "self"}


@functools.cache
def alternatives(annotation: Any) -> tuple[Any, ...]:
    """The types of a union, or the annotation alone."""
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(inner for choice in get_args(annotation) for inner in alternatives(choice))
    return (annotation,)


@functools.cache
def entries_of(annotation: Any) -> Any:
    """The annotation of the entries of a list that the annotation takes, or None if it takes no list."""
    lists = [choice for choice in alternatives(annotation) if _is_list(choice)]
    entries = tuple(entry for choice in lists for entry in get_args(choice) if entry is not Ellipsis)
    return (Union[entries] if entries else Any) if lists else None  # noqa: UP007  # of a tuple of types


def as_annotated(value: Any, annotation: Any) -> Any:
    """The value as its annotation has it (1 as 1.0, a list as a tuple), or `NotImplemented` if it is of another kind.

    A bool is no number here, and a tuple of a fixed length takes lists of that length only.
    """
    for choice in alternatives(annotation):
        found = _as_one(value, choice)
        if found is not NotImplemented:
            return found
    return NotImplemented


def described(annotation: Any) -> str:
    """The annotation in words: "int or a list of int or null"."""
    words = []
    for choice in alternatives(annotation):
        origin = get_origin(choice) or choice
        if origin is Literal:
            words.append("one of " + ", ".join(map(str, get_args(choice))))
        elif origin is type(None):
            words.append("null")
        elif get_args(choice):
            words.append("a list of " + ", ".join(described(a) for a in get_args(choice) if a is not Ellipsis))
        else:
            words.append(getattr(origin, "__name__", str(origin)))
    return " or ".join(dict.fromkeys(words))


def choices_of(annotation: Any) -> list[str]:
    """The words that the annotation names, or none if it leaves them open."""
    return [str(c) for a in alternatives(annotation) if get_origin(a) is Literal for c in get_args(a)]


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise `ValueError`, naming the allowed values and the nearest, unless `value` is one of `choices`."""
    if value in choices:
        return
    # errors.did_you_mean in other words: this file travels with checkpoints and imports nothing of hf_ddpm
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{name}={value!r} is not known, allowed are {', '.join(map(repr, choices))}{hint}")


def check_count(name: str, value: int) -> None:
    """Refuse a number of things that is none.

    Raises:
        ValueError: `name` is no whole number of at least 1.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number of at least 1")


def check_arguments(constructor: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of another kind than the constructor's annotations say.

    Arrays, tensors and numbers of other libraries are not looked at: the constructor converts them.

    Raises:
        ValueError: the argument and what it must be; the nearest word where it takes some.
    """
    for name, parameter in parameters_of(constructor).items():
        value, annotation = arguments[name], parameter.annotation
        if type(value) in PLAIN and as_annotated(value, annotation) is NotImplemented:
            if choices := choices_of(annotation):
                check_choice(name, value, choices)
            raise ValueError(f"{name}={reprlib.repr(value)} must be {described(annotation)}")


def _is_list(choice: Any) -> bool:
    """Whether a type holds what JSON writes as a list: numpy's arrays are such collections too."""
    origin = get_origin(choice) or choice
    return inspect.isclass(origin) and issubclass(origin, Collection) and not issubclass(origin, (str, Mapping))


def _as_one(value: Any, choice: Any) -> Any:
    """`as_annotated` of a type that is no union."""
    origin = get_origin(choice) or choice
    if origin is Any:
        return value
    if origin is Literal:
        return value if value in get_args(choice) else NotImplemented
    if isinstance(value, bool) and origin in (int, float):
        return NotImplemented
    if origin is float and isinstance(value, (float, Real)):
        try:
            return float(value)
        except OverflowError:  # a whole number of 400 digits
            return NotImplemented
    if isinstance(value, (list, tuple)) and _is_list(choice):
        return _as_tuple(value, choice)
    if isinstance(value, str) and _is_list(choice) and not {str, Any} & {*alternatives(entries_of(choice))}:
        return NotImplemented  # a word is a sequence, of letters alone
    return value if inspect.isclass(origin) and isinstance(value, origin) else NotImplemented


def _as_tuple(value: list | tuple, choice: Any) -> Any:
    kinds = get_args(choice)
    if get_origin(choice) is tuple and Ellipsis not in kinds:
        if len(kinds) != len(value):
            return NotImplemented
        items = tuple(map(as_annotated, value, kinds))
    else:
        kind = kinds[0] if kinds else Any
        if {*map(type, value)} == {float} and float in alternatives(kind):  # a million betas, say
            return tuple(value)
        items = tuple(as_annotated(entry, kind) for entry in value)
    return NotImplemented if any(item is NotImplemented for item in items) else items
