"""Mode coverage: how many of the classes that a classifier knows occur in images, and how evenly.

As for Stacked MNIST, three digits in the channels of an image, whose 1,000 combinations are the modes (Metz et al.
2017, arXiv 1611.02163; Lin et al. 2018, arXiv 1712.04086).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from hf_ddpm.metrics.frechet import finite


class Modes(NamedTuple):
    """found: classes with at least one image. divergence: KL(classes of the images || uniform), nats, 0 is best."""

    found: int
    divergence: float

    @classmethod
    def of(cls, counts: Tensor) -> "Modes":
        """Of how many images each class has, (K,) whole numbers, of which one is positive."""
        shares = counts.double() / counts.sum()
        there = shares[shares > 0]
        return cls(len(there), float((there * (there * len(shares)).log()).sum()))


class ModeCounter:
    """Counts the most probable class of images that arrive batch by batch.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        self.counts = torch.zeros(num_classes, dtype=torch.int64)

    def update(self, logits: Tensor) -> None:
        """Take in the logits (b, K) of some images."""
        self.counts += finite(logits).argmax(dim=1).cpu().bincount(minlength=len(self.counts))

    def merge(self, other: "ModeCounter") -> None:
        """Take in what another one has seen of other images."""
        self.counts += other.counts

    def modes(self) -> Modes:
        """Of all images."""
        return Modes.of(self.counts)
