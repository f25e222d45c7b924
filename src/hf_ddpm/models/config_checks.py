"""Configs that a stranger may have written, checked before anything is built of them."""

import inspect
import os
import re
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

MOST, MOST_ENTRIES = 2**13, 64  # of a whole number in a config, of the entries of a list
BOUNDS = {"layers_per_block": 32, "num_encoder_blocks": 32, "num_decoder_blocks": 32}
BOUNDS |= {"num_train_timesteps": 10**6, "num_class_embeds": 10**5, "hidden_sizes": 2**20}  # HFVAE bounds these too
MAY_BE_ZERO = ("downsample_padding", "freq_shift", "steps_offset", "disable_corrector")
MAY_BE_NONE = ("norm_num_groups",)  # of a UNet whose blocks choose it, though it is annotated as a number
# what a wrong value ends in
WRONG_KIND = (TypeError, AttributeError, LookupError, ArithmeticError, NameError, NotImplementedError)
NOT_OF_ONE_MODEL = "config.json and the weights are not of one model, restore both from one copy"


def check_config(file: str, kind: type, config: Mapping[str, Any]) -> None:
    """Refuse what `kind` cannot be made of: values of another kind, and sizes that would fill the memory.

    Raises:
        ValueError: the file, the value and what is allowed.
    """
    if config.get("quantization_config") is not None:
        raise ValueError(f"{file} has a quantization_config, which would load further libraries: take the whole model")
    for name, parameter in inspect.signature(kind).parameters.items():
        if name not in config or parameter.annotation is inspect.Parameter.empty:
            continue
        default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        if config[name] != default and not (config[name] is None and name in MAY_BE_NONE):
            _check_value(file, name, config[name], _words(parameter.annotation))


@contextmanager
def building(source: object) -> Iterator[None]:
    """Turn what a class makes of a config that passed `check_config` and still does not fit into a `ValueError`."""
    try:
        yield
    except WRONG_KIND as error:
        reason = str(error).partition(", but expected one of")[0]  # torch goes on with all its signatures
        raise ValueError(
            f"{source}: a value in config.json or scheduler_config.json, or an argument, is of the wrong kind, such as "
            f"'1000' for 1000: mend it ({type(error).__name__}: {reason})"
        ) from error


@contextmanager
def pushing(*parts: Any) -> Iterator[None]:
    """Leave only the last name of the place that each part was opened from in its config, until the block ends."""
    there = [part for part in parts if part is not None and "_name_or_path" in part.config]
    opened = [(part, part.config["_name_or_path"]) for part in there]
    try:
        for part, place in opened:
            part.register_to_config(_name_or_path=os.path.basename(os.path.normpath(str(place))))
        yield
    finally:
        for part, place in opened:
            part.register_to_config(_name_or_path=place)


def check_weights(network: nn.Module) -> None:
    """Refuse a network of which some weights were in no file: diffusers goes on and leaves them without memory.

    A network that a `device_map` spread has none of its own either, and passes.

    Raises:
        ValueError: how many, and one of them.
    """
    missing = [name for name, weight in network.named_parameters() if weight.is_meta]
    if missing and getattr(network, "hf_device_map", None) is None:
        raise ValueError(f"{len(missing)} weights, such as {missing[0]}, are in no file: {NOT_OF_ONE_MODEL}")


def _words(annotation: object) -> set[str]:
    """What an annotation is made of: `int | tuple[int, ...]` is {"int", "list"}."""
    text = annotation.__name__ if type(annotation) is type else str(annotation)
    names = {"Literal": "str", "Optional": "None", "tuple": "list", "Sequence": "list", "ndarray": "list"}
    names |= {word: word for word in ("int", "float", "bool", "str", "list", "None")}
    text = re.sub(r"'[^']*'", "", text)  # the choices of a Literal
    return {kind for word, kind in names.items() if re.search(rf"\b{word}\b", text)}


def _check_value(file: str, name: str, value: Any, words: set[str]) -> None:
    """Refuse a value of another kind than the words say, or a whole number out of bounds."""
    if isinstance(value, list) and "list" in words:
        longest = BOUNDS["num_train_timesteps"] if name == "trained_betas" else MOST_ENTRIES
        if len(value) > longest:
            raise ValueError(f"{file} has {name} of {len(value)} entries, and {longest} are allowed")
        for entry in value:
            _check_value(file, name, entry, words - {"list", "None"})
        return
    kinds: dict[str, Any] = {"int": int, "float": (int, float), "bool": bool, "str": str, "None": type(None)}
    if words and not any(isinstance(value, kinds[word]) for word in words & kinds.keys()):
        allowed = " or ".join(sorted(words))
        raise ValueError(f"{file} has {name}={reprlib.repr(value)}, which must be {allowed}: mend it")
    least, most = 0 if name in MAY_BE_ZERO else 1, BOUNDS.get(name, MOST)
    if type(value) is int and "float" not in words and not least <= value <= most:
        raise ValueError(f"{file} has {name}={reprlib.repr(value)}, allowed are whole numbers from {least} to {most}")
