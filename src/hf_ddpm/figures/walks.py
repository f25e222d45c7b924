"""Functions of pipelines that all figures use: noise for each image, and sampling from it.

Levels are counted as in the papers: after t steps of noise an image is x_t, so x_0 is the image itself and x_T is
noise. The scheduler's timestep of x_t is t - 1.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_ddpm.errors import UserError, as_user_error
from hf_ddpm.pipelines import HFDDPMPipeline
from hf_ddpm.pipelines.image_inputs import to_x_0
from hf_ddpm.pipelines.network_signature import ClassLabels
from hf_ddpm.sampling import classes_in_turn, image_generator
from hf_ddpm.schedulers import HFDDPMScheduler

BATCH_SIZE = 64  # the number of images that the network sees at a time


class Trajectory(NamedTuple):
    """Some levels of a walk from x_T to x_0, noisiest first, on the CPU.

    t: (K,), counted as in the papers. x_t, x_0: (K, B, C, H, W), the sample at that level and the x_0 predicted there,
    clipped as by the scheduler. sample: (B, C, H, W), the final sample.
    """

    t: list[int]
    x_t: Tensor
    x_0: Tensor
    sample: Tensor


def scheduler_of(pipeline: HFDDPMPipeline) -> HFDDPMScheduler:
    """Return the pipeline's scheduler, which must be an `HFDDPMScheduler`.

    Raises:
        UserError: If it is another scheduler.
    """
    if not isinstance(pipeline.scheduler, HFDDPMScheduler):
        raise UserError(
            f"figures need an HFDDPMScheduler, not {type(pipeline.scheduler).__name__}: save the checkpoint with the "
            "HFDDPMScheduler that it was trained with"
        )
    return pipeline.scheduler


def visited(pipeline: HFDDPMPipeline, steps: int | None) -> list[int]:
    """Return the timesteps of a walk of `steps` network calls (None: all T), noisiest first."""
    scheduler = scheduler_of(pipeline)
    number = len(scheduler) if steps is None else steps
    with as_user_error():
        pipeline.signature.check_steps(number, f"steps={steps} must be")
    scheduler.set_timesteps(number)
    return scheduler.timesteps.tolist()


def levels(pipeline: HFDDPMPipeline, shares: Sequence[float]) -> list[int]:
    """Return the levels t in [0, T] at shares of T, counted as in the papers, each once, in the order of `shares`."""
    return list(dict.fromkeys(round(share * len(scheduler_of(pipeline))) for share in shares))


def checked(pipeline: HFDDPMPipeline, images: Tensor) -> Tensor:
    """Convert images of a user to x_0 in [-1, 1] with the network's shape, on its device.

    Raises:
        ValueError: If the shape, the type or the range is wrong.
    """
    channels, *size = shape_of(pipeline)
    return to_x_0(images, channels, (size[0], size[1])).to(pipeline.device, pipeline.unet.dtype)


def shape_of(pipeline: HFDDPMPipeline) -> tuple[int, int, int]:
    """Return (C, H, W) of the network's images.

    Raises:
        UserError: If the network's config contains no size.
    """
    with as_user_error():
        return pipeline.signature.shape("set it to the size of the images to draw")


def one_class_each(pipeline: HFDDPMPipeline, class_labels: ClassLabels, count: int) -> list[int] | None:
    """Return the class of each of `count` images; None if no classes are given.

    Raises:
        UserError: If there is another number of classes, or if a name is not that of a class.
    """
    if class_labels is None:
        return None
    with as_user_error():
        numbers = pipeline.class_signature.numbers(class_labels)
    classes: int | list[int] = torch.as_tensor(numbers).tolist()
    if isinstance(classes, int):
        return [classes] * count
    if len(classes) != count:
        raise UserError(
            f"the number of class_labels is {len(classes)}, but the number of images is {count}: pass one label for "
            "each image, or one for all"
        )
    return classes


def generators(seed: int, rows: Sequence[int]) -> list[torch.Generator]:
    """Return a generator for each image: `hf-ddpm sample` with this seed draws image i from the same one."""
    return [image_generator(seed, row) for row in rows]


def noise_of(pipeline: HFDDPMPipeline, own: Sequence[torch.Generator]) -> Tensor:
    """Draw standard normal noise, (B, C, H, W), each image from its own generator."""
    shape = shape_of(pipeline)
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in own])
    return noise.to(pipeline.device, pipeline.unet.dtype)


def parts(count: int, size: int = BATCH_SIZE) -> Iterator[slice]:
    """Split 0 .. count - 1 into slices of at most `size`."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def decode(
    pipeline: HFDDPMPipeline,
    x_t: Tensor,
    own: Sequence[torch.Generator] | None,
    *,
    class_labels: Sequence[int] | None = None,
    on_step: Callable[..., None] | None = None,
    **sampling: Any,
) -> Tensor:
    """Denoise `x_t` to x_0, in batches: (B, C, H, W) in [-1, 1] on the CPU.

    Args:
        x_t: The noise, (B, C, H, W), or, with `start_timestep` in `sampling`, images at that level.
        own: A generator for each image; None if no noise is drawn, that is for eta = 0.
        class_labels: The class of each image, if and only if the network has classes.
        on_step: The `callback_on_step_end` of the pipeline call, which is called for each batch.
        sampling: Further arguments of the pipeline call.
    """
    done = []
    for part in parts(len(x_t)):
        labels = None if class_labels is None else list(class_labels)[part]
        (images,) = pipeline(
            len(x_t[part]),
            latents=x_t[part],
            generator=None if own is None else list(own)[part],
            class_labels=labels,
            callback_on_step_end=on_step,
            output_type="pt",
            return_dict=False,
            **sampling,
        )
        done.append(images.float().cpu() * 2 - 1)
    return torch.cat(done)


def trajectory(
    pipeline: HFDDPMPipeline,
    rows: Sequence[int],
    seed: int,
    *,
    steps: int | None,
    keep: Collection[int],
    class_label: int | str | None = None,
    **sampling: Any,
) -> Trajectory:
    """Sample the images `rows` of a seed and keep the states at some timesteps of the walk.

    Args:
        rows: The indices of the images, at most `BATCH_SIZE`.
        steps: The number of network calls, None for all T.
        keep: The timesteps to keep, which must be in `visited(pipeline, steps)`.
        sampling: Further arguments of the pipeline call.
    """
    own = generators(seed, rows)
    x_T = noise_of(pipeline, own)
    before, kept = [x_T], []

    def on_step(_: object, i: int, t: Tensor, seen: dict[str, Tensor]) -> None:
        if int(t) in keep:
            kept.append((int(t) + 1, before[0].float().cpu(), seen["pred_original_sample"].float().cpu()))
        before[0] = seen["latents"]

    labels = classes_in_turn(pipeline, rows, class_label)
    sample = decode(pipeline, x_T, own, num_inference_steps=steps, class_labels=labels, on_step=on_step, **sampling)
    t, x_t, x_0 = zip(*kept, strict=True)
    return Trajectory(list(t), torch.stack(x_t), torch.stack(x_0), sample)


def nearest_visited(walk: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """Return the timesteps of a walk nearest to levels t in [0, T], each once; T and 0 give its first and its last."""
    return list(dict.fromkeys(min(walk, key=lambda visit: abs(visit + 1 - t)) for t in wanted))


def evenly(count: int) -> list[float]:
    """Return `count` evenly spaced shares of T, from 1 to 0."""
    return [1 - i / (count - 1) for i in range(count)]


def grey_levels(squared: Tensor) -> Tensor:
    """Convert mean squared errors between images in [-1, 1] to the RMSE on the scale 0..255."""
    return squared.sqrt() * 127.5
