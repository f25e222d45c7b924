"""What a command does with each kind of checkpoint, and the options that only some kinds take."""

import argparse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_ddpm.errors import UserError
from hf_ddpm.kinds import KINDS, Kind, required, resolve

if TYPE_CHECKING:
    from hf_ddpm.data import ImageData


class Option(NamedTuple):
    """An option of a command that not every kind of checkpoint takes.

    Attributes:
        flag: The option as it is typed.
        default: Its value if it is not given. The parser's own default is None, which means that it was not given.
        keywords: The keyword arguments of `add_argument`.
    """

    flag: str
    default: Any
    keywords: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of the attribute that has the option's value."""
        return self.keywords.get("dest") or self.flag.lstrip("-").replace("-", "_")


def option(flag: str, *, default: Any = None, **keywords: Any) -> Option:
    """Declare an option, as `add_argument` does."""
    return Option(flag, default, keywords)


class KindCommand(NamedTuple):
    """What a command does with one kind of checkpoint; an entry of `KINDS` names it.

    Attributes:
        run: For `sample`, a function (options, pipeline) that returns the keywords of the kind's `draw`. For
            `likelihood`, a function (options, pipeline, accelerator, device) that returns a `Measurement`.
        options: The options of this kind, which the other kinds reject unless they have them too.
        refusal: The message for a checkpoint of a kind that does not take an option: a format string of {flag},
            {value}, {checkpoint} and {kind}, the word of the other kind.
        check: A function (options) that rejects options that are invalid for every checkpoint. It runs before the
            checkpoint is opened, so an option may be None.
    """

    run: Callable[..., Any]
    options: tuple[Option, ...]
    refusal: str = "{flag} is not supported for {checkpoint!r}, which contains a {kind}: leave the option out"
    check: Callable[[argparse.Namespace], None] | None = None


class Measurement(NamedTuple):
    """The measured likelihood of a checkpoint.

    Attributes:
        data: The images.
        report: A function of further facts that returns the dictionary for JSON, which begins with these facts.
        table: A function of this dictionary that returns lines for the terminal.
        draw: A function of this dictionary and a path that draws its picture, or None.
    """

    data: "ImageData"
    report: Callable[..., dict[str, Any]]
    table: Callable[[dict[str, Any]], str]
    draw: Callable[..., None] | None


def commands_of_kinds(command: str) -> dict[str, KindCommand]:
    """Return the `KindCommand` of each kind that has one, by the key of the kind."""
    fields = {key: getattr(kind, command) for key, kind in KINDS.items()}
    return {key: resolve(name) for key, name in fields.items() if name is not None}


def add_kind_options(parser: argparse.ArgumentParser, command: str) -> None:
    """Declare the options of all kinds, in one group per kind."""
    added: set[str] = set()
    for kind in KINDS.values():
        if (name := getattr(kind, command)) is None:
            continue
        of_kind: KindCommand = resolve(name)
        group = parser.add_argument_group(kind.plural)
        for one in of_kind.options:
            if one.name not in added:
                group.add_argument(one.flag, default=None, **one.keywords)
        added |= {one.name for one in of_kind.options}


def check_kind_options(options: argparse.Namespace, command: str) -> None:
    """Reject options that are invalid for a checkpoint of any kind."""
    for of_kind in commands_of_kinds(command).values():
        if of_kind.check is not None:
            of_kind.check(options)


def settle(options: argparse.Namespace, kind: Kind, command: str) -> KindCommand:
    """Return what the command does with this kind of checkpoint, and set the defaults of its options.

    Raises:
        UserError: If the kind does not have this command, or does not take an option that was given.
    """
    found: KindCommand = required(kind, command, options.checkpoint)
    own = {one.name: one.default for one in found.options}
    for other in commands_of_kinds(command).values():
        for one in other.options:
            value = getattr(options, one.name)
            if one.name not in own and value is not None:
                about = {"flag": one.flag, "value": value, "checkpoint": options.checkpoint, "kind": kind.word}
                raise UserError(other.refusal.format(**about))
    for name, default in own.items():
        if getattr(options, name) is None:
            setattr(options, name, default)
    return found
