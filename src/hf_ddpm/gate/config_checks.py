"""Values of configs that a stranger may have written, checked before anything is built of them."""

import reprlib
from collections.abc import Mapping
from typing import Any, Literal, get_origin

from hf_ddpm.schedulers.annotations import alternatives, as_annotated, choices_of, entries_of, parameters_of

MOST, MOST_ENTRIES = 2**13, 64  # of a whole number in a config, of the entries of a list
MOST_CLASSES = 10**5
BOUNDS = dict.fromkeys(("layers_per_block", "num_encoder_blocks", "num_decoder_blocks", "mapping_layers"), 32)
BOUNDS |= {"num_train_timesteps": 10**6, "num_class_embeds": MOST_CLASSES, "num_classes": MOST_CLASSES}
BOUNDS |= {"hidden_sizes": 2**20}  # HFVAE bounds these too
MAY_BE_ZERO = ("downsample_padding", "freq_shift", "steps_offset", "disable_corrector", "latent_dim")
MAY_BE_NONE = ("norm_num_groups",)  # of a UNet whose blocks choose it, though it is annotated as a number


def check_config(file: str, kind: type, config: Mapping[str, Any]) -> None:
    """Refuse what `kind` cannot be made of: values of another kind, and sizes that would fill the memory.

    Raises:
        ValueError: the file, the value and what is allowed.
    """
    if config.get("quantization_config") is not None:
        raise ValueError(f"{file} has a quantization_config, which would load further libraries: take the whole model")
    for name, parameter in parameters_of(kind).items():
        if name not in config:
            continue
        default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        if config[name] != default and not (config[name] is None and name in MAY_BE_NONE):
            _check_value(file, name, config[name], parameter.annotation)
            if name == "id2label":
                check_names(file, config[name])
            elif isinstance(config[name], dict):  # whose kinds of values the constructor knows
                for key, value in config[name].items():
                    _check_value(f"{file}, {name},", key, value, Any)


def check_names(file: str, names: Any) -> None:
    """Refuse names of classes that are no names, or more than there are classes; None is no names.

    Raises:
        ValueError: the file, the value and what is allowed.
    """
    if names is not None and not (isinstance(names, dict) and all(isinstance(name, str) for name in names.values())):
        raise ValueError(f"{file} has id2label={reprlib.repr(names)}, which must be an object of names: mend it")
    if names is not None and len(names) > MOST_CLASSES:
        raise ValueError(f"{file} has id2label of {len(names)} names, and {MOST_CLASSES} are allowed")


def _check_value(file: str, name: str, value: Any, annotation: Any) -> None:
    """Refuse a value of another kind than its annotation, or a whole number out of bounds."""
    entries = entries_of(annotation)
    if isinstance(value, list) and entries is not None:
        longest = BOUNDS["num_train_timesteps"] if name == "trained_betas" else MOST_ENTRIES
        if len(value) > longest:
            raise ValueError(f"{file} has {name} of {len(value)} entries, and {longest} are allowed")
        alike = {*map(type, value)} == {float}  # a million betas, say: they have no bounds, so one stands for all
        for entry in value[:1] if alike else value:
            _check_value(file, name, entry, entries)
        return
    # stock takes one entry for a list of it, and more words than its annotations name
    kinds = [annotation] if entries in (None, Any) else [annotation, entries]
    is_word = isinstance(value, str) and choices_of(annotation)
    if not is_word and all(as_annotated(value, kind) is NotImplemented for kind in kinds):
        allowed = " or ".join(sorted(_words(annotation)))
        raise ValueError(f"{file} has {name}={reprlib.repr(value)}, which must be {allowed}: mend it")
    least, most = 0 if name in MAY_BE_ZERO else 1, BOUNDS.get(name, MOST)
    if type(value) is int and float not in alternatives(annotation) and not least <= value <= most:
        raise ValueError(f"{file} has {name}={reprlib.repr(value)}, allowed are whole numbers from {least} to {most}")


def _words(annotation: Any) -> set[str]:
    """The kinds of JSON that an annotation takes: of `int | tuple[str, ...]` {"int", "list", "str"}."""
    words = {"list", *_words(entries)} if (entries := entries_of(annotation)) is not None else set()
    for choice in alternatives(annotation):
        if get_origin(choice) is Literal:
            words.add("str")
        elif entries_of(choice) is None:
            words.add("None" if choice is type(None) else getattr(choice, "__name__", str(choice)))
    return words
