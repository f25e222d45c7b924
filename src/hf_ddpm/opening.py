"""Load saved pipelines and networks after checking their files: what `from_pretrained` does in hf_ddpm."""

import inspect
import os
import reprlib
import sys
from collections.abc import Mapping
from typing import Any

from diffusers import schedulers
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import nn

from hf_ddpm.gate.checked_files import CheckedFiles, is_checked
from hf_ddpm.gate.config_checks import MOST_CLASSES, check_config, check_names
from hf_ddpm.gate.weights import check_weights
from hf_ddpm.models.checked_network import CheckedNetwork
from hf_ddpm.pipelines.classifiers import check_classifier
from hf_ddpm.pipelines.doors import INDEX, OUR_CLASSES
from hf_ddpm.pipelines.opening import CheckedOpening, check_index, class_of_ours, components_of

SCHEDULER_FILE = "scheduler_config.json"
STOCK_CLASSES: dict[str, tuple[type, ...]] = {"unet": (UNet2DModel,), "vae": (AutoencoderKL, AutoencoderTiny)}
FACTS = ("id2label", "null_class")  # the entries of an index about classes, which are not components
GUIDES = ("classifier", "image_processor")  # whose library may differ from that of the saved ones


def open_pipeline(kind: type[CheckedOpening], source: str | os.PathLike, **kwargs: Any) -> Any:
    """Load a pipeline from a folder or a repository; see `kind.from_pretrained`."""
    return open_files(kind, CheckedFiles(source, INDEX, **kwargs), **kwargs)


def open_files(kind: type[CheckedOpening], files: CheckedFiles, **kwargs: Any) -> Any:
    """Load a pipeline as `open_pipeline` does, from opened files, which already take `subfolder` into account."""
    kwargs.pop("subfolder", None)
    if kwargs.get("use_safetensors") is None:
        kwargs["use_safetensors"] = True
    guides = _given_guides(kind, kwargs)
    given = (kwargs.keys() | guides.keys()) & OUR_CLASSES.keys()
    check_files(kind, files, given, kwargs.get("variant"), pickles=not kwargs["use_safetensors"])
    with files.being_opened():
        without = dict.fromkeys(guides)
        pipeline = super(CheckedOpening, kind).from_pretrained(files.folder, **kwargs, **without)  # type: ignore[misc]
    if (classifier := guides.get("classifier")) is not None:
        check_classifier(classifier, guides["image_processor"], pipeline)
        pipeline.register_modules(**guides)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            check_weights(part)
    pipeline.register_to_config(_name_or_path=files.source)
    return pipeline


def open_network(kind: type[CheckedNetwork], source: str | os.PathLike | None, **kwargs: Any) -> Any:
    """Load a network of hf_ddpm from a folder or a repository; that of a pipeline being loaded is already checked."""
    if is_checked(source):
        return super(CheckedNetwork, kind).from_pretrained(source, **kwargs)  # type: ignore[misc]
    subfolder = kwargs.pop("subfolder", None)
    files = CheckedFiles(source, kind.config_name, subfolder, **kwargs)  # type: ignore[attr-defined]
    return files.open_network(kind, **kwargs)


def check_files(
    pipeline: type, files: CheckedFiles, given: set[str], variant: str | None, *, pickles: bool = False
) -> dict[str, str]:
    """Download the components of a pipeline, and reject invalid files.

    Args:
        pipeline: The class of the pipeline.
        files: The files, with the index.
        given: The components that the caller passes, whose files are not read.
        variant: The variant of the weights, which at least one network must have.
        pickles: Whether to use weights that are not safetensors.

    Returns:
        dict: The config file of each component, which is in the root in the oldest layout.

    Raises:
        ValueError, OSError: If a file is invalid or missing, in one sentence.
    """
    index = files.json(INDEX)
    check_index(pipeline, index)
    _check_classes(files.shown(INDEX), index)
    taken = inspect.signature(
        class_of_ours(pipeline)
    ).parameters  # further entries of another pipeline's index are ignored
    # without its VAE a pipeline would show latents as images, and without its classifier it would not be guided
    there = {name for name in ("vae", "classifier") if any(file.startswith(f"{name}/") for file in files.names)}
    needed = {*components_of(pipeline), *(there & taken.keys())} - given
    entries = _entries({name: value for name, value in index.items() if name not in given}, needed)
    kinds = {name: component_class(name, entry) for name, entry in entries.items() if name in taken}
    varied, configs = False, {}
    for name, kind in kinds.items():
        config = SCHEDULER_FILE if issubclass(kind, SchedulerMixin) else "config.json"
        in_root = config in files.names and not any(file.startswith(f"{name}/") for file in files.names)
        place = "" if in_root else name  # the oldest layout has no folders
        configs[name] = file = f"{place}/{config}".lstrip("/")
        if config == SCHEDULER_FILE:
            check_config(files.shown(file), kind, files.json(file))
        else:
            varied |= files.fetch_network(place, kind, variant, pickles=pickles)
    if variant is not None and not varied:
        option = ", --raw and --init_raw" if variant == "raw" else ""
        raise ValueError(
            f"{files.shown(INDEX)} has no weights with variant={variant!r} beside it: leave variant{option} out"
        )
    return configs


def component_class(name: str, entry: tuple[str, str]) -> type:
    """Return the class that an index names for a component, one of a few; no module is imported for it.

    Raises:
        ValueError: If it is another class.
    """
    library, word = entry
    module = OUR_CLASSES[name].get(word)
    if module in sys.modules and library in ("diffusers", module):
        return getattr(sys.modules[module], word)
    stock: dict[str, Any] = {kind.__name__: kind for kind in STOCK_CLASSES.get(name, ())}
    if name == "scheduler" and word.endswith("Scheduler") and word.isidentifier():
        stock = {word: getattr(schedulers, word, None)}
    found = stock.get(word) if library == "diffusers" else None
    if isinstance(found, type) and (name in STOCK_CLASSES or issubclass(found, SchedulerMixin)):
        return found
    known = [*OUR_CLASSES[name], *(["a scheduler of diffusers"] if name == "scheduler" else stock)]
    raise ValueError(
        f"{INDEX} has {name}=[{library[:60]!r}, {word[:60]!r}], which must be one of {', '.join(known) or 'null'}: "
        "no other class is imported for a checkpoint; load a class of your own first, and pass it as "
        f"from_pretrained(..., {name}=...)"
    )


def _given_guides(kind: type[CheckedOpening], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Remove the classifier that a caller passes from the keywords, with its image processor, and return both.

    diffusers replaces a saved component only with one of the same library.
    """
    optional = kind._optional_components  # type: ignore[attr-defined]
    if "classifier" not in kwargs or not {*GUIDES} <= {*optional}:
        return {}
    return {name: kwargs.pop(name, None) for name in GUIDES}


def _check_classes(shown: str, index: Mapping[str, Any]) -> None:
    """Reject class names that are not strings, and a class for "no label" that is not an integer."""
    check_names(shown, index.get("id2label"))
    null_class = index.get("null_class")
    if null_class is not None and not (type(null_class) is int and 0 <= null_class <= MOST_CLASSES):
        raise ValueError(
            f"{shown} has null_class={reprlib.repr(null_class)}, which must be null or an integer from 0 to "
            f"{MOST_CLASSES}: fix it"
        )


def _entries(index: Mapping[str, Any], needed: set[str]) -> dict[str, tuple[str, str]]:
    """Return the components of an index.

    Raises:
        ValueError: If a needed component is missing, a component is unknown or invalid, or the pipeline is code of the
            repository.
    """
    for name in sorted(needed):
        if not index.get(name):
            raise ValueError(f"{INDEX} does not contain {name!r}: restore it from another copy")
    if not isinstance(index["_class_name"], str):
        raise ValueError(
            f"{INDEX} has _class_name={str(index['_class_name'])[:80]}, which is not a class of diffusers or hf_ddpm: "
            "use DiffusionPipeline with custom_pipeline and trust_remote_code=True to run code of a repository"
        )
    entries = {}
    for name, value in index.items():
        is_component = name in OUR_CLASSES or (isinstance(value, (list, dict)) and name not in FACTS)
        if name.startswith("_") or not is_component or (value == [None, None] and name not in needed):
            continue
        if name not in OUR_CLASSES:
            raise ValueError(f"{INDEX} has a component {name[:60]!r}, which must be one of {', '.join(OUR_CLASSES)}")
        if not isinstance(value, list) or [type(word) for word in value] != [str, str]:
            raise ValueError(f"{INDEX} has {name}={reprlib.repr(value)}, which must be [library, class]: restore it")
        entries[name] = (value[0], value[1])
    return entries
