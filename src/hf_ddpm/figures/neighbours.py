"""Samples beside their nearest training images: has the model learned, or learned by heart? (DDPM, Fig. 12 and 15)"""

from typing import Any

import torch
from torch import Tensor

from hf_ddpm.data import to_float
from hf_ddpm.errors import UserError
from hf_ddpm.figures.figure import Figure
from hf_ddpm.figures.grid import labelled_grid, tiles
from hf_ddpm.figures.walks import classes_in_turn, decode, generators, noise_of, scheduler_of, shape_of
from hf_ddpm.metrics import DigitFeatures
from hf_ddpm.pipelines import HFDDPMPipeline

NEIGHBOURS = 5
COMPARED = 100  # training images whose own nearest neighbours set the scale
_CHUNK = 1000


def nearest_neighbours(
    pipeline: HFDDPMPipeline,
    training_images: Tensor,
    *,
    seed: int = 0,
    num_images: int = 8,
    steps: int | None = None,
    eta: float | None = None,
    class_label: int | None = None,
) -> Figure:
    """Each sample and its nearest training images by pixels, for 28x28 digits also by the digit features.

    Args:
        training_images: all of them, (N, C, H, W), uint8 or in [-1, 1].
        seed, num_images, steps, eta, class_label: of the samples, as `hf-ddpm sample` takes them.

    Returns:
        Figure: tensors samples (num_images, C, H, W), distances and indices (num_images, 5) by pixels, RMSE on 0..255;
        numbers: the mean distance of samples to their nearest, and of 100 training images to their nearest other.
    """
    scheduler_of(pipeline)
    if tuple(training_images.shape[1:]) != shape_of(pipeline) or len(training_images) < 2:
        raise UserError(
            f"training images of shape {tuple(training_images.shape)} must be 2 or more of {shape_of(pipeline)}"
        )
    own = generators(seed, range(num_images))
    labels = classes_in_turn(pipeline, range(num_images), class_label)
    sampling: dict[str, Any] = {"class_labels": labels, "num_inference_steps": steps, "eta": eta}
    samples = decode(pipeline, noise_of(pipeline, own), own, **sampling)
    spaces = {"pixels (RMSE on 0..255)": pixels}
    if shape_of(pipeline) == (1, 28, 28):
        spaces["digit features"] = digit_features
    found = [nearest(space(samples), space(training_images), NEIGHBOURS) for space in spaces.values()]
    distances, indices = found[0]
    rows, captions = _rows(samples, training_images, found)
    width = distances.shape[1]
    picture = labelled_grid(
        rows, captions=captions, wide_gaps=range(1, 1 + len(found) * width, width),
        column_labels=["sample", *(label for name in spaces for label in _middle(name, width))],
    )  # fmt: skip
    numbers = {"nearest": float(distances[:, 0].mean()), "training_nearest": _own_nearest(training_images)}
    sentence = (
        f"samples are {numbers['nearest']:.1f} from their nearest training image, "
        f"training images {numbers['training_nearest']:.1f} from their nearest other"
    )
    return Figure(picture, {"samples": samples, "distances": distances, "indices": indices}, numbers, sentence)


def nearest(points: Tensor, among: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` nearest of `among` (N, D) to each of `points` (B, D): distances and indices, (B, count), ascending.

    Differences are squared one by one, so a point's distance to itself is 0 and not a rounding error.
    """
    exact = "donot_use_mm_for_euclid_dist"
    distances = torch.cat([torch.cdist(points, part, compute_mode=exact) for part in among.split(_CHUNK)], dim=1)
    values, indices = distances.topk(min(count, len(among)), largest=False)
    return values, indices


def pixels(images: Tensor) -> Tensor:
    """(B, D) whose Euclidean distance is the RMSE on 0..255; images as in `nearest_neighbours`."""
    x = _floats(images).flatten(1)
    return x * 127.5 / x.shape[1] ** 0.5


@torch.no_grad()
def digit_features(images: Tensor) -> Tensor:
    """The 64 features of hf_ddpm.metrics of digits (B, 1, 28, 28)."""
    network = DigitFeatures.trained()
    return torch.cat([network(_floats(part))[0] for part in images.split(_CHUNK)])


def _floats(images: Tensor) -> Tensor:
    return to_float(images) if images.dtype == torch.uint8 else images.float()


def _own_nearest(training_images: Tensor) -> float:
    """The mean distance of some training images to their nearest other one."""
    distances, _ = nearest(pixels(training_images[:COMPARED]), pixels(training_images), 2)
    return float(distances[:, 1].mean())


def _rows(samples: Tensor, training_images: Tensor, found: list[tuple[Tensor, Tensor]]) -> tuple[list, list]:
    """The tiles of each sample and its neighbours, and the distances below them."""
    rows, captions = [], []
    for i, sample in enumerate(samples):
        there = torch.cat([indices[i] for _, indices in found])
        rows.append(tiles(sample[None]) + tiles(_floats(training_images[there])))
        captions.append(["", *(f"{d:.1f}" for distances, _ in found for d in distances[i].tolist())])
    return rows, captions


def _middle(name: str, width: int) -> list[str]:
    """A label for the middle of `width` columns."""
    return [name if i == width // 2 else "" for i in range(width)]
