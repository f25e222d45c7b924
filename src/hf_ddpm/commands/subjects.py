"""What `hf-ddpm evaluate` measures, opened from its options: a checkpoint's samples, or existing images."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from hf_ddpm.checkpoint import FACTS_FILE, INDEX, load_checkpoint, read_object
from hf_ddpm.commands.kind_options import commands_of_kinds, settle
from hf_ddpm.commands.options import cropping, on_device, open_data, open_labelled_data
from hf_ddpm.data import ImageData
from hf_ddpm.errors import UserError
from hf_ddpm.evaluation.images import Drawn, Found, ImageSource, Reconstructed, class_order
from hf_ddpm.evaluation.measure import METRICS, OF_DIGITS, Real, check_metrics
from hf_ddpm.evaluation.report import pipeline_conditions
from hf_ddpm.evaluation.shards import keep
from hf_ddpm.kinds import kind_of, required
from hf_ddpm.metrics.extractors import DIGITS, Extractor, inception_extractor, open_extractor
from hf_ddpm.metrics.reference import (
    MNIST_TEST,
    RealFeatures,
    Reference,
    load_reference,
    mnist_test,
    read_npz,
    real_features,
    reference_of,
)
from hf_ddpm.sampling import best_device, count_calls

OTHERWISE = 10_000  # images, if the features are not those of digits
_DIGIT_SIDES = range(28, 33)
_IMAGE_FILES = (".npz", ".parquet", ".arrow", ".tar", ".zip", ".png", ".jpg")
OpenData = Callable[[str, str], ImageData]  # takes a source and a split


@dataclass(frozen=True)
class Subject:
    """What is measured, and what it is compared with.

    Attributes:
        source: The source of the images.
        real: The real images, see `Real`.
        extractor: The extractor of features.
        metrics: The metrics, from `check_metrics`.
        num_images: The number of images, N.
        device: The device of the networks.
        about: The first entries of the record.
        beside: The images whose nearest neighbours are shown beside the samples on the page, their features, and a name
            for them.
        reconstructed: Real images that the model has encoded and decoded, if its kind does that.
        calls: A list that gets the batch size of each network call; None for existing images.
    """

    source: ImageSource
    real: Real
    extractor: Extractor
    metrics: tuple[str, ...]
    num_images: int
    device: str
    about: dict[str, Any]
    beside: tuple[ImageData, RealFeatures, str] | None
    reconstructed: Reconstructed | None = None
    calls: list[int] | None = None


def open_subject(options: argparse.Namespace, accelerator: Accelerator) -> Subject:
    """Open what the options name.

    Raises:
        UserError: If something cannot be opened, or does not fit together.
    """
    several = accelerator.num_processes > 1
    device = str(accelerator.device) if several else options.device or best_device()
    of = _images if names_images(options.checkpoint) else _checkpoint
    return of(options, accelerator, device)


def _images(options: argparse.Namespace, accelerator: Accelerator, device: str) -> Subject:
    """Open existing images."""
    _refuse_sampling(options)
    found = Found(options.checkpoint, channels=1 if options.extractor == DIGITS else None)

    def open_real(source: str, split: str) -> ImageData:
        settings: dict[str, Any] = {"image_size": found.image_size, "channels": found.channels, "cache": "none"}
        settings |= {"split": split, "resize": "none", **cropping(options)}
        return ImageData(source, label_column=_label_column(options), **settings)

    extractor = _extractor(options, found.channels, found.image_size, device)
    metrics = check_metrics(_words(options), extractor)
    real, _, beside = _real(options, accelerator, extractor, open_real)
    count = options.num_images or found.num_images // options.draws
    return Subject(found, real, extractor, metrics, count, device, {"images": options.checkpoint}, beside)


def _checkpoint(options: argparse.Namespace, accelerator: Accelerator, device: str) -> Subject:
    """Open a checkpoint for its samples, and for its reconstructions of real images if its kind has them."""
    loaded = load_checkpoint(options.checkpoint, **({"variant": "raw"} if options.raw else {}))
    pipeline: Any = on_device(loaded, device)
    pipeline.set_progress_bar_config(disable=True)
    kind = kind_of(pipeline)
    keywords = settle(options, kind, "sample").run(options, pipeline)
    draw = required(kind, "draw", options.checkpoint)
    extractor = _extractor(options, pipeline.image_channels, pipeline.image_size, device)
    metrics = check_metrics(_words(options), extractor)
    real, data, beside = _real(options, accelerator, extractor, _opener(options, pipeline))
    count = options.num_images or (OF_DIGITS if extractor.name == DIGITS else OTHERWISE)
    class_of = _class_of(options, pipeline, data, count, keywords.pop("class_label", None))
    conditions = pipeline_conditions(pipeline, keywords) | {
        "seed": options.seed,
        "channels": pipeline.image_channels,
        "averaged_weights": _averaging(options),
    }
    if class_of is not None:
        conditions["classes"] = options.labels or options.class_label or "in-turn"
    drawn = Drawn(pipeline, draw, options.seed, options.batch_size, keywords, class_of, conditions)
    source: ImageSource = drawn
    if options.samples is not None:
        source = keep(drawn, Path(options.samples), options.samples_format or "png", accelerator)
    again = None
    if kind.reconstructs and data is not None:
        order = torch.randperm(data.num_images or 0, generator=torch.Generator().manual_seed(options.seed))
        again = Reconstructed(pipeline, data, order[:count], options.batch_size)
    about = {
        "checkpoint": options.checkpoint,
        "kind": kind.word,
        "weights_sha256": conditions["weights_sha256"][kind.network],
    }
    calls = count_calls(pipeline.noise_network)
    return Subject(source, real, extractor, metrics, count, device, about, beside, again, calls)


def names_images(name: str) -> bool:
    """Return whether a word names images, and not a checkpoint.

    Raises:
        UserError: If it is a folder with a checkpoint in a sub-folder.
    """
    place = Path(name).expanduser()
    if not place.exists():  # a name on the Hub, unless it looks like files
        return any(character in name for character in "*?[") or place.suffix in _IMAGE_FILES
    if place.is_file() or (place / INDEX).is_file():
        return place.is_file()
    if inside := sorted(place.glob(f"*/{INDEX}")):
        raise UserError(f"{name!r} is not a checkpoint: did you mean {inside[0].parent}?")
    return True


def _refuse_sampling(options: argparse.Namespace) -> None:
    """Reject options of sampling, which have no effect on existing images."""
    flags = {"labels": "--labels", "samples": "--samples", "raw": "--raw"}
    flags |= {one.name: one.flag for command in commands_of_kinds("sample").values() for one in command.options}
    for name, flag in flags.items():
        if getattr(options, name) not in (None, False):
            raise UserError(f"{flag} needs a checkpoint, and {options.checkpoint!r} contains images: leave it out")


def _extractor(options: argparse.Namespace, channels: int, size: tuple[int, int] | None, device: str) -> Extractor:
    name = options.extractor
    if name is None:
        if channels != 1 or size is None or not all(side in _DIGIT_SIDES for side in size):
            shape = "any size" if size is None else f"size {size[0]}x{size[1]}"
            raise UserError(
                f"there is no default extractor for images with channels={channels} and {shape}, only for digits: "
                "choose one with --extractor, see docs/evaluation.md"
            )
        name = DIGITS
    if options.preprocessing is None:
        return open_extractor(name, device)
    if not name.endswith(".pth"):
        raise UserError(f"--preprocessing {options.preprocessing} is only for Inception (a .pth file): leave it out")
    extractor = inception_extractor(name, options.preprocessing)
    extractor.network.to(device)
    return extractor


def _words(options: argparse.Namespace) -> list[str]:
    words = [word.strip() for word in options.metrics.split(",") if word.strip()]
    if not words:
        raise UserError(f"--metrics {options.metrics!r} has no metric: choose from {', '.join(METRICS)}")
    return words


def _real(
    options: argparse.Namespace,
    accelerator: Accelerator,
    extractor: Extractor,
    open_real: OpenData,
) -> tuple[Real, ImageData | None, tuple[ImageData, RealFeatures, str] | None]:
    """Open the real images, their data, and the images for the page; the first process computes uncached features."""
    training = data = beside = images = seen = None
    with accelerator.main_process_first():
        if options.training_data is not None:
            training = open_real(options.training_data, options.training_split)
            seen = real_features(training, extractor)
            beside = (training, seen, "training images")
        if options.data is None:
            return Real(_reference(options), training=seen), None, beside
        data = open_real(options.data, options.split)
        images = real_features(data, extractor, options.num_real)
        reference = reference_of(data, extractor, images)
    return Real(reference, images, seen, data.class_names), data, beside or (data, images, "real images")


def _reference(options: argparse.Namespace) -> Reference:
    if options.reference == MNIST_TEST:
        return mnist_test()
    file = Path(options.reference)
    if file.suffix != ".npz":
        return load_reference(file)
    if options.reference_by is None or options.reference_images is None:
        raise UserError(
            f"{file} does not record how its images were resized, or their number: pass --reference-by "
            "guided-diffusion or --reference-by pytorch-fid, and --reference-images"
        )
    return read_npz(file, options.reference_by, options.reference_images)


def _opener(options: argparse.Namespace, pipeline: Any) -> OpenData:
    """Return a function that opens data with the network's size and channels, cropped as in training."""
    more: dict[str, Any] = {"cache": "none", **cropping(options)}
    column = _label_column(options)

    def open_real(source: str, split: str) -> ImageData:
        where = (source, split, pipeline, options.checkpoint)
        if pipeline.num_classes is None or column is None:
            return open_data(*where, label_column=column, **more)
        remedy = "pass the name of the label column with --label-column, or do not ask for classes"
        return open_labelled_data(*where, remedy=remedy, label_column=column, **more)

    return open_real


def _label_column(options: argparse.Namespace) -> str | None:
    """Return the label_column of `ImageData`: labels are opened only if their column is named, or they are needed."""
    needed = options.labels == "data" or "classes" in options.metrics
    return options.label_column or ("auto" if needed else None)


def _class_of(
    options: argparse.Namespace, pipeline: Any, data: ImageData | None, count: int, one: int | None
) -> Callable[[int], int] | None:
    """Return a function from the index of an image to its class; None for a network without classes."""
    number = pipeline.num_classes
    if options.labels is not None and (number is None or one is not None):
        why = "the network has no classes" if number is None else f"--class {one} sets the class of all images"
        raise UserError(f"--labels {options.labels} has no effect: {why}; leave it out")
    if number is None:
        return None
    if one is not None:
        return lambda i: one
    if count < number:
        raise UserError(
            f"the number of images, {count:,}, is less than the number of the network's classes, {number:,}: increase "
            "--num-images, or choose one class with --class"
        )
    labels = None if data is None else data.labels(torch.arange(data.num_images or 0))
    return class_order(options.labels or "in-turn", number, options.seed, labels)


def _averaging(options: argparse.Namespace) -> Any:
    """Return how the weights were averaged, if the checkpoint's folder records it."""
    if options.raw:
        return "not averaged"
    file = Path(options.checkpoint).expanduser() / FACTS_FILE
    recipe = read_object(file).get("recipe") if file.is_file() else None
    return recipe.get("ema", "unknown") if isinstance(recipe, dict) else "unknown"
