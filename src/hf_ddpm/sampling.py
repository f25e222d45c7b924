"""Many images from a pipeline, each fixed by (seed, its index), whatever the batches and processes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers.utils import make_image_grid

from hf_ddpm.pipelines import HFDDPMPipeline

if TYPE_CHECKING:
    from PIL.Image import Image


def mixed_seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers, such as (seed, step): other numbers, unrelated streams.

    Their count goes in as well, because numpy takes (1, 2) and (1, 2, 0) for the same.
    """
    return int(np.random.SeedSequence((len(numbers), *numbers)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def image_generator(seed: int, index: int) -> torch.Generator:
    """The generator of image `index`."""
    return torch.Generator().manual_seed(mixed_seed(seed, index))


def sample_images(
    pipeline: HFDDPMPipeline,
    indices: Sequence[int],
    *,
    seed: int,
    batch_size: int = 64,
    num_inference_steps: int | None = None,
    timestep_spacing: str | None = None,
    eta: float | None = None,
    class_label: int | None = None,
) -> "list[Image]":
    """The images of `indices` as PIL images, in batches.

    A class-conditional network gets `class_label`, or its classes in turn (index modulo their number).
    """
    num_classes = pipeline.unet.config["num_class_embeds"]
    images: list[Image] = []
    for start in range(0, len(indices), batch_size):
        part = indices[start : start + batch_size]
        labels = (
            None
            if num_classes is None and class_label is None
            else [i % num_classes if class_label is None else class_label for i in part]
        )
        (part_images,) = pipeline(
            len(part),
            num_inference_steps,
            timestep_spacing=timestep_spacing,
            eta=eta,
            generator=[image_generator(seed, i) for i in part],
            class_labels=labels,
            return_dict=False,
        )
        images += part_images
    return images


def image_grid(images: "Sequence[Image]") -> "Image":
    """The images row by row in the most square grid that they fill."""
    rows = next(r for r in range(int(len(images) ** 0.5), 0, -1) if len(images) % r == 0)
    return make_image_grid(list(images), rows=rows, cols=len(images) // rows)


def best_device() -> str:
    """cuda or mps where there is one, else cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
