"""`hf-ddpm likelihood`: measure the likelihood of images under a checkpoint, in bits/dim and nats."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ddpm.commands.kind_options import Measurement, add_kind_options, check_kind_options, settle
from hf_ddpm.commands.options import (
    add_checkpoint,
    add_cropping,
    add_device,
    require_all_processes,
    require_pixels,
    require_positive,
    require_seed,
    require_writable,
)
from hf_ddpm.errors import UserError
from hf_ddpm.kinds import kind_of

if TYPE_CHECKING:
    from accelerate import Accelerator

    from hf_ddpm.data import ImageData


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_checkpoint(parser)
    parser.add_argument("--data", required=True, help="a folder, files or a Hub name, as for data.source of a recipe")
    parser.add_argument("--split", default="train", help="split of the data (default: train, also for plain files)")
    add_cropping(parser)
    parser.add_argument("--label-column", default="auto", help="for a network with classes (default: detected)")
    parser.add_argument("-n", "--num-images", type=int, default=256, help="256 (the default) or more")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of images and the noise (default: 0)")
    parser.add_argument(
        "--batch-size", type=int, help="network calls per batch (default: 64), or draws of a VAE (default: up to 1000)"
    )
    add_device(parser)
    parser.add_argument(
        "--out", default="likelihood.json", help="a .json file; a .png of the parts is written beside it"
    )
    add_kind_options(parser, "likelihood")


def run(options: argparse.Namespace) -> None:
    """Print a table; write a JSON file and, for a bound or a VAE, a PNG."""
    _check(options)

    from accelerate import Accelerator

    from hf_ddpm.checkpoint import load_checkpoint

    accelerator = Accelerator(cpu=options.device == "cpu")
    require_all_processes(accelerator)
    if accelerator.is_main_process:
        require_writable(*_files(options))
    pipeline = load_checkpoint(options.checkpoint)
    several = accelerator.num_processes > 1
    device = str(accelerator.device) if several else options.device
    require_pixels(pipeline, "likelihood")  # before the options, because none of them would help
    measure = settle(options, kind_of(pipeline), "likelihood").run
    measured: Measurement = measure(options, pipeline, accelerator, device)
    if accelerator.is_main_process:
        found = measured.report(**_about(options, measured.data, accelerator))
        # written before it is printed, so that a closed pipe does not lose a long measurement
        _write(found, Path(options.out), measured.draw)
        print(f"{measured.data.description}\n{measured.table(found)}")
    accelerator.end_training()  # a process that ends with gloo's threads alive may be aborted


def _check(options: argparse.Namespace) -> None:
    """Reject options that are invalid for every checkpoint."""
    if options.batch_size is not None:
        require_positive(options, "batch_size")
    require_seed(options)
    check_kind_options(options, "likelihood")
    if Path(options.out).suffix.lower() != ".json":
        raise UserError(f"--out {options.out} must be a .json file")

    from hf_ddpm.likelihood.evaluate import check_number_of_images

    check_number_of_images(options.num_images)


def _files(options: argparse.Namespace) -> list[Path]:
    """Return the files that the command writes."""
    out = Path(options.out)
    return [out] if options.method == "ode" else [out, out.with_suffix(".png")]


def _about(options: argparse.Namespace, data: "ImageData", accelerator: "Accelerator") -> dict[str, Any]:
    return {
        "checkpoint": options.checkpoint,
        "data": data.facts.to_dict(),
        "processes": accelerator.num_processes,
        "batch_size": options.batch_size,
    }


def _write(found: dict[str, Any], out: Path, draw: Callable[[dict[str, Any], Path], None] | None) -> None:
    from hf_ddpm.checkpoint import writing

    picture = out.with_suffix(".png")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=2) + "\n")
        if draw is not None:
            draw(found, picture)
    print(f"written: {out}" + (f", {picture}" if draw is not None else ""))
