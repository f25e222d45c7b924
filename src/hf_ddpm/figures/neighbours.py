"""Samples beside their nearest training images, to see whether the model has memorised them (DDPM, appendix)."""

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hf_ddpm.data import to_float
from hf_ddpm.errors import UserError
from hf_ddpm.figures.figure import Figure
from hf_ddpm.figures.grid import labelled_grid, tiles
from hf_ddpm.figures.walks import decode, generators, noise_of, scheduler_of, shape_of
from hf_ddpm.metrics import DigitFeatures
from hf_ddpm.pipelines import HFDDPMPipeline
from hf_ddpm.sampling import classes_in_turn

NEIGHBOURS = 5
COMPARED = 100  # the number of training images whose own nearest neighbours give the scale
_CHUNK = 1000


def nearest_neighbours(
    pipeline: HFDDPMPipeline,
    training_images: Tensor,
    *,
    seed: int = 0,
    num_images: int = 8,
    steps: int | None = None,
    eta: float | None = None,
    class_label: int | str | None = None,
) -> Figure:
    """Draw each sample beside its nearest training images by pixels, and for 28x28 digits also by the digit features.

    Args:
        training_images: All training images, (N, C, H, W), uint8 or in [-1, 1]; or other images, such as a test set,
            for comparison.
        seed, num_images, steps, eta, class_label: The options of the samples, as in `hf-ddpm sample`.

    Returns:
        Figure: The tensors samples (num_images, C, H, W), distances and indices (num_images, 5) by pixels, as the RMSE
        on 0..255; the numbers are the mean distance of samples to their nearest image, and of 100 training images to
        their nearest other image.
    """
    scheduler_of(pipeline)
    if tuple(training_images.shape[1:]) != shape_of(pipeline) or len(training_images) < 2:
        raise UserError(
            f"images of shape {tuple(training_images.shape)} must be at least 2 images of shape {shape_of(pipeline)}"
        )
    own, labels = generators(seed, range(num_images)), classes_in_turn(pipeline, range(num_images), class_label)
    walk: dict[str, Any] = {"num_inference_steps": steps, "eta": eta, "class_labels": labels}
    samples = decode(pipeline, noise_of(pipeline, own), own, **walk)
    spaces = {"pixels (RMSE on 0..255)": pixels}
    if shape_of(pipeline) == (1, 28, 28):
        spaces["digit features"] = digit_features
    found = {name: nearest(space(samples), space(training_images), NEIGHBOURS) for name, space in spaces.items()}
    distances, indices = next(iter(found.values()))
    of_training, _ = nearest(pixels(training_images[:COMPARED]), pixels(training_images), 2)  # itself and another one
    numbers = {"nearest": float(distances[:, 0].mean()), "training_nearest": float(of_training[:, 1].mean())}
    sentence = (
        f"the distance of samples to the nearest of {len(training_images):,} images is {numbers['nearest']:.1f}, "
        f"that of these images to each other is {numbers['training_nearest']:.1f}"
    )
    tensors = {"samples": samples, "distances": distances, "indices": indices}
    return Figure(_drawn(samples, training_images, found), tensors, numbers, sentence)


def nearest(points: Tensor, among: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` nearest of `among` (N, D) to each of `points` (B, D): ascending distances and their indices.

    Both are (B, count). Differences are squared one by one, so a point's distance to itself is 0 and not a rounding
    error.
    """
    exact = "donot_use_mm_for_euclid_dist"
    distances = torch.cat([torch.cdist(points, part, compute_mode=exact) for part in among.split(_CHUNK)], dim=1)
    values, indices = distances.topk(min(count, len(among)), largest=False)
    return values, indices


def pixels(images: Tensor) -> Tensor:
    """Return (B, D) whose Euclidean distance is the RMSE on 0..255; for images see `nearest_neighbours`."""
    x = _floats(images).flatten(1)
    return x * 127.5 / x.shape[1] ** 0.5


@torch.no_grad()
def digit_features(images: Tensor) -> Tensor:
    """Return the 64 features of digits (B, 1, 28, 28) that the digit distance uses."""
    network = DigitFeatures.trained()
    return torch.cat([network(_floats(part))[0] for part in images.split(_CHUNK)])


def _floats(images: Tensor) -> Tensor:
    return to_float(images) if images.dtype == torch.uint8 else images.float()


def _drawn(samples: Tensor, training_images: Tensor, found: dict[str, tuple[Tensor, Tensor]]) -> Image.Image:
    """Draw each sample and its neighbours in every space, with the distances below them."""
    rows, captions, labels, gaps = [], [], ["sample"], []
    for name, (_, indices) in found.items():
        width = indices.shape[1]
        gaps.append(len(labels))
        labels += [name if i == width // 2 else "" for i in range(width)]
    for i, sample in enumerate(samples):
        there = torch.cat([indices[i] for _, indices in found.values()])
        rows.append(tiles(sample[None]) + tiles(_floats(training_images[there])))
        captions.append(["", *(f"{d:.1f}" for distances, _ in found.values() for d in distances[i].tolist())])
    return labelled_grid(rows, captions=captions, column_labels=labels, wide_gaps=gaps)
