"""Editing of real images with a trained model: encode, vary, interpolate, repaint.

Each function is a method of `HFDDPMPipeline`, which is its first argument, `pipeline`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from numbers import Integral
from typing import Any, Literal

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hf_ddpm.pipelines.call_checks import Generators, check_call
from hf_ddpm.pipelines.evaluating import without_training
from hf_ddpm.pipelines.guidance import GUIDANCE
from hf_ddpm.pipelines.guiding import check_mean
from hf_ddpm.pipelines.image_inputs import Images, to_images, to_mask
from hf_ddpm.pipelines.interpolation import check_pairs, shares_of
from hf_ddpm.pipelines.network_signature import ClassLabels
from hf_ddpm.pipelines.walk import walk_around, walk_up


def vary(
    pipeline: Any, images: Images, start_timestep: int, *, generator: Generators = None, **sampling: Any
) -> ImagePipelineOutput | tuple[Any]:
    """Add noise to images up to level `start_timestep` and sample from there: the higher, the less of them remains.

    Args:
        images: PIL images, tensors (B, C, H, W) or arrays (B, H, W, C): uint8, in [0, 1] or in [-1, 1]; see `to_x_0`.
        start_timestep: t in [0, T-1].
        generator: The generator of the noise in both directions.
        sampling: Further arguments of a call: num_inference_steps, eta, class_labels, output_type, ...
    """
    pipeline._needs_own_scheduler("vary")
    return _varied(pipeline, pipeline._space.x_0(images), start_timestep, generator, sampling)


def _varied(
    pipeline: Any, x_0: Tensor, start_timestep: int, generator: Generators, sampling: dict[str, Any]
) -> ImagePipelineOutput | tuple[Any]:
    noise = randn_tensor(x_0.shape, generator=generator, device=x_0.device, dtype=x_0.dtype)
    x_t = pipeline.scheduler.add_noise(x_0, noise, start_timestep)
    return pipeline(len(x_0), latents=x_t, start_timestep=start_timestep, generator=generator, **sampling)


@without_training
def invert(
    pipeline: Any,
    images: Images,
    num_inference_steps: int | None = None,
    *,
    timesteps: Sequence[int] | None = None,
    timestep_spacing: str | None = None,
    class_labels: ClassLabels = None,
    **guidance: Any,
) -> Tensor:
    """Encode images as the x_T from which the same steps with eta 0 lead back to them (DDIM, sec. 4.3 and 5.4).

    Args:
        images: PIL images, tensors (B, C, H, W) or arrays (B, H, W, C): uint8, in [0, 1] or in [-1, 1]; see `to_x_0`.
        num_inference_steps, timesteps, timestep_spacing, class_labels: As in a call; S steps are S network calls.
        guidance: The guidance arguments of a call, such as guidance_scale and classifier_scale. An image is recovered
            only if both directions have the same guidance, and more exactly if it is weak.

    Returns:
        Tensor: The codes, (B, C, H, W), which are the `latents` of a call with the same steps.
    """
    pipeline._needs_own_scheduler("invert")
    x_0 = pipeline._space.x_0(images)
    ask = pipeline._guided(class_labels, len(x_0), **guidance)
    if guidance.get("classifier_gradient") == "mean":
        raise ValueError("classifier_gradient='mean' requires Algorithm 2, which has no inverse: use 'x_t'")
    pipeline._set_timesteps(num_inference_steps, timesteps, timestep_spacing)
    return walk_up(ask, x_0)


def reconstruct(
    pipeline: Any,
    images: Images,
    num_inference_steps: int | None = None,
    *,
    timesteps: Sequence[int] | None = None,
    timestep_spacing: str | None = None,
    class_labels: ClassLabels = None,
    clip: bool = True,
    **sampling: Any,
) -> ImagePipelineOutput | tuple[Any]:
    """Encode images with `invert` and decode them with eta 0 (DDIM, Table 2), in 2 S network calls.

    Args:
        images, num_inference_steps, timesteps, timestep_spacing, class_labels: As in `invert`.
        clip: Whether decoding clips the predicted x_0 as the scheduler's config says; encoding never clips. Without
            clipping each step is undone, and the error keeps decreasing with S instead of reaching a floor. But if
            decoding starts with nearly no signal (a cosine schedule, from T-1) and the network predicts epsilon, whose
            error in x_0 is then thousands of times as large, no image is recovered without clipping.
        sampling: Further arguments of a call; guidance applies to both directions.
    """
    steps: dict[str, Any] = {"timesteps": timesteps, "timestep_spacing": timestep_spacing}
    steps |= {"num_inference_steps": num_inference_steps, "class_labels": class_labels}
    steps |= {name: sampling.pop(name) for name in GUIDANCE if name in sampling}
    if "eta" in sampling:
        raise ValueError(f"eta={sampling['eta']} is not supported: reconstruct is deterministic, so omit eta")
    latents, scheduler = pipeline.invert(images, **steps), pipeline.scheduler
    if not clip:
        pipeline.scheduler = scheduler.from_config(scheduler.config, clip_sample=False, thresholding=False)
    try:
        return pipeline(len(latents), latents=latents, eta=0.0, **steps, **sampling)
    finally:
        pipeline.scheduler = scheduler


def interpolate(
    pipeline: Any,
    first: Images,
    second: Images,
    weights: Sequence[float],
    start_timestep: int,
    *,
    generator: Generators = None,
    **sampling: Any,
) -> list[Any]:
    """Mix two images at level `start_timestep` and sample from there (DDPM, sec. 4.3 and Fig. 8).

    Both images and all weights get the same noise: x_t of the mix is the mix of both x_t, and its variance is that of
    the level. For DDIM's interpolation in x_T, `invert` both images, apply `slerp`, and call the pipeline with eta 0.

    Args:
        first, second: Images as in `vary`, equal numbers of both.
        weights: The weights of `second`, in [0, 1]; each of them is sampled separately.
        start_timestep: t in [0, T-1].
        generator: The generator of the noise, which is the same for each weight: the generator is reset after each of
            them, also after the last one.
        sampling: Further arguments of a call.

    Returns:
        list: The images of each weight, as a call returns them.
    """
    shares = shares_of(weights)
    x_0, y_0 = pipeline._space.x_0(first), pipeline._space.x_0(second)
    check_pairs(x_0, y_0)
    generator = torch.Generator().manual_seed(int(torch.randint(2**62, ()))) if generator is None else generator
    mixed = []
    for weight in shares:
        with same_noise(generator):
            # both have the same noise, so it does not matter whether they are mixed before or after it
            mix = (1 - weight) * x_0 + weight * y_0
            output = _varied(pipeline, mix, start_timestep, generator, {**sampling, "return_dict": False})
        mixed.append(output[0])
    return mixed


@without_training
def inpaint(
    pipeline: Any,
    images: Images,
    mask: Tensor,
    num_inference_steps: int | None = None,
    *,
    jump_length: int | None = None,
    num_resamples: int = 10,
    eta: float | None = None,
    generator: Generators = None,
    class_labels: ClassLabels = None,
    timesteps: Sequence[int] | None = None,
    timestep_spacing: str | None = None,
    output_type: Literal["pil", "np", "pt"] = "pil",
    return_dict: bool = True,
    **guidance: Any,
) -> ImagePipelineOutput | tuple[Any]:
    """Repaint the masked part so that it fits the rest, which is kept unchanged (RePaint, arXiv 2201.09865).

    Args:
        images: Images as in `vary`.
        mask: 1 where the image is repainted, 0 where it is kept, in a shape that broadcasts to (B, C, H, W).
        jump_length: The number of steps by which sampling goes back up to resample; None is 10, or all but one of
            fewer steps.
        num_resamples: The number of times that each part of the steps is sampled; 1 disables resampling.
        num_inference_steps, eta, generator, class_labels, timesteps, timestep_spacing, output_type, return_dict:
            As in a call; the number of network calls is that of a call times about `num_resamples`.
        guidance: The guidance arguments of a call, such as guidance_scale and classifier_scale.
    """
    pipeline._needs_own_scheduler("inpaint")
    space = pipeline._space
    original, x_0 = space.pixels(images), space.x_0(images)
    check_call(len(x_0), generator, output_type)
    ask, step_kwargs = pipeline._guided(class_labels, len(x_0), **guidance), pipeline._step_kwargs(eta, generator)
    if guidance.get("classifier_gradient") == "mean":
        check_mean(pipeline, step_kwargs, corrector_steps=0)
    pipeline._set_timesteps(num_inference_steps, timesteps, timestep_spacing)
    pipeline._check_start_at_noise()
    path = repaint_path(len(pipeline.scheduler.timesteps), jump_length, num_resamples)
    of_pixels = to_mask(mask, original)
    mask = space.mask(of_pixels, x_0)

    def draw() -> Tensor:
        return randn_tensor(x_0.shape, generator=generator, device=x_0.device, dtype=x_0.dtype)

    with pipeline.progress_bar(total=sum(there < here for here, there in pairwise(path))) as bar:
        x_t = walk_around(ask, x_0, mask, path, draw, step_kwargs, on_call=bar.update)
    painted = to_images(of_pixels * space.decoded(x_t) + (1 - of_pixels) * original, output_type)
    pipeline.maybe_free_model_hooks()
    return ImagePipelineOutput(images=painted) if return_dict else (painted,)


def repaint_path(num_steps: int, jump_length: int | None, num_resamples: int) -> list[int]:
    """Return the number of steps left after each move: down by one, and `num_resamples` - 1 times up by `jump_length`.

    The jumps start with 1, 1 + jump_length, 1 + 2 jump_length, ... steps left (RePaint, appendix B).

    Args:
        num_steps: The number of steps.
        jump_length: The length of a jump; None is 10, as in the paper, or all but one of fewer steps.
        num_resamples: The number of times that each part of the steps is sampled.

    Raises:
        ValueError: If a jump is not shorter than the number of steps, or a number is below 1.
    """
    if not isinstance(num_resamples, Integral) or num_resamples < 1:
        raise ValueError(f"num_resamples={num_resamples} must be a whole number of at least 1; 1 disables resampling")
    if num_resamples == 1 or num_steps == 1:
        return list(range(num_steps, -1, -1))
    length = min(10, num_steps - 1) if jump_length is None else jump_length
    if not 1 <= length < num_steps:
        raise ValueError(f"jump_length={length} must be from 1 to {num_steps - 1}, less than the {num_steps} steps")
    jumps = {left: num_resamples - 1 for left in range(1, num_steps - length + 1, length)}
    path = [num_steps]
    while path[-1] > 0:
        left = path[-1]
        if jumps.get(left, 0) > 0:
            jumps[left] -= 1
            path.append(left + length)
        path.append(path[-1] - 1)
    return path


@contextmanager
def same_noise(generator: Generators) -> Iterator[None]:
    """Reset the generators at the end of the block, so that the next block draws the same numbers."""
    generators = generator if isinstance(generator, list) else [generator] if generator is not None else []
    states = [one.get_state() for one in generators]
    yield
    for one, state in zip(generators, states, strict=True):
        one.set_state(state)
