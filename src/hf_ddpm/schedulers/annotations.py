"""Checks of argument values, from a recipe, a config or a call, against the annotations of the parameters."""

import difflib
import functools
import inspect
import reprlib
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

PLAIN = (bool, int, float, str, list, tuple, dict, type(None))  # the types that a config or a recipe can contain


@functools.cache
def parameters_of(constructor: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a class or a function without `self`, with resolved annotations (`Any` by default)."""
    init = inspect.unwrap(constructor.__init__ if inspect.isclass(constructor) else constructor)
    hints = get_type_hints(init)
    parameters = inspect.signature(init).parameters.values()
    return {p.name: p.replace(annotation=hints.get(p.name, Any)) for p in parameters if p.name != "self"}


@functools.cache
def alternatives(annotation: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the annotation itself if it is not a union."""
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(inner for choice in get_args(annotation) for inner in alternatives(choice))
    return (annotation,)


@functools.cache
def entries_of(annotation: Any) -> Any:
    """Return the annotation of the entries if the annotation accepts a list, or None if it does not."""
    lists = [choice for choice in alternatives(annotation) if _is_list(choice)]
    entries = tuple(entry for choice in lists for entry in get_args(choice) if entry is not Ellipsis)
    return (Union[entries] if entries else Any) if lists else None  # noqa: UP007  # a union of a tuple of types


def as_annotated(value: Any, annotation: Any) -> Any:
    """Convert a value to its annotated type (1 to 1.0, a list to a tuple), or return `NotImplemented` if it is another.

    A bool is not a number here, and a tuple of fixed length accepts only lists of that length.
    """
    for choice in alternatives(annotation):
        found = _as_one(value, choice)
        if found is not NotImplemented:
            return found
    return NotImplemented


def described(annotation: Any) -> str:
    """Describe an annotation in words, such as "int or a list of int or null"."""
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
    """Return the choices that the annotation lists, or an empty list if it lists none."""
    return [str(c) for a in alternatives(annotation) if get_origin(a) is Literal for c in get_args(a)]


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise a `ValueError` with the allowed values and the closest match unless `value` is one of `choices`."""
    if value in choices:
        return
    # like errors.did_you_mean, but this file is copied into checkpoints and imports nothing from hf_ddpm
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, choices))}{hint}")


def check_count(name: str, value: int) -> None:
    """Check that a count is a positive whole number.

    Raises:
        ValueError: If `value` is not a whole number of at least 1.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number of at least 1")


def check_arguments(constructor: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Check the types of arguments against the constructor's annotations.

    Arrays, tensors and numbers from other libraries are not checked: the constructor converts them.

    Raises:
        ValueError: If an argument has another type than its annotation, or is not one of the annotated choices.
    """
    for name, parameter in parameters_of(constructor).items():
        value, annotation = arguments[name], parameter.annotation
        if type(value) in PLAIN and as_annotated(value, annotation) is NotImplemented:
            if choices := choices_of(annotation):
                check_choice(name, value, choices)
            raise ValueError(f"{name}={reprlib.repr(value)} must be {described(annotation)}")


def _is_list(choice: Any) -> bool:
    """Return whether JSON has values of this type as lists: NumPy arrays are such collections too."""
    origin = get_origin(choice) or choice
    return inspect.isclass(origin) and issubclass(origin, Collection) and not issubclass(origin, (str, Mapping))


def _as_one(value: Any, choice: Any) -> Any:
    """`as_annotated` for a type that is not a union."""
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
        except OverflowError:  # a whole number with 400 digits
            return NotImplemented
    if isinstance(value, (list, tuple)) and _is_list(choice):
        return _as_tuple(value, choice)
    if isinstance(value, str) and _is_list(choice) and not {str, Any} & {*alternatives(entries_of(choice))}:
        return NotImplemented  # a string is a sequence too, but only of characters
    return value if inspect.isclass(origin) and isinstance(value, origin) else NotImplemented


def _as_tuple(value: list | tuple, choice: Any) -> Any:
    kinds = get_args(choice)
    if get_origin(choice) is tuple and Ellipsis not in kinds:
        if len(kinds) != len(value):
            return NotImplemented
        items = tuple(map(as_annotated, value, kinds))
    else:
        kind = kinds[0] if kinds else Any
        if {*map(type, value)} == {float} and float in alternatives(kind):  # such as a million betas
            return tuple(value)
        items = tuple(as_annotated(entry, kind) for entry in value)
    return NotImplemented if any(item is NotImplemented for item in items) else items
