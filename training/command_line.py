"""The command line of training: it names a recipe, and every key of the recipe is an option."""

import argparse
import inspect
import re
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

import yaml

from hf_ddpm.commands.options import spelled
from hf_ddpm.errors import UserError, quoted
from hf_ddpm.kinds import FAMILY, KINDS, family_of
from hf_ddpm.schedulers.annotations import described
from hf_ddpm.training.family import check_recipe, family_class
from hf_ddpm.training.recipe import Blocks, Recipe, blocks_of, hint, keys_of, read_word

DEFAULT = "mnist"


def parse_command_line(argv: Sequence[str]) -> tuple[Recipe, str | None]:
    """Return the recipe that a command line describes, and the value of `--resume`.

    Every key is an option, such as `--data.image_size 32`; the block can be omitted if only one block has the key, as
    in `--lr 1e-3`.

    Raises:
        UserError: If a recipe, key or option is unknown (the message names the nearest one), or a value has the wrong
            type.
    """
    recipe = read_recipe(_recipe_name(argv))
    blocks = family_class(recipe).blocks
    parser = _parser(blocks)
    options, unknown = parser.parse_known_args([spelled(word, "_") for word in argv])
    if unknown:
        known = [name for action in parser._actions for name in action.option_strings]
        word = unknown[0].split("=")[0]
        if several := [name for name in known if name.endswith(f".{word.removeprefix('--')}")]:
            raise UserError(f"{word} is a key of several blocks: use {' or '.join(several)}")
        raise UserError(f"unknown option {unknown[0]}{hint(word, known)}")
    for dotted, text in vars(options).items():
        if "." in dotted and text is not None:
            block, key = dotted.split(".", 1)
            recipe[block][key] = read_word(text, keys_of(blocks[block])[key].annotation)
    return check_recipe(recipe), options.resume


def read_recipe(name: str) -> Recipe:
    """Read a recipe from a path, or by its name in `training/recipes`; the result has every block of its family."""
    shipped = {
        p.name.removesuffix(".yaml"): p for p in resources.files("hf_ddpm.training").joinpath("recipes").iterdir()
    }
    file = shipped.get(name) or Path(name).expanduser()
    if not file.is_file():
        raise UserError(f"there is no recipe {name!r}: pass a path, or one of {', '.join(sorted(shipped))}")
    try:
        text = file.read_text()
        found, words = yaml.safe_load(text) or {}, yaml.load(text, yaml.BaseLoader) or {}  # every scalar as a string
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {name} is not valid YAML: {quoted(error)}") from error
    if not isinstance(found, dict) or not all(isinstance(block, dict) for block in blocks_of(found).values()):
        known = "; or ".join(", ".join(family_class({FAMILY: family}).blocks) for family in KINDS)
        raise UserError(f"recipe {name} must contain blocks of keys ({known})")
    blocks = family_class(found).blocks
    for block in blocks.keys() & found.keys():
        for key in keys_of(blocks[block]).keys() & found[block].keys():
            if not isinstance(found[block][key], str) and isinstance(word := words[block][key], str):
                found[block][key] = read_word(word, keys_of(blocks[block])[key].annotation)
    return {FAMILY: family_of(found), **{block: {} for block in blocks}, **blocks_of(found)}


def _recipe_name(argv: Sequence[str]) -> str:
    """Return the value of `--recipe`, on which the other options depend."""
    parser = _Parser(prog="train.py", allow_abbrev=False, add_help=False)
    parser.add_argument("--recipe", default=DEFAULT)
    return parser.parse_known_args(argv)[0].recipe


def _parser(blocks: Blocks) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="train.py",
        description="Train from a recipe. Every key of the recipe is an option; these are the options of its family.",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--recipe", default=DEFAULT, help=f"a path, or an included recipe (default: {DEFAULT})")
    parser.add_argument(
        "--resume",
        metavar="auto|latest|FOLDER",
        help="continue a run from its latest undamaged state, or from a given one; auto starts it if there is none",
    )
    owners: dict[str, list[str]] = {}
    for name, block in blocks.items():
        for key in keys_of(block):
            owners.setdefault(key, []).append(name)
    for name, block in blocks.items():
        group = parser.add_argument_group(f"{name}: keywords of {block.constructor.__name__}")
        docs = _argument_docs(block.constructor)
        for key, parameter in keys_of(block).items():
            names = [f"--{name}.{key}"] + ([f"--{key}"] if owners[key] == [name] else [])
            default = "required" if parameter.default is parameter.empty else f"default: {parameter.default}"
            text = f"{docs.get(key, '')} [{described(parameter.annotation)}, {default}]".strip().replace("%", "%%")
            # a flag without a value, such as --push_to_hub, means true
            bare: dict[str, Any] = {"nargs": "?", "const": "true"} if parameter.annotation is bool else {}
            group.add_argument(*names, dest=f"{name}.{key}", metavar="VALUE", help=text, **bare)
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists every option")


def _argument_docs(constructor: Callable[..., Any]) -> dict[str, str]:
    """Return the first sentence on each argument in the `Args:` (or `Parameters:`) section of a docstring."""
    doc = inspect.getdoc(constructor) or ""
    found = re.findall(
        r"^ {4}([a-z_]\w*(?:, [a-z_]\w*)*)(?: \(.*\))?:\s*(.*?)(?:[.;:]\s|\n {4}\S|\n\n|\Z)", doc, re.M | re.S
    )
    return {name: " ".join(text.split()) for names, text in found for name in names.split(", ")}
