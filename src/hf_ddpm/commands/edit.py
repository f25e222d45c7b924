"""`hf-ddpm edit`: reconstruct, vary, interpolate or inpaint images with a checkpoint."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_ddpm.commands.guidance import GUIDANCE_OPTIONS, guide
from hf_ddpm.commands.options import (
    add_checkpoint,
    add_device,
    number_in_unit_interval,
    on_device,
    require_positive,
    require_seed,
    require_walk,
    require_writable,
    size_of_network,
)
from hf_ddpm.errors import UserError, as_user_error

if TYPE_CHECKING:
    from torch import Tensor

    from hf_ddpm.pipelines import HFDDPMPipeline


class Edit(NamedTuple):
    """The help line of an edit, and the options of `ONLY_SOME_TAKE` that it takes."""

    summary: str
    takes: tuple[str, ...] = ()


EDITS = {
    "reconstruct": Edit("encode each image to x_T and decode it, 2 S network calls (DDIM, Table 2)"),
    "vary": Edit("noise each image to --start-timestep and sample from there", ("eta", "start_timestep", "seed")),
    "interpolate": Edit(
        "mix two images at --start-timestep with shared noise (DDPM, Fig. 8)",
        ("eta", "start_timestep", "columns", "seed"),
    ),
    "slerp": Edit("encode two images and mix their x_T (DDIM, Fig. 6)", ("columns",)),
    "inpaint": Edit("repaint the white part of --mask (RePaint)", ("eta", "mask", "jump_length", "resamples", "seed")),
}
ONLY_SOME_TAKE = ("eta", "start_timestep", "columns", "mask", "jump_length", "resamples", "seed")
MIXES = ("interpolate", "slerp")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "edits:\n" + "\n".join(f"  {name:<13}{edit.summary}" for name, edit in EDITS.items())
    parser.add_argument("edit", choices=EDITS, metavar="edit", help=", ".join(EDITS))
    add_checkpoint(parser)
    parser.add_argument("images", nargs="+", help="image files of the network's size, in grey or colour")
    parser.add_argument("--steps", type=int, help="number of sampling steps (default: all steps of training)")
    parser.add_argument(
        "--spacing", help="timestep spacing: leading, trailing, linspace or quadratic; without --steps, also '10,15,20'"
    )
    parser.add_argument(
        "--eta",
        type=number_in_unit_interval,
        help="for vary, interpolate and inpaint: a number from 0 to 1 (default: the checkpoint's)",
    )
    parser.add_argument(
        "--start-timestep", type=int, help="for vary and interpolate (default: half of the training timesteps)"
    )
    parser.add_argument("--columns", type=int, help="for interpolate and slerp: images in the row (default: 9)")
    parser.add_argument("--mask", help="for inpaint: an image of the network's size, white where it is repainted")
    parser.add_argument(
        "--jump-length",
        type=int,
        help="for inpaint: steps of a resampling jump (default: 10, or --steps minus 1 if less)",
    )
    parser.add_argument("--resamples", type=int, help="for inpaint: number of resamplings; 1 is off (default: 10)")
    parser.add_argument("--class", dest="class_label", help="class of the images, by name or number")
    guidance = parser.add_argument_group("guidance")
    for one in GUIDANCE_OPTIONS:
        guidance.add_argument(one.flag, default=one.default, **one.keywords)
    parser.add_argument("--seed", type=int, help="seed of the noise for vary, interpolate and inpaint (default: 0)")
    add_device(parser)
    parser.add_argument("--out", default="edited.png", help="a .png file: the original images above the results")


def run(options: argparse.Namespace) -> None:
    """Write a grid: a row of originals and a row of results, or the row between two images."""
    _check(options)

    import torch
    from diffusers.utils import make_image_grid

    from hf_ddpm.checkpoint import load_pipeline, writing

    pipeline = on_device(load_pipeline(options.checkpoint), options.device)
    channels = pipeline.image_channels
    if channels > 4:
        raise UserError(f"the network has {channels} channels, and image files have 1 to 4: edit tensors in Python")
    guidance = guide(options, pipeline)
    options.class_label = require_walk(options, pipeline)
    if options.class_label is None:
        _refuse_classes(options, pipeline)
        if options.classifier_scale is None:
            guidance.pop("classifier_scale", None)  # the checkpoint's own classifier needs a class
    size = size_of_network(pipeline, options.checkpoint)
    images = torch.stack([_read(path, size, channels) for path in options.images])
    require_writable(Path(options.out))
    with as_user_error():
        results = _edit(options, pipeline, images, guidance)
    originals = pipeline.numpy_to_pil(images.permute(0, 2, 3, 1).numpy())
    rows = [results] if options.edit in MIXES else [originals, results]
    out = Path(options.out)
    with writing(out):
        make_image_grid([image for row in rows for image in row], len(rows), len(results)).save(out)
    print(f"{options.edit}: {out}")


def _check(options: argparse.Namespace) -> None:
    """Reject options that are invalid for every checkpoint, and set the defaults."""
    takes = EDITS[options.edit].takes
    for option in ONLY_SOME_TAKE:
        given = getattr(options, option)
        if given is not None and option not in takes:
            raise UserError(f"{options.edit} does not take --{option.replace('_', '-')} {given}: leave it out")
    if options.classifier_gradient == "mean" and options.eta is not None:
        raise UserError(
            f"--classifier-gradient mean needs Algorithm 2 and cannot be combined with --eta {options.eta:g}: "
            "leave one of them out"
        )
    if options.edit in MIXES and len(options.images) != 2:
        raise UserError(f"{options.edit} needs two images, not {len(options.images)}")
    if "mask" in takes and options.mask is None:
        raise UserError(f"{options.edit} needs --mask FILE")
    if Path(options.out).suffix.lower() != ".png":
        raise UserError(f"--out {options.out} must be a .png file")
    read = [*options.images, *([options.mask] if options.mask else [])]
    if Path(options.out).resolve() in [Path(file).resolve() for file in read]:
        raise UserError(f"--out {options.out} is one of the input images: choose another file")
    for option, default in {"columns": 9, "resamples": 10, "seed": 0}.items():
        if getattr(options, option) is None:
            setattr(options, option, default)
    if options.columns < 2:
        raise UserError(f"--columns {options.columns} must be at least 2, for the two images themselves")
    require_positive(options, "resamples")
    require_seed(options)


def _refuse_classes(options: argparse.Namespace, pipeline: "HFDDPMPipeline") -> None:
    """Reject a network with classes, or a classifier that guides, if no class is given."""
    scale, by_default = options.classifier_scale, options.classifier is not None
    guided = by_default if scale is None else scale != 0
    if pipeline.signature.takes_labels or guided:
        who = "network" if pipeline.signature.takes_labels else "classifier"
        raise UserError(f"this {who} was trained with classes: pass the class of the images with --class")


def _edit(options: argparse.Namespace, pipeline: "HFDDPMPipeline", images: "Tensor", guidance: dict[str, Any]) -> Any:
    """Edit images (B, C, H, W) in [0, 1], and return the results as PIL images."""
    import torch

    from hf_ddpm.pipelines import slerp

    walk: dict[str, Any] = {"num_inference_steps": options.steps, "timestep_spacing": options.spacing}
    walk |= {"class_labels": options.class_label, **guidance}
    drawn = {"eta": options.eta, "generator": torch.Generator().manual_seed(options.seed)}
    start = options.start_timestep
    if start is None:
        start = pipeline.scheduler.config["num_train_timesteps"] // 2
    weights = [i / (options.columns - 1) for i in range(options.columns)]
    match options.edit:
        case "reconstruct":
            return pipeline.reconstruct(images, **walk).images  # type: ignore[union-attr]
        case "vary":
            return pipeline.vary(images, start, **drawn, **walk).images  # type: ignore[union-attr]
        case "interpolate":
            return [row[0] for row in pipeline.interpolate(images[:1], images[1:], weights, start, **drawn, **walk)]
        case "slerp":
            ends = pipeline.invert(images, **walk)
            x_T = [slerp(ends[:1], ends[1:], weight) for weight in weights]
            return [pipeline(1, latents=x, eta=0.0, **walk).images[0] for x in x_T]  # type: ignore[union-attr]
        case _:
            grey = _read(options.mask, (images.shape[2], images.shape[3]), channels=1)
            mask = (grey > 0.5).float()  # 1 where the mask is lighter than middle grey
            jumps = {} if options.jump_length is None else {"jump_length": options.jump_length}
            resampling = {"num_resamples": options.resamples, **jumps}
            return pipeline.inpaint(images, mask, **resampling, **drawn, **walk).images  # type: ignore[union-attr]


def _read(path: str, size: tuple[int, int], channels: int) -> "Tensor":
    """Read an image file as in training, as a tensor (C, H, W) in [0, 1], and print how it was converted.

    Raises:
        UserError: If the file cannot be read, or has another size.
    """
    import torch

    from hf_ddpm.data import to_float
    from hf_ddpm.data.decode import ImageDecoder, UndecodableError, open_image

    try:
        stored = Path(path).read_bytes()
        pixels, notes = ImageDecoder(size, channels)(stored)
    except (OSError, UndecodableError) as error:
        raise UserError(f"{path} cannot be read as an image: {error}") from error
    (width, height), wanted = open_image(stored)[0].size, f"{size[1]}x{size[0]}"
    if (height, width) != size:
        raise UserError(f"{path} is {width}x{height} and the network takes {wanted}: resize it")
    for note in notes:
        print(f"{path}: {note}")
    return to_float(torch.tensor(pixels)) / 2 + 0.5
