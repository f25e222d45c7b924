"""`hf-ddpm sample`: draw images from a checkpoint."""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ddpm.commands.kind_options import add_kind_options, check_kind_options, settle
from hf_ddpm.commands.options import (
    add_checkpoint,
    add_device,
    on_device,
    require_positive,
    require_seed,
    require_writable,
)
from hf_ddpm.errors import UserError, as_user_error
from hf_ddpm.kinds import kind_of, required

if TYPE_CHECKING:
    from PIL.Image import Image


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_checkpoint(parser)
    parser.add_argument("-n", "--num-images", type=int, default=64, help="number of images (default: 64)")
    parser.add_argument("--seed", type=int, default=0, help="image i depends on the seed and i alone (default: 0)")
    parser.add_argument("--batch-size", type=int, default=64, help="number of images per batch (default: 64)")
    add_device(parser)
    parser.add_argument(
        "--out", default="grid.png", help="a .png file for one grid, or a new folder for one .png per image"
    )
    add_kind_options(parser, "sample")


def run(options: argparse.Namespace) -> None:
    """Write a grid, or one PNG per image, batch by batch."""
    _check(options)

    from hf_ddpm.checkpoint import load_checkpoint
    from hf_ddpm.sampling import IMAGE_NAME, count_calls, name_of_sampler

    pipeline: Any = on_device(load_checkpoint(options.checkpoint), options.device)
    kind = kind_of(pipeline)
    keywords = settle(options, kind, "sample").run(options, pipeline)
    channels = pipeline.image_channels
    if channels > 4:
        raise UserError(f"the network has {channels} channels, and a PNG has 1 to 4: sample tensors in Python")
    out = Path(options.out)
    require_writable(out if out.suffix else out / IMAGE_NAME.format(0))
    calls = count_calls(pipeline.noise_network)
    draw = required(kind, "draw", options.checkpoint)
    images = draw(pipeline, range(options.num_images), seed=options.seed, batch_size=options.batch_size, **keywords)
    in_turn = keywords.get("class_label") is None
    _write(_in_sentences(images), out, pipeline.num_classes if in_turn else None)
    how = f", sampler: {name_of_sampler(pipeline, keywords.get('eta'))}" if kind.walks else ""
    each = sum(calls) // options.num_images
    print(f"written: {options.out} (images: {options.num_images}{how}, network calls per image: {each})")


def _write(images: "Iterator[Image]", out: Path, num_classes: int | None) -> None:
    """Write one grid of all images, or each image to a file as soon as it is drawn.

    Args:
        num_classes: How many classes the images show in turn; None if they do not.
    """
    from hf_ddpm.checkpoint import writing
    from hf_ddpm.sampling import IMAGE_NAME, image_grid

    if out.suffix:
        drawn = list(images)
        with writing(out):
            image_grid(drawn, num_classes).save(out)
        return
    for i, image in enumerate(images):
        with writing(out):
            image.save(out / IMAGE_NAME.format(i))


def _in_sentences(images: "Iterable[Image]") -> "Iterator[Image]":
    """Yield the images, and turn a `ValueError` of the pipeline into a `UserError`."""
    with as_user_error():
        yield from images


def _check(options: argparse.Namespace) -> None:
    """Reject options that are invalid for every checkpoint."""
    require_positive(options, "num_images", "batch_size")
    require_seed(options)
    out = Path(options.out)
    if not options.out or out.suffix.lower() not in ("", ".png"):
        raise UserError(f"--out {options.out} must be a .png file or a folder")
    if not out.suffix and out.is_dir() and any(out.iterdir()):
        raise UserError(f"the folder --out {options.out} is not empty: choose a new one, so that images do not mix")
    check_kind_options(options, "sample")
