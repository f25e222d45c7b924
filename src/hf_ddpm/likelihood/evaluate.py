"""A likelihood worth reporting: enough images, every process at work on its share, a standard error beside it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from hf_ddpm.errors import UserError, did_you_mean, require_at_least
from hf_ddpm.likelihood.bound import BoundTerms, bound_terms
from hf_ddpm.likelihood.flow import CALLS_A_STEP, FlowTerms, flow_terms
from hf_ddpm.likelihood.images import GridImages, share
from hf_ddpm.likelihood.network import Network
from hf_ddpm.pipelines.evaluating import evaluating
from hf_ddpm.progress import ProgressBar

LEAST_IMAGES = 256  # below, the standard error itself is hardly known
HALVED_IMAGES = 16  # on so many the ODE is solved again with half the steps

Method = Literal["bound", "ode", "both"]
Terms = TypeVar("Terms")


@dataclass(frozen=True)
class DiffusionLikelihood:
    """What was measured on a set of images, and how; `report.py` makes a table, a file and a picture of it.

    bound, flow: of the images in their order, None if not asked for. halved: the flow of the first `HALVED_IMAGES`
    images with half the steps. seconds: for each method, on the slowest process.
    """

    images: GridImages
    seed: int
    clip: bool
    ode_steps: int
    num_probes: int
    bound: BoundTerms | None
    flow: FlowTerms | None
    halved: FlowTerms | None
    seconds: dict[str, float]


def evaluate(
    module: nn.Module,
    scheduler: object,
    images: GridImages,
    *,
    seed: int = 0,
    batch_size: int = 64,
    method: Method = "both",
    clip: bool = True,
    ode_steps: int = 50,
    num_probes: int = 1,
    accelerator: Accelerator | None = None,
    null_class: int | None = None,
) -> DiffusionLikelihood:
    """Bits/dim of a network on at least 256 images, by the variational bound, the probability-flow ODE, or both.

    The images are shared out to the processes of `accelerator`; every one of them returns the whole result. Neither
    their number nor `batch_size` changes it beyond the rounding of the network (1e-6 of the mean).

    Args:
        module, scheduler: of a pipeline, such as `pipeline.unet` and `pipeline.scheduler`; see `Network`.
        images: from `draw_images` or `grid_images`.
        seed: of all noise.
        batch_size: (image, t) pairs, or images for the ODE, at a time.
        clip: whether the bound clips the x_0 prediction to [-1, 1], as the papers do; the ODE never does.
        ode_steps: see `flow_terms`; at least 2, since half as many tell how far they are from enough.
        num_probes: see `flow_terms`.
        null_class: `pipeline.signature.null_class`, the class of a network that no image has.

    Raises:
        UserError: fewer images, another method, images or labels that do not fit the network.
    """
    _check(images, seed, batch_size, method, ode_steps, num_probes)
    network = Network(module, scheduler, null_class)
    network.check(images)
    accelerator = accelerator or Accelerator(cpu=network.device.type == "cpu")
    rows = share(len(images.levels), accelerator.process_index, accelerator.num_processes)
    settings: dict[str, Any] = {"seed": seed, "batch_size": batch_size}
    bound = flow = halved = None
    seconds = {}
    # TF32 would make the batch size visible
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), evaluating(module):
        if method != "ode":
            with ProgressBar("bound", len(rows) * len(network.scheduler), accelerator) as bar:
                own = bound_terms(network, images, rows, clip=clip, progress=bar.update, **settings)
            bound, seconds["bound"] = gathered(own, BoundTerms.merged, bar.seconds)
        if method != "bound":
            flow, halved, seconds["ode"] = _both_flows(
                network, images, rows, ode_steps, accelerator, num_probes=num_probes, **settings
            )
    return DiffusionLikelihood(images, seed, clip, ode_steps, num_probes, bound, flow, halved, seconds)


def _both_flows(
    network: Network, images: GridImages, rows: Tensor, steps: int, accelerator: Accelerator, **settings: Any
) -> tuple[FlowTerms, FlowTerms, float]:
    """The ODE of all images, that of the first few with half the steps, and the seconds of both."""
    first, half = rows[rows < HALVED_IMAGES], steps // 2
    with ProgressBar("ode", CALLS_A_STEP * (steps * len(rows) + half * len(first)), accelerator) as bar:
        own = flow_terms(network, images, rows, steps=steps, progress=bar.update, **settings)
        own_halved = flow_terms(network, images, first, steps=half, progress=bar.update, **settings)
    flow, seconds = gathered(own, FlowTerms.merged, bar.seconds)
    return flow, gathered(own_halved, FlowTerms.merged, 0.0)[0], seconds


def _check(images: GridImages, seed: int, batch_size: int, method: Method, ode_steps: int, num_probes: int) -> None:
    check_images(images)
    if method not in get_args(Method):
        allowed = ", ".join(get_args(Method))
        raise UserError(
            f"method={method!r} is not known, allowed are {allowed}{did_you_mean(method, get_args(Method))}"
        )
    require_at_least(0, seed=seed)
    require_at_least(1, batch_size=batch_size, num_probes=num_probes)
    require_at_least(2, ode_steps=ode_steps)


def check_images(images: GridImages) -> None:
    """Refuse other things than images, and too few of them."""
    if not isinstance(images, GridImages):
        raise UserError(f"images are {type(images).__name__}: make them with draw_images or grid_images")
    check_number_of_images(len(images.levels))


def check_number_of_images(num_images: int) -> None:
    """Refuse a figure from fewer than `LEAST_IMAGES`."""
    if num_images < LEAST_IMAGES:
        raise UserError(
            f"{num_images} images are too few for a likelihood that is reported: take at least {LEAST_IMAGES}, "
            "or call importance_terms of a VAE, bound_terms and flow_terms of a diffusion model, for a first look"
        )


def gathered(own: Terms, merged: Callable[[list[Terms]], Terms], seconds: float) -> tuple[Terms, float]:
    """The terms of all processes, and the time of the slowest."""
    parts = gather_object([(own, seconds)])
    return merged([part for part, _ in parts]), max(taken for _, taken in parts)
