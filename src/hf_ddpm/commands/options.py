"""Options and checks that several commands share."""

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
    """Return a word of the command line, with the parts of an option joined by `sign`, a dash or an underscore.

    Commands use --num-images and recipes --num_images, and each of them accepts both.
    """
    name, equals, value = word.partition("=")
    return "--" + re.sub("[-_]", sign, name[2:]) + equals + value if name.startswith("--") else word


def at_home(word: str) -> str:
    """Return a word of the command line with the home directory in place of `~`, as in `~/x` and `--out=~/x`.

    The shell replaces only the first of these, and none in quotes.
    """
    name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return name + equals + os.path.expanduser(value)


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add the checkpoint, the first argument on the command line."""
    parser.add_argument("checkpoint", help="a folder saved by training, or a Hub name")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add `--device`."""
    parser.add_argument("--device", help="cpu, cuda or mps (default: the best available)")


def add_cropping(parser: "argparse._ActionsContainer", otherwise: str = "") -> None:
    """Add `--resize` and `--crop-box`, which replace what training recorded; `otherwise` is a further default."""
    default = f"default: as in training{otherwise}"
    parser.add_argument("--resize", help=f"crop, pad, stretch or none, for the data ({default})")
    parser.add_argument(
        "--crop-box",
        type=_box,
        metavar="LEFT,TOP,RIGHT,BOTTOM",
        help="box in pixels that is cropped from the data before they are resized, or none (default: as in training)",
    )


def cropping(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `ImageData` that `--resize` and `--crop-box` give."""
    given = {} if options.resize is None else {"resize": options.resize}
    return given if options.crop_box is None else {**given, "crop_box": options.crop_box or None}


def _box(word: str) -> tuple[int, ...]:
    """Parse the edges of a box, for argparse; `none` is the empty tuple."""
    edges = word.split(",")
    if word == "none":
        return ()
    if len(edges) != 4 or not all(edge.strip().isdecimal() for edge in edges):
        raise argparse.ArgumentTypeError(f"{word!r} must be four edges in pixels, such as 0,20,178,198, or none")
    return tuple(map(int, edges))


def require_positive(options: argparse.Namespace, *names: str) -> None:
    """Reject options below 1."""
    for name in names:
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)} must be at least 1")


def require_seed(options: argparse.Namespace) -> None:
    """Reject a `--seed` outside 0 .. 2^63 - 1, which a torch generator does not accept."""
    if not 0 <= options.seed < 2**63:
        raise UserError(f"--seed {options.seed} must be from 0 to {2**63 - 1}")


def require_all_processes(accelerator: "Accelerator") -> None:
    """Reject processes that Accelerate did not join: each would process all images and write the same file."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise UserError(
            f"the launcher set WORLD_SIZE={started}, but Accelerate has num_processes={accelerator.num_processes}: "
            "on a CPU, set ACCELERATE_USE_CPU=true and do not use FSDP; on GPUs, launch one process for each"
        )


def require_writable(*files: Path) -> None:
    """Reject files that cannot be written, before work that may take long; existing files are not changed."""
    from hf_ddpm.checkpoint import writing

    for file in files:
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            there = file.exists()
            file.open("a").close()
            if not there:
                file.unlink()


def require_walk(options: argparse.Namespace, pipeline: "HFDDPMPipeline | HFDDGANPipeline") -> int | None:
    """Reject values of `--steps` and `--class` that the checkpoint does not support.

    Returns:
        int | None: The number of the class that `--class` names, if it is given.

    Raises:
        UserError: If there are more steps than in training, or the network does not have the class, or any classes.
    """
    signature, label = pipeline.class_signature, options.class_label
    with as_user_error():
        if options.steps is not None:
            signature.check_steps(options.steps, f"--steps {options.steps} must be")
        return None if label is None else signature.class_of_word(label, f"--class {label}")


def number_in_unit_interval(word: str) -> float:
    """Parse a number from 0 to 1, for argparse."""
    try:
        number = float(word)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{word!r} must be a number from 0 to 1")
    return number


def require_packages(what: str, *packages: str) -> None:
    """Raise an error if packages of the extra `measure` that `what` needs are not installed."""
    for package in packages:
        if find_spec(package) is None:
            raise UserError(f"{what} needs {package}: install it with pip install 'hf_ddpm[measure]'")


def require_pixels(pipeline: Any, command: str) -> None:
    """Reject a diffusion model that works in the latents of a VAE."""
    if kind_of(pipeline).walks and pipeline.vae is not None:
        raise UserError(
            f"{command} is not supported for a model that works in the latents of a VAE, such as this one: use hf-ddpm "
            "sample or hf-ddpm edit"
        )


def on_device(pipeline: P, name: str | None) -> P:
    """Move the pipeline to the device `name`, or to the best available device.

    Raises:
        UserError: If the device is unknown or not available.
    """
    from hf_ddpm.sampling import best_device

    device = name or best_device()
    if device.startswith("meta"):
        raise UserError(f"--device {device} does not compute anything; the best available device is {best_device()}")
    try:
        return pipeline.to(device)
    except (RuntimeError, AssertionError) as error:  # raised by torch for an unknown or unavailable device
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {device}: {reason}; the best available device is {best_device()}") from error


def open_data(source: str, split: str, pipeline: "HFDDPMPipeline", checkpoint: str, **more: Any) -> "ImageData":
    """Open images with the network's size and channels, cropped and resized as in training if that is recorded.

    Args:
        source, split: As in `ImageData`.
        checkpoint: The folder or Hub name that the pipeline was loaded from.
        more: Further arguments of `ImageData`, such as label_column and those of `cropping`.

    Raises:
        UserError: If the data cannot be opened, or the network's config has no size.
    """
    from hf_ddpm.data import ImageData

    size, channels = size_of_network(pipeline, checkpoint), pipeline.image_channels
    return ImageData(source, split=split, image_size=size, channels=channels, **{**cut_of_training(checkpoint), **more})


def open_labelled_data(
    source: str, split: str, pipeline: "HFDDPMPipeline", checkpoint: str, *, remedy: str, **more: Any
) -> "ImageData":
    """Open data with the labels that a network with classes needs, from label_column in `more` or a detected column.

    Raises:
        UserError: If the data cannot be opened, or the labels are missing or do not fit the network; the message ends
            with the remedy.
    """
    num_classes = pipeline.num_classes
    try:
        labels = {"label_column": "auto", "num_classes": num_classes}
        data = open_data(source, split, pipeline, checkpoint, **{**labels, **more})
    except UserError as error:
        more.pop("label_column", None)
        open_data(source, split, pipeline, checkpoint, **more)  # raises errors that have nothing to do with labels
        reason = str(error).split(";")[0]  # the rest is the remedy for a recipe
        raise UserError(f"{reason}, and this network has {num_classes} classes: {remedy}") from error
    _check_same_classes(pipeline, data.facts)
    return data


def _check_same_classes(pipeline: "HFDDPMPipeline", data: "DataFacts") -> None:
    """Reject data whose class names have other numbers in the network.

    Raises:
        UserError: If a class has another number; or if the network was saved without names, when folders were numbered
            in alphabetical order, and the natural order of the names is another one.
    """
    known, names = pipeline.class_signature.id2label, data.class_names or ()
    if known is None and data.in_natural_order and [*names] != sorted(names):
        raise UserError(
            f"the checkpoint has no class names, so it is unknown whether its classes were sorted as words or as "
            f"numbers ({names[0]!r}, {names[1]!r}, ...): rename those of the data so that both orders agree, 01 for 1"
        )
    numbers = {name: label for label, name in (known or {}).items()}
    for label, name in enumerate(names):
        if numbers.get(name, label) != label:
            raise UserError(
                f"class {label} of the data is {name!r}, which is class {numbers[name]} of the network: use data with "
                "the same classes in the same order as in training"
            )


def size_of_network(pipeline: "HFDDPMPipeline", checkpoint: str) -> tuple[int, int]:
    """Return (H, W) of the images of a checkpoint's network.

    Raises:
        UserError: If its config has no size.
    """
    size = pipeline.image_size
    if size is None:
        raise UserError(
            f"the network of {checkpoint!r} has no sample_size, so the size of images is unknown: "
            "add sample_size to unet/config.json"
        )
    return size


def cut_of_training(checkpoint: str) -> dict[str, Any]:
    """Return `crop_box` and `resize` of the recipe, if they are recorded; random crops become central crops.

    Raises:
        UserError: If training.json is damaged.
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
