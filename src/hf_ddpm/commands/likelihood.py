"""`hf-ddpm likelihood`: measure how probable a checkpoint finds images, in bits/dim and nats."""

import argparse
import json
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ddpm.commands.options import (
    add_checkpoint,
    add_device,
    cut_of_training,
    on_device,
    open_data,
    open_labelled_data,
    require_pixels,
    require_positive,
    require_seed,
    require_writable,
)
from hf_ddpm.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from hf_ddpm.data import ImageData
    from hf_ddpm.models.vae import HFVAE
    from hf_ddpm.pipelines import HFDDPMPipeline, HFVAEPipeline


# of each kind of checkpoint alone, with their defaults; the parser's own default None tells that nothing was given
OF_DIFFUSION = {"method": "both", "no_clip": False, "ode_steps": 50, "probes": 1}
OF_VAE = {"num_samples": 200, "binarize": None, "binarize_seed": None}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_checkpoint(parser)
    parser.add_argument("--data", required=True, help="what data.source of a recipe takes: a folder, files, a Hub name")
    parser.add_argument("--split", default="train", help="of the data (default: train, which plain files are too)")
    parser.add_argument("--label-column", default="auto", help="of a class-conditional network (default: guessed)")
    parser.add_argument("-n", "--num-images", type=int, default=256, help="256, the default, or more")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of images and of all noise (default: 0)")
    parser.add_argument(
        "--batch-size", type=int, help="network calls at a time (default: 64), or draws of a VAE (1000 or less)"
    )
    add_device(parser)
    diffusion = parser.add_argument_group("diffusion models")
    diffusion.add_argument("--method", choices=("bound", "ode", "both"), help="(default: both)")
    diffusion.add_argument(
        "--no-clip", action="store_true", default=None, help="leave x_0 predictions beyond [-1, 1] in the bound"
    )
    diffusion.add_argument("--ode-steps", type=int, help="of four network calls each (default: 50)")
    diffusion.add_argument("--probes", type=int, help="of the ODE's trace, a backward pass each (default: 1)")
    vae = parser.add_argument_group("VAEs")
    vae.add_argument("--num-samples", type=int, metavar="K", help="importance samples for each image (default: 200)")
    vae.add_argument(
        "--binarize",
        choices=("static", "none"),
        help="of a Bernoulli VAE: each image once (static, the default), or the cross-entropy of greys (none)",
    )
    vae.add_argument("--binarize-seed", type=int, help="of the static binarisation (default: 0)")
    parser.add_argument("--out", default="likelihood.json", help="the file; a PNG of its parts goes beside it")


def run(options: argparse.Namespace) -> None:
    """Print a table; write a JSON file and, of a bound or a VAE, a PNG."""
    _check(options)

    from accelerate import Accelerator

    from hf_ddpm.checkpoint import load_checkpoint
    from hf_ddpm.pipelines import HFVAEPipeline

    accelerator = Accelerator(cpu=options.device == "cpu")
    _check_processes(accelerator)
    if accelerator.is_main_process:
        require_writable(*_files(options))
    pipeline = load_checkpoint(options.checkpoint)
    several = accelerator.num_processes > 1
    device = str(accelerator.device) if several else options.device
    if isinstance(pipeline, HFVAEPipeline):
        _settle(options, OF_VAE, OF_DIFFUSION, "VAE")
        _measure_vae(options, pipeline, accelerator, device)
    else:
        require_pixels(pipeline, "likelihood")  # no option would help
        _settle(options, OF_DIFFUSION, OF_VAE, "diffusion model")
        _measure_diffusion(options, pipeline, accelerator, device)
    accelerator.end_training()  # a process that ends with gloo's threads alive may be aborted


def _measure_diffusion(
    options: argparse.Namespace, pipeline: "HFDDPMPipeline", accelerator: "Accelerator", device: str | None
) -> None:
    from hf_ddpm.likelihood import Network, draw_images, evaluate
    from hf_ddpm.likelihood.picture import draw
    from hf_ddpm.likelihood.report import diffusion_report, table

    wanted = {"matplotlib": options.method != "ode", "torchdiffeq": options.method != "bound"}
    _require_packages(f"--method {options.method}", *(name for name, needed in wanted.items() if needed))
    Network(pipeline.unet, pipeline.scheduler)  # a scheduler that cannot be measured is said before data are opened
    pipeline = on_device(pipeline, device)
    options.batch_size = options.batch_size or 64
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
        about = _about(options, data, accelerator)
        found = diffusion_report(likelihood, pipeline.unet, pipeline.scheduler, **about)
        # before it is shown: what was measured for long outlives a closed pipe
        _write(found, Path(options.out), draw if "bound" in found else None)
        print(f"{data.description}\n{table(found)}")


def _measure_vae(
    options: argparse.Namespace, pipeline: "HFVAEPipeline", accelerator: "Accelerator", device: str | None
) -> None:
    from hf_ddpm.likelihood import draw_images, evaluate_vae
    from hf_ddpm.likelihood.importance import draws_at_once
    from hf_ddpm.likelihood.vae_report import draw, table, vae_report

    _require_packages("the picture of a VAE's latents", "matplotlib")
    binarisation = _binarisation(options, pipeline.vae.config["likelihood"])
    vae = on_device(pipeline, device).vae
    with accelerator.main_process_first():  # which may have to download
        data = _open_for_vae(options, vae, binarisation)
    images = draw_images(data, options.num_images, options.seed)
    options.batch_size = options.batch_size or draws_at_once(images)
    likelihood = evaluate_vae(
        vae,
        images,
        num_samples=options.num_samples,
        seed=options.seed,
        batch_size=options.batch_size,
        cross_entropy=options.binarize == "none",
        accelerator=accelerator,
    )
    if accelerator.is_main_process:
        found = vae_report(likelihood, vae, **_about(options, data, accelerator), binarisation=binarisation)
        _write(found, Path(options.out), draw)
        print(f"{data.description}\n{table(found)}")


def _check(options: argparse.Namespace) -> None:
    """Refuse what needs no checkpoint to be seen as wrong."""
    given = (name for name in ("batch_size", "probes", "num_samples") if getattr(options, name) is not None)
    require_positive(options, *given)
    require_seed(options)
    if options.ode_steps is not None and options.ode_steps < 2:
        raise UserError(f"--ode-steps {options.ode_steps} must be at least 2: half as many show whether they suffice")
    if options.binarize_seed is not None and not 0 <= options.binarize_seed < 2**63:
        raise UserError(f"--binarize-seed {options.binarize_seed} must be from 0 to {2**63 - 1}")
    if Path(options.out).suffix.lower() != ".json":
        raise UserError(f"--out {options.out} must be a .json file")

    from hf_ddpm.likelihood.evaluate import check_number_of_images

    check_number_of_images(options.num_images)


def _settle(options: argparse.Namespace, own: dict[str, Any], others: dict[str, Any], kind: str) -> None:
    """Give the options of this kind of checkpoint their defaults, and refuse those of the other kind."""
    for name in others:
        if getattr(options, name) is not None:
            raise UserError(f"--{name.replace('_', '-')}: {options.checkpoint!r} holds a {kind}, leave the option out")
    for name, default in own.items():
        if getattr(options, name) is None:
            setattr(options, name, default)


def _require_packages(what: str, *packages: str) -> None:
    for package in packages:
        if find_spec(package) is None:
            raise UserError(f"{what} needs {package}: pip install 'hf_ddpm[measure]'")


def _binarisation(options: argparse.Namespace, likelihood: str) -> dict[str, Any] | None:
    """How the images are made black and white, None for a likelihood that knows greys."""
    if likelihood != "bernoulli":
        for name in ("binarize", "binarize_seed"):
            if getattr(options, name) is not None:
                raise UserError(
                    f"--{name.replace('_', '-')}: images are binarised for likelihood='bernoulli', and that of "
                    f"{options.checkpoint!r} is {likelihood!r}, leave the option out"
                )
        return None
    if options.binarize == "none":
        if options.binarize_seed is not None:
            raise UserError(f"--binarize-seed {options.binarize_seed}: --binarize none draws nothing, leave it out")
        return {"kind": "none"}
    return {"kind": "static", "seed": options.binarize_seed or 0}


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


def _open_for_vae(options: argparse.Namespace, vae: "HFVAE", binarisation: dict[str, Any] | None) -> "ImageData":
    """The data in the VAE's size and channels, cut and resized as in training, binarised if it is a Bernoulli."""
    from hf_ddpm.data import ImageData
    from hf_ddpm.models.vae_networks import image_size

    if options.label_column != "auto":
        raise UserError(f"--label-column {options.label_column}: a VAE knows no classes, leave the option out")
    settings = cut_of_training(options.checkpoint)
    if binarisation is not None and binarisation["kind"] == "static":
        settings |= {"binarize": "static", "binarize_seed": binarisation["seed"]}
    return ImageData(
        options.data,
        split=options.split,
        image_size=image_size(vae.config["sample_size"]),
        channels=vae.config["in_channels"],
        cache="none",
        **settings,
    )


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
