"""The Inception Score: how sure a classifier is of each image, and how many classes it finds in all images."""

from typing import NamedTuple

import torch
from torch import Tensor

from hf_ddpm.errors import UserError
from hf_ddpm.metrics.frechet import finite


class InceptionScore(NamedTuple):
    """mean, standard_deviation: of exp(E KL(p(y|x) || p(y))) over the splits. splits: the number of splits."""

    mean: float
    standard_deviation: float
    splits: int


class InceptionScoreAccumulator:
    """The Inception Score of images that arrive batch by batch: Salimans et al. 2016 (arXiv 1606.03498), section 4.

    exp(E_x KL(p(y|x) || p(y))) = exp(H(p(y)) - E_x H(p(y|x))), so each split needs only the sums of p(y|x), of K
    numbers, and of its entropy. A split is a range of image indices, as in the authors' code, so the score does not
    depend on batches and processes.

    Args:
        num_images: The number of images that will be added.
        num_classes: K, the number of classes.
        splits: The number of splits of the images; 10 in the literature.

    Raises:
        UserError: If there are fewer images than splits.
    """

    def __init__(self, num_images: int, num_classes: int, splits: int = 10) -> None:
        if not 1 <= splits <= num_images:
            raise UserError(f"splits={splits} must be from 1 to {num_images:,}, the number of images")
        self._num_images, self._splits = num_images, splits
        self._probabilities = torch.zeros(splits, num_classes, dtype=torch.float64)
        self._entropies = torch.zeros(splits, dtype=torch.float64)
        self._counts = torch.zeros(splits, dtype=torch.float64)

    def update(self, logits: Tensor, indices: Tensor) -> None:
        """Add the logits (b, K) of some images with the indices (b,) in 0 .. num_images - 1."""
        log_p = finite(logits).cpu().double().log_softmax(dim=1)
        split = indices.cpu() * self._splits // self._num_images
        self._probabilities.index_add_(0, split, log_p.exp())
        self._entropies.index_add_(0, split, -(log_p.exp() * log_p).sum(dim=1))
        self._counts.index_add_(0, split, torch.ones(len(split), dtype=torch.float64))

    def merge(self, other: "InceptionScoreAccumulator") -> None:
        """Add the images of another accumulator, with other indices of the same set."""
        self._probabilities += other._probabilities
        self._entropies += other._entropies
        self._counts += other._counts

    def score(self) -> InceptionScore:
        """Return the score of all images.

        Raises:
            UserError: If images are missing, or were added twice.
        """
        if self._counts.sum() != self._num_images:
            raise UserError(f"{int(self._counts.sum()):,} of {self._num_images:,} images were added: add each one once")
        marginal = self._probabilities / self._counts[:, None]
        scores = (torch.special.entr(marginal).sum(dim=1) - self._entropies / self._counts).exp()
        return InceptionScore(scores.mean().item(), scores.std(correction=0).item(), self._splits)
