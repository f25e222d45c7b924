"""Checks of values in configs that may come from a stranger, before anything is built from them."""

import reprlib
from collections.abc import Mapping
from typing import Any, Literal, get_origin

from hf_ddpm.schedulers.annotations import alternatives, as_annotated, choices_of, entries_of, parameters_of

MOST, MOST_ENTRIES = 2**13, 64  # the largest integer in a config, and the most entries of a list
MOST_CLASSES = 10**5
BOUNDS = dict.fromkeys(("layers_per_block", "num_encoder_blocks", "num_decoder_blocks", "mapping_layers"), 32)
BOUNDS |= {"num_train_timesteps": 10**6, "num_class_embeds": MOST_CLASSES, "num_classes": MOST_CLASSES}
BOUNDS |= {"hidden_sizes": 2**20}  # HFVAE bounds these too
MAY_BE_ZERO = ("downsample_padding", "freq_shift", "steps_offset", "disable_corrector", "latent_dim")
MAY_BE_NONE = ("norm_num_groups",)  # a UNet may leave it to its blocks, although it is annotated as a number


def check_config(file: str, kind: type, config: Mapping[str, Any]) -> None:
    """Reject a config that `kind` cannot be built from: values of the wrong type, and sizes that would fill the memory.

    Raises:
        ValueError: If a value is invalid; the message has the file, the value and what is allowed.
    """
    if config.get("quantization_config") is not None:
        raise ValueError(
            f"{file} has a quantization_config, which would load further libraries: use the model without quantization"
        )
    for name, parameter in parameters_of(kind).items():
        if name not in config:
            continue
        default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        if config[name] != default and not (config[name] is None and name in MAY_BE_NONE):
            _check_value(file, name, config[name], parameter.annotation)
            if name == "id2label":
                check_names(file, config[name])
            elif isinstance(config[name], dict):  # the constructor checks the types of its values
                for key, value in config[name].items():
                    _check_value(f"{file}, {name},", key, value, Any)


def check_names(file: str, names: Any) -> None:
    """Reject class names that are not strings, or too many of them; None means that there are no names.

    Raises:
        ValueError: If the names are invalid; the message has the file, the value and what is allowed.
    """
    if names is not None and not (isinstance(names, dict) and all(isinstance(name, str) for name in names.values())):
        raise ValueError(f"{file} has id2label={reprlib.repr(names)}, which must be an object of names: fix it")
    if names is not None and len(names) > MOST_CLASSES:
        raise ValueError(f"{file} has id2label with {len(names)} names, and at most {MOST_CLASSES} are allowed")


def _check_value(file: str, name: str, value: Any, annotation: Any) -> None:
    """Reject a value of another type than its annotation, or an integer out of bounds."""
    entries = entries_of(annotation)
    if isinstance(value, list) and entries is not None:
        longest = BOUNDS["num_train_timesteps"] if name == "trained_betas" else MOST_ENTRIES
        if len(value) > longest:
            raise ValueError(f"{file} has {name} with {len(value)} entries, and at most {longest} are allowed")
        alike = {*map(type, value)} == {float}  # such as a million betas: without bounds, so that one is enough
        for entry in value[:1] if alike else value:
            _check_value(file, name, entry, entries)
        return
    # diffusers accepts one entry instead of a list, and more strings than its annotations have
    kinds = [annotation] if entries in (None, Any) else [annotation, entries]
    is_word = isinstance(value, str) and choices_of(annotation)
    if not is_word and all(as_annotated(value, kind) is NotImplemented for kind in kinds):
        allowed = " or ".join(sorted(_words(annotation)))
        raise ValueError(f"{file} has {name}={reprlib.repr(value)}, which must be {allowed}: fix it")
    least, most = 0 if name in MAY_BE_ZERO else 1, BOUNDS.get(name, MOST)
    if type(value) is int and float not in alternatives(annotation) and not least <= value <= most:
        raise ValueError(f"{file} has {name}={reprlib.repr(value)}, which must be from {least} to {most}")


def _words(annotation: Any) -> set[str]:
    """Return the types that an annotation accepts in JSON: {"int", "list", "str"} for `int | tuple[str, ...]`."""
    words = {"list", *_words(entries)} if (entries := entries_of(annotation)) is not None else set()
    for choice in alternatives(annotation):
        if get_origin(choice) is Literal:
            words.add("str")
        elif entries_of(choice) is None:
            words.add("None" if choice is type(None) else getattr(choice, "__name__", str(choice)))
    return words
