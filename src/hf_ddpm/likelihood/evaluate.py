"""Likelihoods for reports: on enough images, shared among all processes, with a standard error."""

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

LEAST_IMAGES = 256  # with fewer, the standard error itself is unreliable
HALVED_IMAGES = 16  # the number of images on which the ODE is solved again with half the steps

Method = Literal["bound", "ode", "both"]
Terms = TypeVar("Terms")


@dataclass(frozen=True)
class DiffusionLikelihood:
    """The measured likelihood of a set of images, with its settings; `report.py` formats it, `picture.py` plots it.

    bound, flow: the terms of the images in order, None if not requested. halved: the flow of the first `HALVED_IMAGES`
    images with half the steps. seconds: the time for each method, on the slowest process.
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
    """Measure bits/dim of a network on at least 256 images, by the variational bound, the probability-flow ODE or both.

    The images are shared among the processes of `accelerator`, each of which returns the complete result. The number of
    processes and `batch_size` change it only by the rounding of the network (1e-6 of the mean).

    Args:
        module, scheduler: The network and the scheduler of a pipeline, `pipeline.unet` and `pipeline.scheduler`; see
            `Network`.
        images: The images, from `draw_images` or `grid_images`.
        seed: The seed of all noise.
        batch_size: The number of (image, t) pairs, or of images for the ODE, per batch.
        method: `bound`, `ode` or `both`.
        clip: Whether the bound clips the x_0 prediction to [-1, 1], as the papers do; the ODE never does.
        ode_steps: See `flow_terms`; at least 2, because the ODE is also solved with half as many to show the error.
        num_probes: See `flow_terms`.
        accelerator: The accelerator of the processes.
        null_class: The class of the network that no image has, `pipeline.signature.null_class`.

    Raises:
        UserError: If there are too few images, if the method is not supported, or if images or labels do not fit the
            network.
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
    """Return the ODE terms of all images, those of the first few with half the steps, and the seconds of both."""
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
        raise UserError(f"method={method!r} must be one of {allowed}{did_you_mean(method, get_args(Method))}")
    require_at_least(0, seed=seed)
    require_at_least(1, batch_size=batch_size, num_probes=num_probes)
    require_at_least(2, ode_steps=ode_steps)


def check_images(images: GridImages) -> None:
    """Raise an error for anything other than images, and for too few images."""
    if not isinstance(images, GridImages):
        raise UserError(
            f"images must be GridImages, not {type(images).__name__}: create them with draw_images or grid_images"
        )
    check_number_of_images(
        len(images.levels), "or call bound_terms and flow_terms, or importance_terms for a VAE, for a rough estimate"
    )


def check_number_of_images(num_images: int, otherwise: str = "") -> None:
    """Raise an error for fewer than `LEAST_IMAGES` images; `otherwise` is a second remedy, for callers in Python."""
    if num_images < LEAST_IMAGES:
        remedy = f"use more, {otherwise}" if otherwise else "use more"
        raise UserError(f"a likelihood needs at least {LEAST_IMAGES} images, not {num_images}: {remedy}")


def gathered(own: Terms, merged: Callable[[list[Terms]], Terms], seconds: float) -> tuple[Terms, float]:
    """Gather the terms of all processes, and the time of the slowest."""
    parts = gather_object([(own, seconds)])
    return merged([part for part, _ in parts]), max(taken for _, taken in parts)
