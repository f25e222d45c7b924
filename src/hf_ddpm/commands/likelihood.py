"""`hf-ddpm likelihood`: measure how probable a checkpoint finds images, in bits/dim."""

import argparse
import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ddpm.commands.options import (
    add_checkpoint,
    add_device,
    on_device,
    open_data,
    open_labelled_data,
    require_positive,
    require_seed,
    require_writable,
)
from hf_ddpm.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from hf_ddpm.data import ImageData
    from hf_ddpm.pipelines import HFDDPMPipeline


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_checkpoint(parser)
    parser.add_argument("--data", required=True, help="what data.source of a recipe takes: a folder, files, a Hub name")
    parser.add_argument("--split", default="train", help="of the data (default: train, which plain files are too)")
    parser.add_argument("--label-column", default="auto", help="of a class-conditional network (default: guessed)")
    parser.add_argument("-n", "--num-images", type=int, default=256, help="256, the default, or more")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of images and of all noise (default: 0)")
    parser.add_argument("--batch-size", type=int, default=64, help="network calls at a time (default: 64)")
    add_device(parser)
    parser.add_argument("--method", choices=("bound", "ode", "both"), default="both", help="(default: both)")
    parser.add_argument("--no-clip", action="store_true", help="leave x_0 predictions beyond [-1, 1] in the bound")
    parser.add_argument("--ode-steps", type=int, default=50, help="of four network calls each (default: 50)")
    parser.add_argument("--probes", type=int, default=1, help="of the ODE's trace, a backward pass each (default: 1)")
    parser.add_argument("--out", default="likelihood.json", help="the file; a PNG of the bound goes beside it")


def run(options: argparse.Namespace) -> None:
    """Print a table; write a JSON file and, with the bound, a PNG."""
    _check(options)

    from accelerate import Accelerator

    from hf_ddpm.checkpoint import load_pipeline
    from hf_ddpm.likelihood import Network, draw_images, evaluate
    from hf_ddpm.likelihood.report import report, table

    accelerator = Accelerator(cpu=options.device == "cpu")
    _check_processes(accelerator)
    if accelerator.is_main_process:
        require_writable(*_files(options))
    pipeline = load_pipeline(options.checkpoint)
    Network(pipeline.unet, pipeline.scheduler)  # a scheduler that cannot be measured is said before data are opened
    several = accelerator.num_processes > 1
    pipeline = on_device(pipeline, str(accelerator.device) if several else options.device)
    with accelerator.main_process_first():  # which may have to download
        data = _open(options, pipeline)
    images = draw_images(data, options.num_images, options.seed)
    likelihood = evaluate(
        pipeline.unet,
        pipeline.scheduler,
        images,
        seed=options.seed,
        batch_size=options.batch_size,
        method=options.method,
        clip=not options.no_clip,
        ode_steps=options.ode_steps,
        num_probes=options.probes,
        accelerator=accelerator,
    )
    if accelerator.is_main_process:
        about = {"checkpoint": options.checkpoint, "data": data.description, **_machine(accelerator, options)}
        found = report(likelihood, pipeline.unet, pipeline.scheduler, **about)
        _write(found, Path(options.out))  # before it is shown: what was measured for long outlives a closed pipe
        print(f"{data.description}\n{table(found)}")


def _check(options: argparse.Namespace) -> None:
    """Refuse what needs no checkpoint to be seen as wrong."""
    require_positive(options, "batch_size", "probes")
    require_seed(options)
    if options.ode_steps < 2:
        raise UserError(f"--ode-steps {options.ode_steps} must be at least 2: half as many show whether they suffice")
    if Path(options.out).suffix.lower() != ".json":
        raise UserError(f"--out {options.out} must be a .json file")
    wanted = {"matplotlib": options.method != "ode", "torchdiffeq": options.method != "bound"}
    for package in (name for name, needed in wanted.items() if needed and find_spec(name) is None):
        raise UserError(f"--method {options.method} needs {package}: pip install 'hf_ddpm[measure]'")

    from hf_ddpm.likelihood.evaluate import check_number_of_images

    check_number_of_images(options.num_images)


def _check_processes(accelerator: "Accelerator") -> None:
    """Refuse processes that do not find each other: each would measure all images and write the same file."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise UserError(
            f"the launcher started {started} processes and Accelerate joins {accelerator.num_processes}: launch with "
            "--cpu, or with as many GPUs as processes"
        )


def _files(options: argparse.Namespace) -> list[Path]:
    """What the command writes."""
    out = Path(options.out)
    return [out] if options.method == "ode" else [out, out.with_suffix(".png")]


def _open(options: argparse.Namespace, pipeline: "HFDDPMPipeline") -> "ImageData":
    """The data in the network's size and channels, cut and resized as in training."""
    where = (options.data, options.split, pipeline, options.checkpoint)
    if pipeline.unet.config["num_class_embeds"] is not None:
        remedy = "name the column that holds them with --label-column"
        return open_labelled_data(*where, remedy=remedy, label_column=options.label_column, cache="none")
    if options.label_column != "auto":
        raise UserError(
            f"--label-column {options.label_column}: the network was trained without classes, leave the option out"
        )
    return open_data(*where, cache="none")


def _machine(accelerator: "Accelerator", options: argparse.Namespace) -> dict[str, Any]:
    return {"processes": accelerator.num_processes, "batch_size": options.batch_size}


def _write(found: dict[str, Any], out: Path) -> None:
    from hf_ddpm.checkpoint import writing
    from hf_ddpm.likelihood.picture import draw

    picture = out.with_suffix(".png")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=2) + "\n")
        if "bound" in found:
            draw(found, picture)
    print(f"written: {out}" + (f", {picture}" if "bound" in found else ""))
