"""Recipes: YAML blocks of constructor keywords, checked against those constructors before anything is built.

A block's keys, types and defaults are the constructor's own signature, so there is no second list of options to keep.
"""

import argparse
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import yaml
from diffusers.models.unets.unet_2d import UNet2DModel

from hf_ddpm.data import ImageData
from hf_ddpm.errors import UserError, did_you_mean
from hf_ddpm.models.vae import HFVAE
from hf_ddpm.objectives import ELBOObjective, make_objective
from hf_ddpm.schedulers import HFDDPMScheduler
from hf_ddpm.schedulers.annotations import as_annotated, choices_of, described
from hf_ddpm.training.ema import EMA
from hf_ddpm.training.settings import Checkpoints, Grids, Hub, Latents, Optimization, Sampling, Training

Recipe = dict[str, dict[str, Any]]
Blocks = Mapping[str, Callable[..., Any]]
_LOOP: Blocks = {"optimization": Optimization, "ema": EMA, "training": Training}
_SAVING: Blocks = {"checkpoints": Checkpoints, "hub": Hub}
FAMILIES: Mapping[str, Blocks] = {
    "diffusion": {
        "data": ImageData,
        "latents": Latents,
        "model": UNet2DModel,
        "scheduler": HFDDPMScheduler,
        "objective": make_objective,
        **_LOOP,
        "sampling": Sampling,
        **_SAVING,
    },
    "vae": {
        "data": ImageData,
        "vae": HFVAE,
        "elbo": ELBOObjective,
        **_LOOP,
        "sampling": Grids,
        **_SAVING,
    },
}
DEFAULT = "mnist"
# parameters that the loop supplies, not the recipe
SUPPLIED: Mapping[Callable[..., Any], set[str]] = {
    EMA: {"model"},
    make_objective: {"scheduler"},
    ELBOObjective: {"likelihood", "latent_shape"},
}


def parse_command_line(argv: Sequence[str]) -> tuple[Recipe, str | None]:
    """The recipe that a command line asks for, and what `--resume` said.

    Every key is an option, `--data.image_size 32`; a key that one block alone has also goes without it, `--lr 1e-3`.

    Raises:
        UserError: an unknown recipe, key or option (the nearest is named), or a value of the wrong type.
    """
    recipe = read_recipe(_recipe_name(argv))
    parser = _parser(family_of(recipe))
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        known = [name for action in parser._actions for name in action.option_strings]
        raise UserError(f"unknown option {unknown[0]}{_hint(unknown[0].split('=')[0], known)}")
    for dotted, text in vars(options).items():
        if "." in dotted and text is not None:
            block, key = dotted.split(".", 1)
            recipe[block][key] = _parse_value(text)
    return check_recipe(recipe), options.resume


def read_recipe(name: str) -> Recipe:
    """A recipe by its path, or by the name of one that ships in `training/recipes`, with every block of its family."""
    shipped = {
        p.name.removesuffix(".yaml"): p for p in resources.files("hf_ddpm.training").joinpath("recipes").iterdir()
    }
    if name not in shipped and not Path(name).is_file():
        raise UserError(f"there is no recipe {name!r}: give a path, or one of {', '.join(sorted(shipped))}")
    try:
        blocks = yaml.safe_load((shipped.get(name) or Path(name)).read_text()) or {}
    except yaml.YAMLError as error:
        raise UserError(f"recipe {name} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(blocks, dict) or not all(isinstance(block, dict) for block in blocks.values()):
        known = "; or ".join(", ".join(family) for family in FAMILIES.values())
        raise UserError(f"recipe {name} must hold blocks of keys ({known})")
    recipe: Recipe = {block: {} for block in FAMILIES[family_of(blocks)]}
    return recipe | blocks


def family_of(recipe: Mapping[str, Any]) -> str:
    """What a recipe trains, one of `FAMILIES`: its block `vae` makes it a VAE."""
    return "vae" if "vae" in recipe else "diffusion"


def check_recipe(recipe: Mapping[str, Mapping[str, Any]]) -> Recipe:
    """The recipe with every value converted to its declared type.

    Raises:
        UserError: an unknown block or key, with the nearest one; a wrong type; a required key that is missing.
    """
    blocks = FAMILIES[family_of(recipe)]
    for block, values in recipe.items():
        if block not in blocks:
            raise UserError(f"unknown block {block!r}{_hint(block, blocks)}")
        for key in values:
            if key not in keys_of(blocks[block]):
                raise UserError(f"unknown key {block}.{key}{_hint(key, keys_of(blocks[block]))}")
    for block in recipe:
        for key, parameter in keys_of(blocks[block]).items():
            if parameter.default is parameter.empty and key not in recipe[block]:
                raise UserError(f"{block}.{key} is missing: give it in the recipe or as --{block}.{key}")
    return {
        block: {
            key: _convert(f"{block}.{key}", value, keys_of(blocks[block])[key].annotation)
            for key, value in values.items()
        }
        for block, values in recipe.items()
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
    size, channels = (recipe["data"].get(key, keys_of(ImageData)[key].default) for key in ("image_size", "channels"))
    if not 1 <= channels <= 4:
        raise UserError(f"data.channels={channels}: training draws grids as PNG, which have 1, 2, 3 or 4 channels")
    return size, channels


@functools.cache
def keys_of(constructor: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keys of a block: the parameters of its class or function, annotations resolved. A UNet's has `preset` too."""
    supplied = {"self"} | SUPPLIED.get(constructor, set())
    init = inspect.unwrap(constructor.__init__ if inspect.isclass(constructor) else constructor)
    hints = get_type_hints(init)
    parameters = inspect.signature(init).parameters.values()
    keys = {p.name: p.replace(annotation=hints.get(p.name, Any)) for p in parameters if p.name not in supplied}
    if constructor is UNet2DModel:
        preset = inspect.Parameter("preset", inspect.Parameter.KEYWORD_ONLY, annotation=str)
        keys = {"preset": preset} | keys
    return keys


def _recipe_name(argv: Sequence[str]) -> str:
    """What `--recipe` says: the other options are those of what it trains."""
    parser = _Parser(prog="train.py", allow_abbrev=False, add_help=False)
    parser.add_argument("--recipe", default=DEFAULT)
    return parser.parse_known_args(argv)[0].recipe


def _parser(family: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="train.py",
        description="Train from a recipe. Every key of the recipe is an option; those of its kind are listed here.",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--recipe", default=DEFAULT, help=f"a path, or a shipped recipe (default: {DEFAULT})")
    parser.add_argument("--resume", metavar="latest|FOLDER", help="continue a run from its latest or a given state")
    blocks = FAMILIES[family]
    owners: dict[str, list[str]] = {}
    for block, constructor in blocks.items():
        for key in keys_of(constructor):
            owners.setdefault(key, []).append(block)
    for block, constructor in blocks.items():
        group = parser.add_argument_group(f"{block}: keywords of {constructor.__name__}")
        docs = _argument_docs(constructor)
        for key, parameter in keys_of(constructor).items():
            names = [f"--{block}.{key}"] + ([f"--{key}"] if owners[key] == [block] else [])
            default = "required" if parameter.default is parameter.empty else f"default: {parameter.default}"
            text = f"{docs.get(key, '')} [{described(parameter.annotation)}, {default}]".strip().replace("%", "%%")
            # --push_to_hub without a value says it all
            bare: dict[str, Any] = {"nargs": "?", "const": "true"} if parameter.annotation is bool else {}
            group.add_argument(*names, dest=f"{block}.{key}", metavar="VALUE", help=text, **bare)
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists every option")


def _argument_docs(constructor: Callable[..., Any]) -> dict[str, str]:
    """First sentence on each argument in the `Args:` (or `Parameters:`) section of a docstring."""
    doc = inspect.getdoc(constructor) or ""
    found = re.findall(
        r"^ {4}([a-z_]\w*(?:, [a-z_]\w*)*)(?: \(.*\))?:\s*(.*?)(?:[.;:]\s|\n {4}\S|\n\n|\Z)", doc, re.M | re.S
    )
    return {name: " ".join(text.split()) for names, text in found for name in names.split(", ")}


def _parse_value(text: str) -> Any:
    """A word of the command line as YAML reads it, but for an empty one, which is no null."""
    if not text.strip():
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _convert(name: str, value: Any, annotation: Any) -> Any:
    """`value` as `annotation` wants it (1 as 1.0, "1e-4" as a number, lists as they are), or a `UserError`."""
    for candidate in (value, _with_numbers(value)):
        converted = as_annotated(candidate, annotation)
        if converted is not NotImplemented:
            return converted
    raise UserError(f"{name}={value!r} must be {described(annotation)}{did_you_mean(value, choices_of(annotation))}")


def _with_numbers(value: Any) -> Any:
    """A value of YAML with the numbers that YAML reads as strings: 1e-4, without a dot."""
    if isinstance(value, list):
        return [_with_numbers(entry) for entry in value]
    is_number = isinstance(value, str) and re.fullmatch(r"[-+]?\d+\.?\d*e[-+]?\d+", value)
    return float(value) if is_number else value


def _hint(word: str, known: Iterable[str]) -> str:
    return did_you_mean(word, known) or f"; known are {', '.join(list(known)[:12])}"
