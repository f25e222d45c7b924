"""Trajectories: the forward process, and DDPM's Figures 6 and 7 (Ho et al. 2020, arXiv 2006.11239)."""

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hf_ddpm.errors import UserError
from hf_ddpm.figures.figure import Figure
from hf_ddpm.figures.grid import labelled_grid, tiles, transposed
from hf_ddpm.figures.walks import (
    BATCH_SIZE,
    Trajectory,
    checked,
    decode,
    evenly,
    generators,
    grey_levels,
    levels,
    nearest_visited,
    noise_of,
    scheduler_of,
    trajectory,
    visited,
)
from hf_ddpm.pipelines import HFDDPMPipeline
from hf_ddpm.sampling import classes_in_turn, mixed_seed

FORWARD_SHARES = (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1)  # levels, as shares of T
SHARED_SHARES = (1, 0.75, 0.5, 0.25)  # DDPM's Figure 7: t = 1000, 750, 500, 250
COLUMNS, FRAMES = 11, 32


def forward(pipeline: HFDDPMPipeline, images: Tensor, *, seed: int = 0, motion: bool = False) -> Figure:
    """Draw the forward process of real images: x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps (DDPM, eq. 4).

    Each image uses the same eps for all t, so that only the two coefficients change along a row.

    Args:
        pipeline: The pipeline, of which only the scheduler is used.
        images: The images x_0, (B, C, H, W), uint8, in [0, 1] or in [-1, 1].
        seed: The seed of eps.
        motion: Whether to also draw the frames.

    Returns:
        Figure: The tensors t (K,), counted as in the papers, and x_t (K, B, C, H, W).
    """
    x_0 = checked(pipeline, images)
    noise = noise_of(pipeline, generators(seed, range(len(x_0))))
    ts = levels(pipeline, FORWARD_SHARES)
    x_t = torch.stack([_noised(pipeline, x_0, noise, t) for t in ts])
    picture = labelled_grid(transposed([tiles(x) for x in x_t]), column_labels=[f"t = {t}" for t in ts])
    frames = []
    if motion:
        for t in levels(pipeline, evenly(FRAMES)[::-1]):
            frames.append(labelled_grid([tiles(_noised(pipeline, x_0, noise, t))], title=f"q(x_t | x_0), t = {t}"))
    return Figure(picture, {"t": torch.tensor(ts), "x_t": x_t}, frames=tuple(frames))


def progressive(
    pipeline: HFDDPMPipeline,
    *,
    seed: int = 0,
    num_images: int = 8,
    steps: int | None = None,
    eta: float | None = None,
    class_label: int | str | None = None,
    motion: bool = False,
) -> Figure:
    """Draw progressive generation (DDPM, Fig. 6): the x_0 predicted from x_t as t decreases, one sample per row.

    Args:
        seed: The seed; row i is image i of `hf-ddpm sample` with this seed.
        num_images: The number of images, at most 64.
        steps, eta, class_label: The options of sampling, as in a call of the pipeline; without `class_label`, the
            classes are used in turn.
        motion: Whether to also draw the frames, with x_t above and its x_0 prediction below.

    Returns:
        Figure: The tensors t (K,), x_t and x_0 (K, B, C, H, W) and sample (B, C, H, W), which is the last x_0.
    """
    if num_images > BATCH_SIZE:
        raise UserError(f"{num_images} samples are too many for a readable figure: use at most {BATCH_SIZE}")
    walk = visited(pipeline, steps)
    columns, moments = (nearest_visited(walk, levels(pipeline, evenly(count))) for count in (COLUMNS, FRAMES))
    seen = trajectory(
        pipeline, range(num_images), seed,
        steps=steps, keep={*columns, *(moments if motion else ())}, eta=eta, class_label=class_label,
    )  # fmt: skip
    shown = [k for k, t in enumerate(seen.t) if t - 1 in columns]
    predictions = transposed([tiles(seen.x_0[k]) for k in shown])
    picture = labelled_grid(predictions, column_labels=[f"t = {seen.t[k]}" for k in shown])
    frames = [_moment(seen, k) for k, t in enumerate(seen.t) if motion and t - 1 in moments]
    tensors = {"t": torch.tensor(seen.t), "x_t": seen.x_t, "x_0": seen.x_0, "sample": seen.sample}
    return Figure(picture, tensors, frames=tuple(frames))


def _moment(seen: Trajectory, k: int) -> Image.Image:
    """Draw a frame: x_t above, and the x_0 predicted from it below."""
    rows = [tiles(seen.x_t[k]), tiles(seen.x_0[k])]
    return labelled_grid(rows, row_labels=["x_t", "predicted x_0"], title=f"t = {seen.t[k]}")


def shared_latents(
    pipeline: HFDDPMPipeline,
    *,
    seed: int = 0,
    num_images: int = 9,
    steps: int | None = None,
    class_label: int | str | None = None,
) -> Figure:
    """Draw samples of p(x_0 | x_t) from the same x_t, for four levels of one trajectory (DDPM, Fig. 7).

    One image is sampled by Algorithm 2; from its x_t at t = T, 3/4 T, T/2 and T/4 (the nearest timesteps with `steps`),
    `num_images` samples are drawn, each with its own noise. The smaller t is, the more they have in common.

    Returns:
        Figure: The tensors t (4,), x_t (4, C, H, W) and samples (4, num_images, C, H, W); the number `spread` is the
        standard deviation of a pixel over the samples of a level on the scale 0..255, as the RMS over pixels.
    """
    # The default of a checkpoint may be DDIM, which draws no noise: all samples of a level would be equal.
    eta = None if pipeline.config["default_eta"] is None else 1.0
    walk = visited(pipeline, steps)
    wanted = nearest_visited(walk, levels(pipeline, SHARED_SHARES))
    seen = trajectory(pipeline, [0], seed, steps=steps, keep=wanted, eta=eta, class_label=class_label)
    sampling: dict[str, Any] = {"num_inference_steps": steps, "eta": eta}
    sampling["class_labels"] = classes_in_turn(pipeline, [0] * num_images, class_label)
    samples = []
    for t, x_t in zip(wanted, seen.x_t, strict=True):
        own = generators(mixed_seed(seed, t), range(num_images))  # independent of the noise of any sample
        copies = x_t.to(pipeline.device, pipeline.unet.dtype).repeat(num_images, 1, 1, 1)
        samples.append(decode(pipeline, copies, own, start_timestep=t, **sampling))
    spread = [float(grey_levels(x.var(dim=0, unbiased=False).mean())) for x in samples]
    sentence = "spread " + ", ".join(f"{s:.1f} at t = {t}" for s, t in zip(spread, seen.t, strict=True))
    tensors = {"t": torch.tensor(seen.t), "x_t": seen.x_t[:, 0], "samples": torch.stack(samples)}
    return Figure(_shared(seen, samples), tensors, {"t": seen.t, "spread": spread}, sentence)


def _shared(seen: Trajectory, samples: list[Tensor]) -> Image.Image:
    """Draw one row per level: x_t, and the samples from it."""
    return labelled_grid(
        [tiles(x_t) + tiles(x) for x_t, x in zip(seen.x_t, samples, strict=True)],
        row_labels=[f"t = {t}" for t in seen.t],
        column_labels=["x_t", *[""] * (len(samples[0]) // 2), "samples of p(x_0 | x_t)"],
        wide_gaps=[1],
    )


def _noised(pipeline: HFDDPMPipeline, x_0: Tensor, noise: Tensor, t: int) -> Tensor:
    """Return x_t after t steps of noise, (B, C, H, W) on the CPU; x_0 itself at t = 0."""
    return (scheduler_of(pipeline).add_noise(x_0, noise, t - 1) if t else x_0).float().cpu()
