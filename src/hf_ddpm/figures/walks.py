"""What all figures ask of a pipeline: noise that belongs to an image, and walks down from it.

Levels are counted as in the papers: after t steps of noise an image is x_t, so x_0 is the image itself and x_T noise.
The scheduler's timestep of x_t is t - 1.
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

BATCH_SIZE = 64  # images that the network sees at a time


class Trajectory(NamedTuple):
    """Some levels of a walk from x_T to x_0, noisiest first, on the CPU.

    t: (K,) as the papers count. x_t, x_0: (K, B, C, H, W), the sample at that level and the x_0 predicted there,
    clipped as the scheduler clips. sample: (B, C, H, W), where the walk ended.
    """

    t: list[int]
    x_t: Tensor
    x_0: Tensor
    sample: Tensor


def scheduler_of(pipeline: HFDDPMPipeline) -> HFDDPMScheduler:
    """The pipeline's scheduler, which figures need to be ours.

    Raises:
        UserError: another one.
    """
    if not isinstance(pipeline.scheduler, HFDDPMScheduler):
        raise UserError(
            f"figures need an HFDDPMScheduler, not {type(pipeline.scheduler).__name__}: "
            "pipeline.scheduler = HFDDPMScheduler.from_config(pipeline.scheduler.config)"
        )
    return pipeline.scheduler


def visited(pipeline: HFDDPMPipeline, steps: int | None) -> list[int]:
    """The timesteps of a walk of `steps` network calls (None: all T), noisiest first."""
    scheduler = scheduler_of(pipeline)
    number = len(scheduler) if steps is None else steps
    with as_user_error():
        pipeline.signature.check_steps(number, f"steps={steps} must be")
    scheduler.set_timesteps(number)
    return scheduler.timesteps.tolist()


def levels(pipeline: HFDDPMPipeline, shares: Sequence[float]) -> list[int]:
    """Levels t in [0, T] at shares of T, as the papers count, each once, in the order of `shares`."""
    return list(dict.fromkeys(round(share * len(scheduler_of(pipeline))) for share in shares))


def checked(pipeline: HFDDPMPipeline, images: Tensor) -> Tensor:
    """Images that a user gave, as x_0 in [-1, 1] of the network's shape, on its device.

    Raises:
        ValueError: another shape, type or range, said in one sentence.
    """
    channels, *size = shape_of(pipeline)
    return to_x_0(images, channels, (size[0], size[1])).to(pipeline.device, pipeline.unet.dtype)


def shape_of(pipeline: HFDDPMPipeline) -> tuple[int, int, int]:
    """(C, H, W) of the network's images.

    Raises:
        UserError: a network whose config says no size.
    """
    with as_user_error():
        return pipeline.signature.shape("set it to the size of the images to draw")


def one_class_each(pipeline: HFDDPMPipeline, class_labels: ClassLabels, count: int) -> list[int] | None:
    """The class of each of `count` images; None where none are given.

    Raises:
        UserError: another number of classes, or a name that none has.
    """
    if class_labels is None:
        return None
    with as_user_error():
        numbers = pipeline.class_signature.numbers(class_labels)
    classes: int | list[int] = torch.as_tensor(numbers).tolist()
    if isinstance(classes, int):
        return [classes] * count
    if len(classes) != count:
        raise UserError(f"{len(classes)} class_labels for {count} images: give one for each, or one for all")
    return classes


def generators(seed: int, rows: Sequence[int]) -> list[torch.Generator]:
    """One for each image: `hf-ddpm sample` with this seed draws image i from the same one."""
    return [image_generator(seed, row) for row in rows]


def noise_of(pipeline: HFDDPMPipeline, own: Sequence[torch.Generator]) -> Tensor:
    """Standard normal noise, (B, C, H, W), each image from its own generator."""
    shape = shape_of(pipeline)
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in own])
    return noise.to(pipeline.device, pipeline.unet.dtype)


def parts(count: int, size: int = BATCH_SIZE) -> Iterator[slice]:
    """0 .. count - 1 in slices of at most `size`."""
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
    """Walk from `x_t` down to x_0, in batches: (B, C, H, W) in [-1, 1] on the CPU.

    Args:
        x_t: (B, C, H, W), noise, or with `start_timestep` among `sampling` the images at that level.
        own: a generator for each image; None for a walk that draws nothing, eta = 0.
        class_labels: for each image, if and only if the network has classes.
        on_step: `callback_on_step_end` of a call, which sees one batch after the other.
        sampling: further arguments of a call.
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
    """Sample the images `rows` of a seed and keep what is seen at some timesteps of the walk.

    Args:
        rows: at most `BATCH_SIZE`.
        steps: network calls, None for all T.
        keep: timesteps among `visited(pipeline, steps)`.
        sampling: further arguments of a call.
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
    """The timesteps of a walk that are nearest to levels t in [0, T], each once; T and 0 are its first and its last."""
    return list(dict.fromkeys(min(walk, key=lambda visit: abs(visit + 1 - t)) for t in wanted))


def evenly(count: int) -> list[float]:
    """`count` shares of T from 1 down to 0."""
    return [1 - i / (count - 1) for i in range(count)]


def grey_levels(squared: Tensor) -> Tensor:
    """RMSE on the scale 0..255 of mean squared errors between images in [-1, 1]."""
    return squared.sqrt() * 127.5
