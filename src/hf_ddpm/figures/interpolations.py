"""Interpolations between two images: DDPM's Figures 8 and 9 (arXiv 2006.11239), DDIM's Figure 6 (arXiv 2010.02502)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hf_ddpm.errors import UserError
from hf_ddpm.figures.figure import Figure
from hf_ddpm.figures.grid import labelled_grid, tiles, transposed
from hf_ddpm.figures.walks import (
    ClassLabels,
    checked,
    decode,
    generators,
    levels,
    noise_of,
    one_class_each,
    scheduler_of,
)
from hf_ddpm.pipelines import HFDDPMPipeline, slerp
from hf_ddpm.sampling import classes_in_turn

WEIGHTS = tuple(i / 10 for i in range(11))  # lambda
FINE_WEIGHTS = tuple(i / 30 for i in range(31))  # for a GIF
PAPER_STEPS = 50  # as in DDIM's Figure 6
COARSE_TO_FINE_SHARES = (1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0)  # levels, as shares of T


def interpolation(
    pipeline: HFDDPMPipeline,
    images: Tensor,
    *,
    seed: int = 0,
    steps: int | None = None,
    eta: float | None = None,
    class_labels: ClassLabels = None,
) -> Figure:
    """Mix pairs of real images at t = T/2 and decode the mixes (DDPM, Fig. 8: 500 of 1,000 steps).

    x_t = (1 - lambda) x_t^(1) + lambda x_t^(2). Both images get the same noise, so the mix has the variance of its
    level, and a pair uses the same noise, in both directions, for all lambda.

    Args:
        images: Images (2 B, C, H, W), uint8, in [0, 1] or in [-1, 1]; the pairs are (0, 1), (2, 3), ...
        seed: The seed of the noise; pair i uses the generator of image i.
        steps: The number of network calls from T to 0, of which half are made.
        eta: See the call of the pipeline.
        class_labels: One class for all images, or one for each image. A mix has no class of its own, and uses that of
            the nearer image: the first for lambda < 1/2, the second otherwise.

    Returns:
        Figure: The tensors weights (11,) and images (11, B, C, H, W); the first and last images are reconstructions.
    """
    first, second = _pairs(pipeline, images)
    [t] = levels(pipeline, [0.5])
    sampling: dict[str, Any] = {"num_inference_steps": steps, "eta": eta}
    classes = one_class_each(pipeline, class_labels, len(images))
    mixed = _mixed(pipeline, first, second, WEIGHTS, t, seed, classes, sampling)
    columns = [first, *mixed, second]
    picture = labelled_grid(
        transposed([tiles(x) for x in columns]), column_labels=_WEIGHT_LABELS, wide_gaps=[1, len(columns) - 1]
    )
    return Figure(picture, {"weights": torch.tensor(WEIGHTS), "images": mixed})


def coarse_to_fine(
    pipeline: HFDDPMPipeline,
    images: Tensor,
    *,
    seed: int = 0,
    steps: int | None = None,
    eta: float | None = None,
    class_labels: ClassLabels = None,
) -> Figure:
    """Mix one pair at nine levels (DDPM, Fig. 9): the more noise, the coarser the features that the two ends share.

    Each row is a level, t = T, 7/8 T, ..., 0; at t = 0, the images themselves are mixed. All rows and all lambda have
    the same noise.

    Args:
        images: Images (2, C, H, W); further images are not used.
        seed, steps, eta, class_labels: See `interpolation`.

    Returns:
        Figure: The tensors t (9,), weights (11,) and images (9, 11, C, H, W).
    """
    first, second = _pairs(pipeline, images[:2])
    ts = levels(pipeline, COARSE_TO_FINE_SHARES)
    sampling: dict[str, Any] = {"num_inference_steps": steps, "eta": eta}
    classes = one_class_each(pipeline, class_labels, len(images))
    rows = [_mixed(pipeline, first, second, WEIGHTS, t, seed, classes, sampling)[:, 0] for t in ts]
    grid = [tiles(torch.cat([first, row, second])) for row in rows]
    picture = labelled_grid(
        grid, row_labels=[f"t = {t}" for t in ts], column_labels=_WEIGHT_LABELS, wide_gaps=[1, len(WEIGHTS) + 1]
    )
    return Figure(picture, {"t": torch.tensor(ts), "weights": torch.tensor(WEIGHTS), "images": torch.stack(rows)})


def ddim_interpolation(
    pipeline: HFDDPMPipeline,
    *,
    seed: int = 0,
    num_images: int = 6,
    steps: int | None = None,
    class_label: int | str | None = None,
    motion: bool = False,
) -> Figure:
    """Interpolate between samples: slerp of two x_T, decoded with eta = 0 (DDIM, Fig. 6 and eq. 67).

    Args:
        seed: The seed; row i goes from image 2 i to image 2 i + 1 of `hf-ddpm sample --eta 0` with this seed.
        num_images: The number of rows.
        steps: The number of network calls, by default the paper's 50.
        class_label: One class for all images; by default the classes in turn, one per row.
        motion: Whether to also draw the frames, forwards and backwards.

    Returns:
        Figure: The tensors weights (K,), images (K, num_images, C, H, W) and x_T, with the shape of images.
    """
    steps = min(PAPER_STEPS, len(scheduler_of(pipeline))) if steps is None else steps
    ends = noise_of(pipeline, generators(seed, range(2 * num_images)))
    weights = FINE_WEIGHTS if motion else WEIGHTS
    x_T = torch.stack([slerp(ends[::2], ends[1::2], weight) for weight in weights])
    labels = classes_in_turn(pipeline, range(num_images), class_label)
    images = decode(
        pipeline, x_T.flatten(0, 1), None,
        class_labels=None if labels is None else labels * len(weights), num_inference_steps=steps, eta=0.0,
    ).unflatten(0, (len(weights), num_images))  # fmt: skip
    shown = range(0, len(weights), (len(weights) - 1) // (len(WEIGHTS) - 1))
    picture = labelled_grid(
        transposed([tiles(images[k]) for k in shown]), column_labels=[f"{weights[k]:.1f}" for k in shown]
    )
    path = [*range(len(weights)), *range(len(weights) - 2, 0, -1)] if motion else []
    frames = [labelled_grid([tiles(images[k])], title=f"lambda = {weights[k]:.2f}") for k in path]
    found = {"weights": torch.tensor(weights), "images": images, "x_T": x_T.float().cpu()}
    return Figure(picture, found, frames=tuple(frames))


_WEIGHT_LABELS = ["source", "rec.", *(f"{weight:.1f}" for weight in WEIGHTS[1:-1]), "rec.", "source"]


def _pairs(pipeline: HFDDPMPipeline, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and the second images of pairs, (B, C, H, W) each."""
    if len(images) < 2 or len(images) % 2:
        raise UserError(f"the number of images is {len(images)}, but pairs need an even number")
    x_0 = checked(pipeline, images)
    return x_0[::2], x_0[1::2]


def _mixed(
    pipeline: HFDDPMPipeline,
    first: Tensor,
    second: Tensor,
    weights: Sequence[float],
    t: int,
    seed: int,
    classes: Sequence[int] | None,
    sampling: dict[str, Any],
) -> Tensor:
    """Decode mixes after t steps of noise: (len(weights), B, C, H, W) on the CPU.

    The images are the same as those of `pipeline.interpolate` with a generator for each pair; all weights are in one
    batch. `classes` contains the classes of first, second, first, second, ...
    """
    mixes = torch.cat([(1 - weight) * first + weight * second for weight in weights])
    pairs, shape = len(first), (len(weights), len(first))
    if t == 0:
        return mixes.float().cpu().unflatten(0, shape)
    own = generators(seed, [row % pairs for row in range(len(mixes))])
    x_t = scheduler_of(pipeline).add_noise(mixes, noise_of(pipeline, own), t - 1)
    labels = None if classes is None else [label for w in weights for label in classes[int(w >= 0.5) : 2 * pairs : 2]]
    return decode(pipeline, x_t, own, class_labels=labels, start_timestep=t - 1, **sampling).unflatten(0, shape)
