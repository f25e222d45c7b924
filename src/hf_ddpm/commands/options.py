"""What several commands take."""

import argparse
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hf_ddpm.errors import UserError, as_user_error
from hf_ddpm.kinds import kind_of

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    from hf_ddpm.data import ImageData
    from hf_ddpm.data.facts import DataFacts
    from hf_ddpm.pipelines import HFDDGANPipeline, HFDDPMPipeline

P = TypeVar("P", bound="DiffusionPipeline")


def spelled(word: str, sign: str) -> str:
    """A word of the command line; an option with its parts joined by `sign`, a dash or an underscore.

    Commands spell --num-images and recipes --num_images, and each of them understands both.
    """
    name, equals, value = word.partition("=")
    return "--" + re.sub("[-_]", sign, name[2:]) + equals + value if name.startswith("--") else word


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """The checkpoint, first on the command line."""
    parser.add_argument("checkpoint", help="a folder that training saved, or a Hub name")


def add_device(parser: argparse.ArgumentParser) -> None:
    """`--device`."""
    parser.add_argument("--device", help="cpu, cuda, mps (default: the best there is)")


def require_positive(options: argparse.Namespace, *names: str) -> None:
    """Refuse options below 1."""
    for name in names:
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)} must be at least 1")


def require_seed(options: argparse.Namespace) -> None:
    """Refuse a `--seed` outside 0 .. 2^63 - 1, which a torch generator does not take."""
    if not 0 <= options.seed < 2**63:
        raise UserError(f"--seed {options.seed} must be from 0 to {2**63 - 1}")


def require_all_processes(accelerator: "Accelerator") -> None:
    """Refuse processes that do not find each other: each would see all images and write the same file."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise UserError(
            f"the launcher started {started} processes and Accelerate joins {accelerator.num_processes}: launch with "
            "--cpu, or with as many GPUs as processes"
        )


def require_writable(*files: Path) -> None:
    """Refuse what cannot be written before the work, which may take long; a file that is there stays as it is."""
    from hf_ddpm.checkpoint import writing

    for file in files:
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            there = file.exists()
            file.open("a").close()
            if not there:
                file.unlink()


def require_walk(options: argparse.Namespace, pipeline: "HFDDPMPipeline | HFDDGANPipeline") -> int | None:
    """Refuse `--steps` and `--class` that the checkpoint cannot have.

    Returns:
        int | None: the number of the class that `--class` names, if it is given.

    Raises:
        UserError: more steps than it was trained with, a class that it does not know, or one for a network without.
    """
    signature, label = pipeline.class_signature, options.class_label
    with as_user_error():
        if options.steps is not None:
            signature.check_steps(options.steps, f"--steps {options.steps} must be")
        return None if label is None else signature.class_of_word(label, f"--class {label}")


def number_in_unit_interval(word: str) -> float:
    """A type for argparse: from 0 to 1."""
    try:
        number = float(word)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{word!r} must be a number from 0 to 1")
    return number


def require_packages(what: str, *packages: str) -> None:
    """Refuse what needs packages of the extra `measure` that are not installed."""
    for package in packages:
        if find_spec(package) is None:
            raise UserError(f"{what} needs {package}: pip install 'hf_ddpm[measure]'")


def require_pixels(pipeline: Any, command: str) -> None:
    """Refuse a pipeline whose walk is in the latents of a VAE."""
    if kind_of(pipeline).walks and pipeline.vae is not None:
        raise UserError(
            f"{command} looks at pixels, and this model works in the latents of a VAE: sample and edit take it"
        )


def on_device(pipeline: P, name: str | None) -> P:
    """The pipeline on the device `name`, or on the best there is.

    Raises:
        UserError: torch does not know the device, or does not have it.
    """
    from hf_ddpm.sampling import best_device

    device = name or best_device()
    if device.startswith("meta"):
        raise UserError(f"--device {device} computes nothing; the best there is: {best_device()}")
    try:
        return pipeline.to(device)
    except (RuntimeError, AssertionError) as error:  # what torch raises for a device that it does not know or have
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {device}: {reason}; the best there is: {best_device()}") from error


def open_data(source: str, split: str, pipeline: "HFDDPMPipeline", checkpoint: str, **more: Any) -> "ImageData":
    """Images in the network's size and channels, cut and resized as in training where the checkpoint still tells.

    Args:
        source, split: see `ImageData`.
        checkpoint: where the pipeline came from.
        more: of `ImageData`, such as label_column.

    Raises:
        UserError: what cannot be opened, or a network that names no size.
    """
    from hf_ddpm.data import ImageData

    size, channels = size_of_network(pipeline, checkpoint), pipeline.image_channels
    return ImageData(source, split=split, image_size=size, channels=channels, **cut_of_training(checkpoint), **more)


def open_labelled_data(
    source: str, split: str, pipeline: "HFDDPMPipeline", checkpoint: str, *, remedy: str, **more: Any
) -> "ImageData":
    """`open_data` with the labels that a network with classes needs, in `more`'s label_column or the one that is there.

    Raises:
        UserError: what cannot be opened, or labels that are missing or none of the network's; it ends with the remedy.
    """
    num_classes = pipeline.num_classes
    try:
        labels = {"label_column": "auto", "num_classes": num_classes}
        data = open_data(source, split, pipeline, checkpoint, **{**labels, **more})
    except UserError as error:
        more.pop("label_column", None)
        open_data(source, split, pipeline, checkpoint, **more)  # what is wrong without labels too is said here
        reason = str(error).split(";")[0]  # what comes then is the remedy in a recipe
        raise UserError(f"{reason}, and this network has {num_classes} classes: {remedy}") from error
    _check_same_classes(pipeline, data.facts)
    return data


def _check_same_classes(pipeline: "HFDDPMPipeline", data: "DataFacts") -> None:
    """Refuse data whose class names are those of the network under other numbers.

    Raises:
        UserError: which class; or names in natural order for a network that was saved without names, when folders were
            numbered as words.
    """
    known, names = pipeline.class_signature.id2label, data.class_names or ()
    if known is None and data.in_natural_order and [*names] != sorted(names):
        raise UserError(
            f"the checkpoint does not name its classes, so it is not known whether it counted those of the data as "
            f"words or as numbers ({names[0]!r}, {names[1]!r}, ...): rename them so that both orders are one, 01 for 1"
        )
    numbers = {name: label for label, name in (known or {}).items()}
    for label, name in enumerate(names):
        if numbers.get(name, label) != label:
            raise UserError(
                f"class {label} of the data is {name!r}, which is class {numbers[name]} of the network: give data with "
                "the classes of training in their order"
            )


def size_of_network(pipeline: "HFDDPMPipeline", checkpoint: str) -> tuple[int, int]:
    """(H, W) of the images that a checkpoint's network was made for.

    Raises:
        UserError: its config names no size.
    """
    size = pipeline.image_size
    if size is None:
        raise UserError(
            f"the network of {checkpoint!r} has no sample_size, so the size of images is unknown: "
            "write it into unet/config.json"
        )
    return size


def cut_of_training(checkpoint: str) -> dict[str, Any]:
    """`crop_box` and `resize` of the recipe, where the folder of a checkpoint still tells; random crops are centred.

    Raises:
        UserError: a damaged training.json.
    """
    from hf_ddpm.checkpoint import FACTS_FILE, read_object

    file = Path(checkpoint).expanduser() / FACTS_FILE
    remedy = "restore it, or delete it (images are then cropped at the centre)"
    facts = read_object(file, remedy) if file.is_file() else {}
    recipe = facts.get("recipe", {})
    block = recipe.get("data", {}) if isinstance(recipe, dict) else None
    if not isinstance(block, dict):
        raise UserError(f"recipe and its data in {file} must be JSON objects {{...}}: {remedy}")
    cut = {key: block[key] for key in ("crop_box", "resize") if block.get(key) is not None}
    return cut | ({"resize": "crop"} if cut.get("resize") == "random_crop" else {})
