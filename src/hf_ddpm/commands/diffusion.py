"""What `hf-ddpm sample` and `hf-ddpm likelihood` do with a diffusion model."""

import argparse
from typing import TYPE_CHECKING, Any

from hf_ddpm.commands.guidance import GUIDANCE_OPTIONS, guide
from hf_ddpm.commands.kind_options import KindCommand, Measurement, option
from hf_ddpm.commands.options import (
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
    """Those of `sample_images`; what the options cannot ask of the pipeline is said at once."""
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
    """What a call takes of steps, eta and spacing, when the pipeline has been given the sampler that is asked for."""
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
    """The variational bound of the images, their likelihood by the probability flow, or both."""
    from hf_ddpm.likelihood import Network, draw_images, evaluate
    from hf_ddpm.likelihood.picture import draw_bound
    from hf_ddpm.likelihood.report import diffusion_report, diffusion_table

    wanted = {"matplotlib": options.method != "ode", "torchdiffeq": options.method != "bound"}
    require_packages(f"--method {options.method}", *(name for name, needed in wanted.items() if needed))
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
        null_class=pipeline.signature.null_class,
    )

    def report_of(**about: Any) -> dict[str, Any]:
        return diffusion_report(likelihood, pipeline.unet, pipeline.scheduler, **about)

    return Measurement(data, report_of, diffusion_table, None if options.method == "ode" else draw_bound)


def _open(options: argparse.Namespace, pipeline: "HFDDPMPipeline") -> "ImageData":
    """The data in the network's size and channels, cut and resized as in training."""
    where = (options.data, options.split, pipeline, options.checkpoint)
    if pipeline.signature.takes_labels:
        remedy = "name the column that holds them with --label-column"
        return open_labelled_data(*where, remedy=remedy, label_column=options.label_column, cache="none")
    if options.label_column != "auto":
        raise UserError(
            f"--label-column {options.label_column}: the network was trained without classes, leave the option out"
        )
    return open_data(*where, cache="none")


def _check_sample(options: argparse.Namespace) -> None:
    """Refuse what needs no checkpoint to be seen as wrong."""
    if options.solver is not None and options.eta is not None:
        raise UserError(f"--eta {options.eta} has no meaning for --solver {options.solver}: leave one of them out")
    if options.solver is not None and options.corrector_steps:
        raise UserError(f"--corrector-steps do not go with --solver {options.solver}: leave one of them out")
    if options.classifier_gradient == "mean":
        _check_mean(options)


def _check_mean(options: argparse.Namespace) -> None:
    """Refuse a gradient at the mean of p(x_{t-1} | x_t) in a walk that has no such mean."""
    from hf_ddpm.sampling import DDPM

    algorithm_2 = options.eta in (SIGMA_HAT, ALGORITHM_2) or options.solver == DDPM
    if options.corrector_steps or not algorithm_2:
        raise UserError(
            "--classifier-gradient mean goes with --eta none (Algorithm 2) and no --corrector-steps: give --eta none, "
            "or leave --classifier-gradient out"
        )


def _check_likelihood(options: argparse.Namespace) -> None:
    """Refuse what needs no checkpoint to be seen as wrong."""
    if options.probes is not None:
        require_positive(options, "probes")
    if options.ode_steps is not None and options.ode_steps < 2:
        raise UserError(f"--ode-steps {options.ode_steps} must be at least 2: half as many show whether they suffice")


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
        option("--steps", type=int, help="steps of the walk (default: 20 of UniPC; with --eta all of training's)"),
        option("--spacing", help="leading, trailing, linspace, quadratic; or, without --steps, '10,15,20' or ddim25"),
        option(
            "--eta",
            type=_eta,
            help="0 is DDIM, 1 DDPM; none is Algorithm 2 with the checkpoint's variance, sigma-hat with the larger one "
            "(default: no eta but --solver unipc)",
        ),
        option("--corrector-steps", default=0, type=int, help="Langevin steps at each level (default: 0)"),
        option(
            "--solver", help="instead of eta: unipc, dpm-solver++, heun or euler as diffusers has them, ddim or ddpm"
        ),
        option("--class", dest="class_label", help="one class for all images, its name or number (default: in turn)"),
        *GUIDANCE_OPTIONS,
    ),
    refusal="{flag} {value} belongs to a diffusion model, and {checkpoint!r} holds a {kind}: leave it out",
    check=_check_sample,
)
LIKELIHOOD = KindCommand(
    _measure,
    (
        option("--method", default="both", choices=("bound", "ode", "both"), help="(default: both)"),
        option(
            "--no-clip",
            default=False,
            action="store_true",
            help="leave x_0 predictions beyond [-1, 1] in the bound",
        ),
        option("--ode-steps", default=50, type=int, help="of four network calls each (default: 50)"),
        option("--probes", default=1, type=int, help="of the ODE's trace, a backward pass each (default: 1)"),
    ),
    check=_check_likelihood,
)
