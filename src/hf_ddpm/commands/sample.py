"""`hf-ddpm sample`: draw images from a checkpoint."""

import argparse
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ddpm.commands.options import (
    add_checkpoint,
    add_device,
    number_in_unit_interval,
    on_device,
    require_positive,
    require_seed,
    require_walk,
    require_writable,
)
from hf_ddpm.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from hf_ddpm.pipelines import HFDDPMPipeline, HFVAEPipeline

NAME = "{:06d}.png"  # of an image in a folder
SIGMA_HAT, ALGORITHM_2 = "sigma-hat", "none"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add_checkpoint(parser)
    parser.add_argument("-n", "--num-images", type=int, default=64)
    parser.add_argument("--steps", type=int, help="steps of the walk (default: all of training's)")
    parser.add_argument(
        "--spacing", help="leading, trailing, linspace, quadratic; or, without --steps, '10,15,20' or ddim25"
    )
    parser.add_argument(
        "--eta",
        type=_eta,
        help="0 is DDIM, 1 DDPM; none is Algorithm 2 with the checkpoint's variance, sigma-hat with the larger one "
        "(default: the checkpoint's, else none)",
    )
    parser.add_argument("--corrector-steps", type=int, default=0, help="Langevin steps at each level (default: 0)")
    parser.add_argument("--solver", help="instead of eta: dpm-solver++, unipc, heun or euler, as diffusers has them")
    parser.add_argument("--seed", type=int, default=0, help="image i is fixed by the seed and i alone (default: 0)")
    parser.add_argument(
        "--class", type=int, dest="class_label", help="one class for all images (default: each in turn)"
    )
    parser.add_argument("--pixels", action="store_true", help="of a VAE: draw from p(x|z) instead of its mean image")
    parser.add_argument("--batch-size", type=int, default=64, help="images at a time (default: 64)")
    add_device(parser)
    parser.add_argument("--out", default="grid.png", help="a PNG for one grid, or a new folder for one PNG an image")


def run(options: argparse.Namespace) -> None:
    """Write a grid, or one PNG an image, batch by batch."""
    _check(options)

    from hf_ddpm import HFVAEPipeline
    from hf_ddpm.checkpoint import load_checkpoint, writing
    from hf_ddpm.sampling import count_calls, image_grid

    pipeline = on_device(load_checkpoint(options.checkpoint), options.device)
    if isinstance(pipeline, HFVAEPipeline):
        network, images = pipeline.vae.decoder, _from_prior(options, pipeline)
        channels = pipeline.vae.config["in_channels"]
    else:
        network, images = pipeline.unet, _walked(options, pipeline)
        channels = pipeline.image_channels
    if channels > 4:
        raise UserError(f"the network has {channels} channels, and a PNG 1 to 4: sample tensors in Python")
    out = Path(options.out)
    require_writable(out if out.suffix else out / NAME.format(0))
    calls = count_calls(network)
    drawn: list[Image] = []
    for i, image in enumerate(images):
        if out.suffix:
            drawn.append(image)
            continue
        with writing(out):
            image.save(out / NAME.format(i))
    if drawn:
        with writing(out):
            image_grid(drawn).save(out)
    print(f"{options.num_images} images, {sum(calls) // options.num_images} network calls each: {options.out}")


def _walked(options: argparse.Namespace, pipeline: "HFDDPMPipeline") -> "Iterator[Image]":
    """A diffusion model's images, batch by batch; what the options cannot ask of it is said at once."""
    from hf_ddpm.sampling import sample_images

    if options.pixels:
        raise UserError("--pixels belongs to a VAE, whose decoder sees noise in its images: leave it out")
    sampler = _sampler(options, pipeline)
    require_walk(options, pipeline)
    keywords: dict[str, Any] = {
        "num_inference_steps": options.steps,
        "class_label": options.class_label,
        "corrector_steps": options.corrector_steps,
    }
    return _batches(options, functools.partial(sample_images, pipeline, **keywords, **sampler))


def _from_prior(options: argparse.Namespace, pipeline: "HFVAEPipeline") -> "Iterator[Image]":
    """A VAE's images, batch by batch."""
    from hf_ddpm.sampling import sample_latents

    walk = {"steps": options.steps, "spacing": options.spacing, "eta": options.eta, "solver": options.solver}
    walk |= {"corrector-steps": options.corrector_steps or None, "class": options.class_label}
    for name, value in walk.items():
        if value is not None:
            raise UserError(f"--{name} {value}: a VAE draws an image in one call and knows no classes, leave it out")
    return _batches(options, functools.partial(sample_latents, pipeline, sample_pixels=options.pixels))


def _batches(options: argparse.Namespace, draw: "Callable[..., list[Image]]") -> "Iterator[Image]":
    from hf_ddpm.sampling import parts_of

    for part in parts_of(range(options.num_images), options.batch_size):
        try:
            yield from draw(part, seed=options.seed, batch_size=options.batch_size)
        except ValueError as error:
            raise UserError(str(error)) from error


def _eta(word: str) -> float | str:
    if word in (SIGMA_HAT, ALGORITHM_2):
        return word
    try:
        return number_in_unit_interval(word)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, {SIGMA_HAT} or {ALGORITHM_2}") from error


def _check(options: argparse.Namespace) -> None:
    """Refuse what needs no checkpoint to be seen as wrong."""
    require_positive(options, "num_images", "batch_size")
    require_seed(options)
    out = Path(options.out)
    if not options.out or out.suffix.lower() not in ("", ".png"):
        raise UserError(f"--out {options.out} must be a .png file or a folder")
    if not out.suffix and out.is_dir() and any(out.iterdir()):
        raise UserError(f"the folder --out {options.out} is not empty: name a new one, so that no images mix")
    if options.solver is not None and options.eta is not None:
        raise UserError(f"--eta {options.eta} has no meaning for --solver {options.solver}: leave one of them out")
    if options.solver is not None and options.corrector_steps:
        raise UserError(f"--corrector-steps do not go with --solver {options.solver}: leave one of them out")


def _sampler(options: argparse.Namespace, pipeline: "HFDDPMPipeline") -> dict[str, Any]:
    """What a call takes of eta and spacing, when the pipeline has been given the sampler that the options name."""
    from hf_ddpm.sampling import use_algorithm_2, use_solver

    if options.solver is not None:
        most = pipeline.scheduler.config["num_train_timesteps"] - 1  # diffusers' tables end there
        if not 1 <= (options.steps or 0) <= most:
            given = "none are given" if options.steps is None else f"not {options.steps}"
            raise UserError(f"--solver {options.solver} needs --steps from 1 to {most}, {given}: 20 are many for it")
        use_solver(pipeline, options.solver, options.spacing)
        return {}
    if options.eta in (SIGMA_HAT, ALGORITHM_2):
        use_algorithm_2(pipeline, "fixed_large" if options.eta == SIGMA_HAT else None)
        return {"timestep_spacing": options.spacing}
    return {"timestep_spacing": options.spacing, "eta": options.eta}
