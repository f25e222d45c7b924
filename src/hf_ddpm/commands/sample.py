"""`hf-ddpm sample`: draw images from a checkpoint."""

import argparse
from pathlib import Path

from hf_ddpm.commands.options import add_checkpoint, add_device, on_device, require_positive
from hf_ddpm.errors import UserError


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_checkpoint(parser)
    parser.add_argument("-n", "--num-images", type=int, default=64)
    parser.add_argument("--steps", type=int, help="network calls an image (default: all of training's)")
    parser.add_argument(
        "--spacing", help="leading, trailing, linspace, quadratic; or, without --steps, '10,15,20' or ddim25"
    )
    parser.add_argument("--eta", type=float, help="0 is DDIM, 1 DDPM (default: the checkpoint's, else Algorithm 2)")
    parser.add_argument("--seed", type=int, default=0, help="image i is fixed by the seed and i alone (default: 0)")
    parser.add_argument(
        "--class", type=int, dest="class_label", help="one class for all images (default: each in turn)"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="images at a time (default: 64)")
    add_device(parser)
    parser.add_argument("--out", default="grid.png", help="a PNG for one grid, or a folder for one PNG an image")


def run(options: argparse.Namespace) -> None:
    """Write a grid, or one PNG an image."""
    require_positive(options, "num_images", "batch_size")
    out = Path(options.out)
    if out.suffix not in ("", ".png"):
        raise UserError(f"--out {options.out} must be a .png file or a folder")

    from hf_ddpm.checkpoint import load_pipeline, writing
    from hf_ddpm.sampling import image_grid, sample_images

    pipeline = on_device(load_pipeline(options.checkpoint), options.device)
    try:
        images = sample_images(
            pipeline,
            range(options.num_images),
            seed=options.seed,
            batch_size=options.batch_size,
            num_inference_steps=options.steps,
            timestep_spacing=options.spacing,
            eta=options.eta,
            class_label=options.class_label,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    with writing(out):
        if out.suffix == ".png":
            out.parent.mkdir(parents=True, exist_ok=True)
            image_grid(images).save(out)
        else:
            out.mkdir(parents=True, exist_ok=True)
            for i, image in enumerate(images):
                image.save(out / f"{i:06d}.png")
    print(f"{len(images)} images, {len(pipeline.scheduler.timesteps)} network calls each: {out}")
