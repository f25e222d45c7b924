"""The console script `hf-ddpm`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hf_ddpm.errors import UserError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help lists what there is")


def main(argv: Sequence[str] | None = None) -> None:
    """Run `hf-ddpm COMMAND ...`; a user's mistake is one sentence on stderr and exit code 1."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == ["train"]:  # its options are the recipe's keys
            from hf_ddpm.training.train import main as train_main

            train_main(words[1:])
            return
        options = _parser().parse_args(words)
        sample(options)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="hf-ddpm", description="The DDPM family in Hugging Face format.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=_Parser)
    commands.add_parser("train", help="train from a recipe, as training/train.py does", add_help=False)
    command = commands.add_parser("sample", help="draw images from a checkpoint")
    command.add_argument("checkpoint", help="a folder that training saved, or a Hub name")
    command.add_argument("-n", "--num-images", type=int, default=64)
    command.add_argument("--steps", type=int, help="network calls an image (default: all of training's)")
    command.add_argument("--eta", type=float, help="0 is DDIM, 1 DDPM (default: the checkpoint's, else Algorithm 2)")
    command.add_argument("--seed", type=int, default=0, help="image i is fixed by the seed and i alone (default: 0)")
    command.add_argument(
        "--class", type=int, dest="class_label", help="one class for all images (default: each in turn)"
    )
    command.add_argument("--batch-size", type=int, default=64, help="images at a time (default: 64)")
    command.add_argument("--device", help="cpu, cuda, mps (default: the best there is)")
    command.add_argument("--out", default="grid.png", help="a PNG for one grid, or a folder for one PNG an image")
    return parser


def sample(options: argparse.Namespace) -> None:
    """`hf-ddpm sample`: write a grid, or one PNG an image."""
    for name in ("num_images", "batch_size"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)} must be at least 1")
    out = Path(options.out)
    if out.suffix not in ("", ".png"):
        raise UserError(f"--out {options.out} must be a .png file or a folder")

    from hf_ddpm.checkpoint import load_pipeline, writing
    from hf_ddpm.sampling import best_device, image_grid, sample_images

    pipeline = load_pipeline(options.checkpoint)
    device = options.device or best_device()
    try:
        pipeline.to(device)
    except (RuntimeError, AssertionError) as error:  # what torch raises for a device that it does not know or have
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {device}: {reason}; the best there is: {best_device()}") from error
    try:
        images = sample_images(
            pipeline,
            range(options.num_images),
            seed=options.seed,
            batch_size=options.batch_size,
            num_inference_steps=options.steps,
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
    print(f"{len(images)} images: {out}")


if __name__ == "__main__":
    main()
