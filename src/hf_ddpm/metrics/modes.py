"""Mode coverage: how many of a classifier's classes occur in images, and how evenly.

It is used for Stacked MNIST, whose images contain three digits in their channels: the 1,000 combinations are the modes
(Metz et al. 2017, arXiv 1611.02163; Lin et al. 2018, arXiv 1712.04086).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from hf_ddpm.metrics.frechet import finite


class Modes(NamedTuple):
    """found: the number of classes with images. divergence: KL(classes of the images || uniform) in nats; 0 is best."""

    found: int
    divergence: float

    @classmethod
    def of(cls, counts: Tensor) -> "Modes":
        """Compute them from the number of images in each class, (K,) integers, at least one of which is positive."""
        shares = counts.double() / counts.sum()
        there = shares[shares > 0]
        return cls(len(there), float((there * (there * len(shares)).log()).sum()))


class ModeCounter:
    """Counts of the most probable classes of images that arrive batch by batch.

    Args:
        num_classes: K, the number of classes.
    """

    def __init__(self, num_classes: int) -> None:
        self.counts = torch.zeros(num_classes, dtype=torch.int64)

    def update(self, logits: Tensor) -> None:
        """Add the logits (b, K) of some images."""
        self.counts += finite(logits).argmax(dim=1).cpu().bincount(minlength=len(self.counts))

    def merge(self, other: "ModeCounter") -> None:
        """Add the counts of another counter, of other images."""
        self.counts += other.counts

    def modes(self) -> Modes:
        """Return the modes of all images."""
        return Modes.of(self.counts)
