"""The Fréchet distance between two sets of features, each summarised as a Gaussian in one pass (float64)."""

from typing import NamedTuple

import torch
from torch import Tensor

from hf_ddpm.errors import UserError


class FeatureStatistics(NamedTuple):
    """The statistics of a set of features for the Fréchet distance: mean (D,) and covariance (D, D), float64."""

    mean: Tensor
    covariance: Tensor
    num_samples: int


class StatisticsAccumulator:
    """Mean and covariance of features that arrive batch by batch, in O(D^2) memory whatever their number.

    Sums of squares are kept around the running mean, as in Chan, Golub and LeVeque 1983 (eq. 2.1), because a plain sum
    of x x^T loses all digits if the mean is large.

    Attributes:
        num_samples: The number of features seen so far.
        mean: Their mean, float64 (D,).
    """

    def __init__(self, dimension: int) -> None:
        self.num_samples = 0
        self.mean = torch.zeros(dimension, dtype=torch.float64)
        self._scatter = torch.zeros(dimension, dimension, dtype=torch.float64)

    def update(self, features: Tensor) -> None:
        """Add a batch of features (b, D).

        Raises:
            UserError: If the features have another dimension or are not finite.
        """
        x = finite(features).cpu().double()
        if x.ndim != 2 or x.shape[1] != len(self.mean):
            raise UserError(f"the features have shape {tuple(x.shape)}, but must have shape (b, {len(self.mean)})")
        if len(x):
            mean = x.mean(dim=0)
            centred = x - mean
            self._join(len(x), mean, centred.T @ centred)

    def merge(self, other: "StatisticsAccumulator") -> None:
        """Add the features of another accumulator, of another process or another part of the images."""
        if other.num_samples:
            self._join(other.num_samples, other.mean, other._scatter)

    def statistics(self) -> FeatureStatistics:
        """Return the statistics of all features so far, with the unbiased covariance.

        Raises:
            UserError: If there are fewer than two samples, which have no covariance.
        """
        if self.num_samples < 2:
            raise UserError(f"the number of images is {self.num_samples}, but a covariance needs at least 2")
        return FeatureStatistics(self.mean.clone(), self._scatter / (self.num_samples - 1), self.num_samples)

    def _join(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.num_samples + count
        difference = mean - self.mean
        self._scatter += scatter + torch.outer(difference, difference) * (self.num_samples * count / total)
        self.mean += difference * (count / total)
        self.num_samples = total


def feature_statistics(features: Tensor) -> FeatureStatistics:
    """Compute the mean and covariance of features (N, D)."""
    accumulator = StatisticsAccumulator(features.shape[1])
    accumulator.update(features)
    return accumulator.statistics()


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """Compute the squared Fréchet distance of two Gaussians, |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)).

    Dowson and Landau 1982, eq. 4. C1 C2 has the eigenvalues of S C2 S with S = C1^(1/2), which is symmetric, so the
    trace of its root is the sum of their roots.

    Args:
        mean1, mean2: The means, (D,).
        cov1, cov2: The covariances, symmetric and positive semidefinite, (D, D); they may be singular.
    """
    mean1, cov1, mean2, cov2 = (part.double() for part in (mean1, cov1, mean2, cov2))
    values, vectors = torch.linalg.eigh(cov1)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = root @ cov2 @ root
    trace_of_root = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    distance = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * trace_of_root
    return max(0.0, distance.item())  # rounding may leave -1e-13 for equal Gaussians


def finite(features: Tensor) -> Tensor:
    """Return the features.

    Raises:
        UserError: If values are not finite, because every figure would be NaN.
    """
    if not features.isfinite().all():
        raise UserError("the features are not finite: the images that they were computed from are corrupted")
    return features
