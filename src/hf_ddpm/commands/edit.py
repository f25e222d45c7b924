"""`hf-ddpm edit`: reconstruct, vary, interpolate or inpaint images with a checkpoint."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ddpm.commands.options import add_checkpoint, add_device, on_device, require_positive
from hf_ddpm.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from hf_ddpm.pipelines import HFDDPMPipeline

EDITS = {
    "reconstruct": "encode each image to x_T and decode it, 2 S network calls (DDIM, Table 2)",
    "vary": "noise each image to --start-timestep and sample from there",
    "interpolate": "two images, mixed at --start-timestep with shared noise (DDPM, Fig. 8)",
    "slerp": "two images, encoded and mixed in x_T (DDIM, Fig. 6)",
    "inpaint": "paint the white part of --mask anew (RePaint)",
}
MIXES = ("interpolate", "slerp")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "edits:\n" + "\n".join(f"  {name:<13}{summary}" for name, summary in EDITS.items())
    parser.add_argument("edit", choices=EDITS, metavar="edit", help=", ".join(EDITS))
    add_checkpoint(parser)
    parser.add_argument("images", nargs="+", help="files of the network's size; grey or colour is made to fit")
    parser.add_argument("--steps", type=int, help="timesteps of the walk (default: all of training's)")
    parser.add_argument("--spacing", help="leading, trailing, linspace, quadratic; or, without --steps, '10,15,20'")
    parser.add_argument("--eta", type=float, help="of vary, interpolate, inpaint (default: as in hf-ddpm sample)")
    parser.add_argument("--start-timestep", type=int, help="t of vary and interpolate (default: half of training's)")
    parser.add_argument("--columns", type=int, default=9, help="pictures from one image to the other (default: 9)")
    parser.add_argument("--mask", help="a picture of the network's size, white where inpaint paints")
    parser.add_argument("--jump-length", type=int, default=10, help="of inpaint's resampling (default: 10)")
    parser.add_argument("--resamples", type=int, default=10, help="of inpaint; 1 is none (default: 10)")
    parser.add_argument("--class", type=int, dest="class_label", help="of a class-conditional network")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    add_device(parser)
    parser.add_argument("--out", default="edited.png", help="a PNG: the images above, what became of them below")


def run(options: argparse.Namespace) -> None:
    """Write a grid: a row of originals and a row of results, or the row between two images."""
    _check(options)

    import torch
    from diffusers.utils import make_image_grid

    from hf_ddpm.checkpoint import load_pipeline, writing

    pipeline = on_device(load_pipeline(options.checkpoint), options.device)
    images = [_read(path, pipeline) for path in options.images]
    generator = torch.Generator().manual_seed(options.seed)
    try:
        results = _edit(options, pipeline, images, generator)
    except ValueError as error:
        raise UserError(str(error)) from error
    rows = [results] if options.edit in MIXES else [images, results]
    out = Path(options.out)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        make_image_grid([image for row in rows for image in row], len(rows), len(results)).save(out)
    print(f"{options.edit}: {out}")


def _check(options: argparse.Namespace) -> None:
    """Refuse what needs no checkpoint to be seen as wrong."""
    require_positive(options, "columns")
    if options.edit in MIXES and len(options.images) != 2:
        raise UserError(f"{options.edit} needs two images, not {len(options.images)}")
    if options.edit in MIXES and options.columns < 2:
        raise UserError(f"--columns {options.columns} must be at least 2, the two images themselves")
    if (options.edit == "inpaint") != (options.mask is not None):
        raise UserError(f"{options.edit} {'needs --mask FILE' if options.mask is None else 'takes no --mask'}")
    if Path(options.out).suffix != ".png":
        raise UserError(f"--out {options.out} must be a .png file")


def _edit(options: argparse.Namespace, pipeline: "HFDDPMPipeline", images: "list[Image]", generator: Any) -> Any:
    """The results as PIL images."""
    from hf_ddpm.pipelines import slerp

    walk: dict[str, Any] = {"num_inference_steps": options.steps, "timestep_spacing": options.spacing}
    walk["class_labels"] = options.class_label
    start = options.start_timestep
    if start is None:
        start = pipeline.scheduler.config["num_train_timesteps"] // 2
    weights = [i / (options.columns - 1) for i in range(options.columns)] if options.columns > 1 else []
    match options.edit:
        case "reconstruct":
            return pipeline.reconstruct(images, **walk).images  # type: ignore[union-attr]
        case "vary":
            return pipeline.vary(images, start, eta=options.eta, generator=generator, **walk).images  # type: ignore[union-attr]
        case "interpolate":
            first, second = images
            mixed = pipeline.interpolate(first, second, weights, start, eta=options.eta, generator=generator, **walk)
            return [row[0] for row in mixed]
        case "slerp":
            ends = pipeline.invert(images, **walk)
            x_T = [slerp(ends[:1], ends[1:], weight) for weight in weights]
            return [pipeline(1, latents=x, eta=0.0, **walk).images[0] for x in x_T]  # type: ignore[union-attr]
        case _:
            mask = _mask(options.mask, pipeline)
            resampling = {"jump_length": options.jump_length, "num_resamples": options.resamples}
            return pipeline.inpaint(images, mask, eta=options.eta, generator=generator, **resampling, **walk).images  # type: ignore[union-attr]


def _read(path: str, pipeline: "HFDDPMPipeline") -> "Image":
    """An image file with the network's channels.

    Raises:
        UserError: it cannot be read, or has another size.
    """
    from PIL import Image, UnidentifiedImageError

    channels, size = pipeline.unet.config["in_channels"], pipeline.unet.config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    modes = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
    if channels not in modes:
        raise UserError(f"the network has {channels} channels, and image files 1 to 4: edit tensors in Python")
    try:
        image = Image.open(path).convert(modes[channels])
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{path} cannot be read as an image: {' '.join(str(error).split())}") from error
    if image.size != (width, height):
        raise UserError(f"{path} is {image.width}x{image.height} and the network takes {width}x{height}: resize it")
    return image


def _mask(path: str, pipeline: "HFDDPMPipeline") -> Any:
    """(1, 1, H, W), 1 where the picture is lighter than middle grey."""
    import numpy as np
    import torch

    return torch.from_numpy(np.array(_read(path, pipeline).convert("L")) > 127).float()[None, None]
