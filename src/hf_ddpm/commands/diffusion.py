"""`hf-ddpm sample` and `hf-ddpm likelihood` for a diffusion model."""

import argparse
from typing import TYPE_CHECKING, Any

from hf_ddpm.commands.guidance import GUIDANCE_OPTIONS, guide
from hf_ddpm.commands.kind_options import KindCommand, Measurement, option
from hf_ddpm.commands.options import (
    cropping,
    number_in_unit_interval,
    on_device,
    open_data,
    open_labelled_data,
    require_packages,
    require_positive,
    require_walk,
)
from hf_ddpm.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from hf_ddpm.data import ImageData
    from hf_ddpm.pipelines import HFDDPMPipeline

SIGMA_HAT, ALGORITHM_2 = "sigma-hat", "none"


def _keywords(options: argparse.Namespace, pipeline: "HFDDPMPipeline") -> dict[str, Any]:
    """Return the keyword arguments of `sample_images`, and reject options that the pipeline does not support."""
    guidance = guide(options, pipeline)
    label = require_walk(options, pipeline)
    return {
        **guidance,
        "num_inference_steps": options.steps,
        "class_label": label,
        "corrector_steps": options.corrector_steps,
        **_sampler(options, pipeline),
    }


def _sampler(options: argparse.Namespace, pipeline: "HFDDPMPipeline") -> dict[str, Any]:
    """Give the pipeline the requested sampler, and return the steps, eta and spacing of its call."""
    from hf_ddpm.sampling import DDIM, DDPM, DEFAULT_STEPS, use_algorithm_2, use_default_sampler, use_solver

    eta, own = options.eta, {"timestep_spacing": options.spacing}
    if options.solver in (DDIM, DDPM):
        eta = {DDIM: 0.0, DDPM: ALGORITHM_2}[options.solver]
    elif options.solver is not None:
        most = pipeline.scheduler.config["num_train_timesteps"] - 1  # diffusers' tables end there
        steps = min(DEFAULT_STEPS, most) if options.steps is None else options.steps
        if not 1 <= steps <= most:
            raise UserError(f"--solver {options.solver} needs --steps from 1 to {most}, not {steps}")
        use_solver(pipeline, options.solver, options.spacing)
        return {"num_inference_steps": steps}
    elif (eta, options.spacing) == (None, None) and not options.corrector_steps:
        return use_default_sampler(pipeline, options.steps)
    if eta in (SIGMA_HAT, ALGORITHM_2):
        use_algorithm_2(pipeline, "fixed_large" if eta == SIGMA_HAT else None)
        return own
    return own | {"eta": eta}


def _measure(
    options: argparse.Namespace, pipeline: "HFDDPMPipeline", accelerator: "Accelerator", device: str | None
) -> Measurement:
    """Measure the variational bound of the images, their likelihood by the probability-flow ODE, or both."""
    from hf_ddpm.likelihood import Network, draw_images, evaluate
    from hf_ddpm.likelihood.picture import draw_bound
    from hf_ddpm.likelihood.report import diffusion_report, diffusion_table

    wanted = {"matplotlib": options.method != "ode", "torchdiffeq": options.method != "bound"}
    require_packages(f"--method {options.method}", *(name for name, needed in wanted.items() if needed))
    Network(pipeline.unet, pipeline.scheduler)  # rejects an unsupported scheduler before the data are opened
    pipeline = on_device(pipeline, device)
    options.batch_size = options.batch_size or 64
    with accelerator.main_process_first():  # which may have to download the data
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
        null_class=pipeline.signature.null_class,
    )

    def report_of(**about: Any) -> dict[str, Any]:
        return diffusion_report(likelihood, pipeline.unet, pipeline.scheduler, **about)

    return Measurement(data, report_of, diffusion_table, None if options.method == "ode" else draw_bound)


def _open(options: argparse.Namespace, pipeline: "HFDDPMPipeline") -> "ImageData":
    """Open the data with the network's size and channels, cropped and resized as in training."""
    where = (options.data, options.split, pipeline, options.checkpoint)
    more: dict[str, Any] = {"cache": "none", **cropping(options)}
    if pipeline.signature.takes_labels:
        remedy = "pass the name of the label column with --label-column"
        return open_labelled_data(*where, remedy=remedy, label_column=options.label_column, **more)
    if options.label_column != "auto":
        raise UserError(
            f"--label-column {options.label_column} needs a network with classes, and this one was trained without "
            "classes: leave the option out"
        )
    return open_data(*where, **more)


def _check_sample(options: argparse.Namespace) -> None:
    """Reject options that are invalid for every checkpoint."""
    if options.solver is not None and options.eta is not None:
        raise UserError(f"--eta {options.eta} cannot be combined with --solver {options.solver}: leave one of them out")
    if options.solver is not None and options.corrector_steps:
        raise UserError(f"--corrector-steps cannot be combined with --solver {options.solver}: leave one of them out")
    if options.classifier_gradient == "mean":
        _check_mean(options)


def _check_mean(options: argparse.Namespace) -> None:
    """Reject a gradient at the mean of p(x_{t-1} | x_t) for a sampler that does not have this mean."""
    from hf_ddpm.sampling import DDPM

    algorithm_2 = options.eta in (SIGMA_HAT, ALGORITHM_2) or options.solver == DDPM
    if options.corrector_steps or not algorithm_2:
        raise UserError(
            "--classifier-gradient mean needs Algorithm 2 without --corrector-steps: pass --eta none"
            f"{' instead of --solver' if options.solver else ''}, or leave --classifier-gradient out"
        )


def _check_likelihood(options: argparse.Namespace) -> None:
    """Reject options that are invalid for every checkpoint."""
    if options.probes is not None:
        require_positive(options, "probes")
    if options.ode_steps is not None and options.ode_steps < 2:
        raise UserError(
            f"--ode-steps {options.ode_steps} must be at least 2: a second solution with half as many steps estimates "
            "the error"
        )


def _eta(word: str) -> float | str:
    if word in (SIGMA_HAT, ALGORITHM_2):
        return word
    try:
        return number_in_unit_interval(word)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, {SIGMA_HAT} or {ALGORITHM_2}") from error


SAMPLE = KindCommand(
    _keywords,
    (
        option(
            "--steps",
            type=int,
            help="number of sampling steps (default: 20 with UniPC; with --eta, all steps of training)",
        ),
        option(
            "--spacing",
            help="timestep spacing: leading, trailing, linspace, quadratic; without --steps, also '10,15,20' or ddim25",
        ),
        option(
            "--eta",
            type=_eta,
            help="0 is DDIM and 1 is DDPM; none is Algorithm 2 with the checkpoint's variance, and sigma-hat is "
            "Algorithm 2 with the larger variance (default: --solver unipc, without eta)",
        ),
        option("--corrector-steps", default=0, type=int, help="number of Langevin steps per noise level (default: 0)"),
        option("--solver", help="instead of --eta: diffusers' unipc, dpm-solver++, heun or euler; or ddim or ddpm"),
        option("--class", dest="class_label", help="class of all images, by name or number (default: all in turn)"),
        *GUIDANCE_OPTIONS,
    ),
    refusal="{flag} {value} is only for diffusion models, and {checkpoint!r} contains a {kind}: leave it out",
    check=_check_sample,
)
LIKELIHOOD = KindCommand(
    _measure,
    (
        option(
            "--method",
            default="both",
            choices=("bound", "ode", "both"),
            help="the variational bound, the probability-flow ODE, or both (default: both)",
        ),
        option(
            "--no-clip",
            default=False,
            action="store_true",
            help="do not clip the x_0 predictions of the bound to [-1, 1]",
        ),
        option("--ode-steps", default=50, type=int, help="number of steps with four network calls each (default: 50)"),
        option(
            "--probes",
            default=1,
            type=int,
            help="number of probes for the trace in the ODE, each with a backward pass (default: 1)",
        ),
    ),
    check=_check_likelihood,
)
