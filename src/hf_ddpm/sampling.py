"""Draw many images from a pipeline; each depends only on (seed, its index), not on the batches and processes."""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.utils import make_image_grid

from hf_ddpm.errors import UserError, did_you_mean
from hf_ddpm.pipelines import HFDDGANPipeline, HFDDPMPipeline, HFVAEPipeline
from hf_ddpm.schedulers import HFDDPMScheduler
from hf_ddpm.schedulers.timestep_spacing import TimestepSpacing

if TYPE_CHECKING:
    from PIL.Image import Image

SOLVERS: dict[str, Any] = {
    "dpm-solver++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "heun": HeunDiscreteScheduler,
    "euler": EulerDiscreteScheduler,
}

DEFAULT_STEPS = 20  # of the default sampler: more steps improve little (docs/ddim.md, Results)
IMAGE_NAME = "{:06d}.png"  # the file of image i in a folder
MOST_COLUMNS = 16  # of a grid with one column for each class
DDIM, DDPM = "ddim", "ddpm"  # samplers of HFDDPMScheduler, in addition to SOLVERS

HEUNS_LIMIT = 1000  # DDPM's linear schedule starts at 157, the cosine one at 20,000 (docs/ddim.md, Results)


def mixed_seed(*numbers: int) -> int:
    """Return one 63-bit seed for several numbers, such as (seed, step); other numbers give independent streams.

    It depends on their count too, because numpy treats (1, 2) and (1, 2, 0) as the same.
    """
    return int(np.random.SeedSequence((len(numbers), *numbers)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def image_generator(seed: int, index: int) -> torch.Generator:
    """Return the generator of image `index`."""
    return torch.Generator().manual_seed(mixed_seed(seed, index))


def classes_in_turn(
    pipeline: HFDDPMPipeline, indices: Sequence[int], class_label: int | str | None
) -> list[int] | None:
    """Return one class (by number or name) for all images, or all in turn; None for a network without classes."""
    return pipeline.class_signature.classes_in_turn(indices, class_label)


def sample_images(
    pipeline: HFDDPMPipeline,
    indices: Sequence[int],
    *,
    seed: int,
    batch_size: int = 64,
    num_inference_steps: int | None = None,
    timestep_spacing: str | None = None,
    eta: float | None = None,
    class_label: int | str | None = None,
    class_labels: Sequence[int] | None = None,
    corrector_steps: int = 0,
    **guidance: Any,
) -> "Iterator[Image]":
    """Yield the images of `indices` as PIL images, drawn a batch at a time.

    A class-conditional network, or one with a classifier, gets `class_label`, the class of each index from
    `class_labels`, or its classes in turn (index modulo their number). All other arguments, including `guidance`, are
    those of a pipeline call, whose `ValueError` is raised when the first image is requested.
    """
    of_index = None if class_labels is None else dict(zip(indices, class_labels, strict=True))
    for part in _batches(indices, batch_size):
        turn = classes_in_turn(pipeline, part, class_label) if of_index is None else [of_index[i] for i in part]
        (images,) = pipeline(
            len(part),
            num_inference_steps,
            timestep_spacing=timestep_spacing,
            eta=eta,
            generator=[image_generator(seed, i) for i in part],
            class_labels=turn,
            corrector_steps=corrector_steps,
            return_dict=False,
            **guidance,
        )
        yield from images


def sample_latents(
    pipeline: HFVAEPipeline, indices: Sequence[int], *, seed: int, batch_size: int = 64, sample_pixels: bool = False
) -> "Iterator[Image]":
    """Yield the images of `indices` from a VAE's prior, as `sample_images` does; `sample_pixels` as in a call."""
    for part in _batches(indices, batch_size):
        generators = [image_generator(seed, i) for i in part]
        yield from pipeline(len(part), generators, sample_pixels=sample_pixels, return_dict=False)[0]


def sample_gan(
    pipeline: HFDDGANPipeline,
    indices: Sequence[int],
    *,
    seed: int,
    batch_size: int = 64,
    class_label: int | str | None = None,
    class_labels: Sequence[int] | None = None,
    truncation: float = 1.0,
) -> "Iterator[Image]":
    """Yield the images of `indices` from a denoising GAN, as `sample_images` does; `truncation` as in a call."""
    of_index = None if class_labels is None else dict(zip(indices, class_labels, strict=True))
    for part in _batches(indices, batch_size):
        in_turn = pipeline.signature.classes_in_turn(part, class_label)
        labels = in_turn if of_index is None else [of_index[i] for i in part]
        generators = [image_generator(seed, i) for i in part]
        call: dict[str, Any] = {"class_labels": labels, "truncation": truncation, "return_dict": False}
        yield from pipeline(len(part), generator=generators, **call)[0]


def _batches(indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Return the indices in their order, `size` at a time."""
    return (indices[start : start + size] for start in range(0, len(indices), size))


def use_default_sampler(pipeline: HFDDPMPipeline, num_inference_steps: int | None = None) -> dict[str, Any]:
    """Give a pipeline the sampler that draws best in few steps: UniPC, or DDIM if UniPC does not support the network.

    All steps of training are Algorithm 2, as in DDPM. A scheduler other than HFDDPMScheduler is kept with its settings.

    Args:
        pipeline: The pipeline, whose scheduler is replaced.
        num_inference_steps: The number of steps, by default 20.

    Returns:
        dict: Further arguments of a pipeline call.
    """
    if not isinstance(pipeline.scheduler, HFDDPMScheduler):
        return {"num_inference_steps": num_inference_steps}
    steps = min(num_inference_steps or DEFAULT_STEPS, len(pipeline.scheduler))
    if steps == len(pipeline.scheduler):
        use_algorithm_2(pipeline)
        return {"num_inference_steps": steps}
    try:
        use_solver(pipeline, "unipc", "trailing")  # with the checkpoint's leading steps no step would see pure noise
    except UserError:
        return {"num_inference_steps": steps, "eta": 0.0, "timestep_spacing": "trailing"}
    return {"num_inference_steps": steps}


def name_of_sampler(pipeline: HFDDPMPipeline, eta: float | None) -> str:
    """Return a short name of the sampler, for HFDDPMScheduler by eta and for other schedulers by their class."""
    scheduler = pipeline.scheduler
    if not isinstance(scheduler, HFDDPMScheduler):
        return type(scheduler).__name__.removesuffix("Scheduler").removesuffix("Multistep")
    eta = pipeline.config.get("default_eta") if eta is None else eta
    return "Algorithm 2 of DDPM" if eta is None else {0.0: "DDIM", 1.0: "DDPM"}.get(eta, f"eta {eta}")


def use_algorithm_2(pipeline: HFDDPMPipeline, variance_type: str | None = None) -> None:
    """Make a call without eta DDPM's Algorithm 2, whatever `default_eta` the checkpoint has.

    Args:
        variance_type: A variance to use instead of the checkpoint's; `fixed_large` is DDIM's sigma-hat (Table 1).
    """
    pipeline.register_to_config(default_eta=None)
    if variance_type is not None:
        pipeline.scheduler = HFDDPMScheduler.from_config(pipeline.scheduler.config, variance_type=variance_type)


def use_solver(pipeline: HFDDPMPipeline, name: str, timestep_spacing: str | None = None) -> None:
    """Replace the pipeline's scheduler with one of `SOLVERS`, for the same noise schedule.

    Args:
        timestep_spacing: leading, trailing or linspace, to use instead of the checkpoint's.

    Raises:
        UserError: If the solver or the spacing is unknown, or the solver would sample this checkpoint incorrectly.
    """
    if name not in SOLVERS:
        allowed = (DDIM, DDPM, *SOLVERS)
        raise UserError(f"solver {name!r} must be one of {', '.join(allowed)}{did_you_mean(name, allowed)}")
    if timestep_spacing not in (None, *get_args(TimestepSpacing)):
        known = ", ".join(get_args(TimestepSpacing))
        raise UserError(f"timestep_spacing={timestep_spacing!r} must be one of {known} for the solver {name}")
    config = pipeline.scheduler.config
    if config["prediction_type"] in (("mean", "sample") if name == "heun" else ("mean",)):
        predicted = config["prediction_type"]
        raise UserError(f"the solver {name} does not support this network's prediction_type={predicted!r}")
    if config.get("rescale_betas_zero_snr") and not _takes(SOLVERS[name], "rescale_betas_zero_snr"):
        raise UserError(
            f"the solver {name} does not support a noise schedule that ends at alpha_bar = 0 "
            "(rescale_betas_zero_snr=True), as in this checkpoint: use another solver"
        )
    if name == "heun" and (sigma := _largest_sigma(pipeline.scheduler)) > HEUNS_LIMIT:
        raise UserError(
            f"the solver heun would draw noise: this checkpoint's schedule starts at sigma = {sigma:,.0f}, and Heun's "
            f"first step is too large above {HEUNS_LIMIT:,}; use dpm-solver++, unipc or euler"
        )
    changed: dict[str, Any] = {} if timestep_spacing is None else {"timestep_spacing": timestep_spacing}
    if pipeline.signature.channels > 3 and _takes(SOLVERS[name], "variance_type"):
        changed["variance_type"] = None  # otherwise it cuts the prediction to three channels
    pipeline.scheduler = SOLVERS[name].from_config(config, **changed)


def _largest_sigma(scheduler: Any) -> float:
    """Return sqrt((1 - abar) / abar) of the noisiest step."""
    abar = float(scheduler.alphas_cumprod[-1])
    return ((1 - abar) / abar) ** 0.5


def _takes(solver: type, keyword: str) -> bool:
    return keyword in inspect.signature(solver).parameters


def count_calls(network: torch.nn.Module) -> list[int]:
    """Return a list that gets the batch size of every later call of `network`."""
    sizes: list[int] = []
    network.register_forward_hook(lambda _network, arguments, _output: sizes.append(len(arguments[0])))
    return sizes


def image_grid(images: "Iterable[Image]", num_classes: int | None = None) -> "Image":
    """Arrange the images row by row in the most square grid that they fill, or with one column for each class.

    Args:
        images: One or more images of the same size.
        num_classes: The number K of classes, if the images show them in turn; None if they do not. With 2 to 16 classes
            each has a column, and an incomplete last row ends in white.
    """
    images = list(images)
    if num_classes is not None and 2 <= num_classes <= MOST_COLUMNS:
        columns, white = min(num_classes, len(images)), images[0].copy()
        white.paste("white", (0, 0, *white.size))
        images += [white] * (-len(images) % columns)
        rows = len(images) // columns
    else:
        rows = next(r for r in range(int(len(images) ** 0.5), 0, -1) if len(images) % r == 0)
    return make_image_grid(images, rows=rows, cols=len(images) // rows)


def best_device() -> str:
    """Return "cuda" or "mps" if it is available, else "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
