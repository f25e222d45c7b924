"""Metrics of nearest neighbours among features: precision and recall, density and coverage, memorised images."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from hf_ddpm.errors import UserError
from hf_ddpm.metrics.frechet import finite

_ROWS = 512  # the rows of a matrix of distances that are in memory at a time
_ROUNDING = 1e-9  # relative: a matrix product may round the distance of two points differently in the other order


class PrecisionRecall(NamedTuple):
    """precision: the share of samples that look real. recall: the share of real images that samples come close to."""

    precision: float
    recall: float
    k: int


class DensityCoverage(NamedTuple):
    """density: the number of neighbourhoods of real images that a sample lies in, on average, divided by k.

    It is about 1 for real images, and unbounded. coverage: the share of real images whose neighbourhood contains a
    sample.
    """

    density: float
    coverage: float
    k: int


class Memorisation(NamedTuple):
    """The nearest training images of samples, and the share of memorised samples.

    nearest: the index of the training image nearest to each sample, int64 (N,). distance: the distance to it, float64
    (N,). share: the share of samples that are nearer to that image than any other training image is.
    """

    nearest: Tensor
    distance: Tensor
    share: float


def precision_recall(samples: Tensor, real: Tensor, k: int = 3) -> PrecisionRecall:
    """Compute improved precision and recall, Kynkäänniemi et al. 2019 (arXiv 1904.06991), eq. 1 and 2.

    A feature lies in the manifold of a set if it is no farther from one of the members than this member's k-th
    neighbour in the set. The figures depend on k, on both numbers of images and on the network: the paper uses 50,000
    of each, VGG16 and k = 3, ADM uses Inception and 10,000 real images; their figures cannot be compared.

    Args:
        samples, real: Features (N, D) and (M, D).
        k: The number of the neighbour that bounds a neighbourhood.

    Raises:
        UserError: If one of the sets has fewer than k + 1 features, or if features are not finite.
    """
    _check(k, samples=samples, real=real)
    precise, recalled = _inside(samples, real, k).any, _inside(real, samples, k).any
    return PrecisionRecall(_share(precise), _share(recalled), k)


def density_coverage(samples: Tensor, real: Tensor, k: int = 5) -> DensityCoverage:
    """Compute density and coverage, Naeem et al. 2020 (arXiv 2002.09797), section 3.

    Unlike precision and recall, they are robust to outliers among the real images, whose neighbourhoods are huge. The
    coverage of real images by as many other real images is about 1 - 2^-k.

    Args:
        samples, real: Features (N, D) and (M, D).
        k: The number of the neighbour that bounds a neighbourhood; 5 in the paper.

    Raises:
        UserError: If there are fewer than k + 1 real images, or if features are not finite.
    """
    _check(k, real=real)
    inside = _inside(finite(samples), real, k)
    return DensityCoverage(inside.pairs / (k * len(samples)), _share(inside.holds), k)


def memorisation(samples: Tensor, training: Tensor) -> Memorisation:
    """Find the training image nearest to each sample, and the share of samples nearer to it than it is to others.

    Args:
        samples, training: Features, or flattened pixels, (N, D) and (M, D).

    Raises:
        UserError: If there are fewer than two training images, or if features are not finite.
    """
    _check(1, training=training)
    finite(samples)
    found = [d.min(dim=1) for d in _distances(samples, training)]
    distance, nearest = (torch.cat(parts) for parts in zip(*found, strict=True))
    rows, row_of_sample = nearest.unique(return_inverse=True)
    alone = neighbour_distance(training, 1, rows)
    return Memorisation(nearest, distance, _share(distance < alone[row_of_sample]))


def neighbour_distance(features: Tensor, k: int, rows: Tensor | None = None) -> Tensor:
    """Return the distance to the k-th nearest other feature of the set, float64 (M,), or only for some rows."""
    rows = torch.arange(len(features)) if rows is None else rows
    radii = []
    for part, d in zip(rows.split(_ROWS), _distances(features[rows], features), strict=True):
        d[torch.arange(len(part)), part] = torch.inf  # itself
        radii.append(d.kthvalue(k, dim=1).values)
    return torch.cat(radii)


def nearest_others(points: Tensor, among: Tensor | None = None) -> Tensor:
    """Return the index of the nearest of `among` to each of `points`, int64 (N,); None compares them to each other.

    Raises:
        UserError: If there are fewer than two points to compare to each other, or if features are not finite.
    """
    if among is None:
        _check(1, real=points)
    others, row, found = finite(points if among is None else among), 0, []
    for d in _distances(finite(points), others):
        if among is None:
            d[torch.arange(len(d)), torch.arange(row, row + len(d))] = torch.inf  # itself
        found.append(d.argmin(dim=1))
        row += len(d)
    return torch.cat(found)


class _Inside(NamedTuple):
    """Which points lie in a neighbourhood, (N,); which neighbourhoods contain a point, (M,); the number of pairs."""

    any: Tensor
    holds: Tensor
    pairs: int


def _inside(points: Tensor, centres: Tensor, k: int) -> _Inside:
    """Find the points in the neighbourhoods that reach from each centre to its k-th neighbour."""
    radii, found, pairs = neighbour_distance(centres, k), [], 0
    holds = torch.zeros(len(centres), dtype=torch.bool)
    for d in _distances(points, centres):
        within = d <= (1 + _ROUNDING) * radii
        found.append(within.any(dim=1))
        holds |= within.any(dim=0)
        pairs += int(within.sum())
    return _Inside(torch.cat(found), holds, pairs)


def _share(flags: Tensor) -> float:
    return flags.double().mean().item()


def _distances(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """Iterate over the Euclidean distances of batches of rows of `a` to all of `b`, float64 (rows, len(b))."""
    b = b.double()
    return (torch.cdist(part.double(), b) for part in a.split(_ROWS))


def _check(k: int, **sets: Tensor) -> None:
    for name, features in sets.items():
        if not 1 <= k < len(finite(features)):
            raise UserError(
                f"k={k} must be at least 1 and less than the number of features in {name}, {len(features):,}: use more "
                "images or another k"
            )
