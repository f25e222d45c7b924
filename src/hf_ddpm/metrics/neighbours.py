"""What nearest neighbours among features say: precision and recall, density and coverage, memorised images."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from hf_ddpm.errors import UserError
from hf_ddpm.metrics.frechet import finite

_ROWS = 512  # of a matrix of distances that are held at a time
_ROUNDING = 1e-9  # of a distance: a matrix product may round that of two points otherwise the other way round


class PrecisionRecall(NamedTuple):
    """precision: the share of samples that look real. recall: the share of real images that samples come close to."""

    precision: float
    recall: float
    k: int


class DensityCoverage(NamedTuple):
    """density: in how many neighbourhoods of real images a sample lies, over k; about 1 for real images, and unbounded.

    coverage: the share of real images whose neighbourhood holds a sample.
    """

    density: float
    coverage: float
    k: int


class Memorisation(NamedTuple):
    """What samples have of the training images.

    nearest: the index of the training image nearest to each sample, int64 (N,). distance: how far it is, float64 (N,).
    share: the share of samples that are nearer to that image than any other training image is.
    """

    nearest: Tensor
    distance: Tensor
    share: float


def precision_recall(samples: Tensor, real: Tensor, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall, Kynkäänniemi et al. 2019 (arXiv 1904.06991), eq. 1 and 2.

    A feature lies in the manifold of a set if it is no farther from one of its members than that one's k-th neighbour
    in the set. The figures depend on k, on both numbers and on the network: 50,000 of each, VGG16 and k = 3 in the
    paper, Inception and 10,000 real ones with ADM; they do not compare.

    Args:
        samples, real: features (N, D) and (M, D).
        k: which neighbour bounds a neighbourhood.

    Raises:
        UserError: fewer than k + 1 of one of the sets, or features that are not finite.
    """
    _check(k, samples=samples, real=real)
    precise, recalled = _inside(samples, real, k).any, _inside(real, samples, k).any
    return PrecisionRecall(_share(precise), _share(recalled), k)


def density_coverage(samples: Tensor, real: Tensor, k: int = 5) -> DensityCoverage:
    """Density and coverage, Naeem et al. 2020 (arXiv 2002.09797), section 3.

    Unlike precision and recall they do not take an outlier among the real images, whose neighbourhood is huge, for a
    part of the manifold. Coverage of real images by as many others is about 1 - 2^-k.

    Args:
        samples, real: features (N, D) and (M, D).
        k: which neighbour bounds a neighbourhood; 5 in the paper.

    Raises:
        UserError: as `precision_recall`, of the real images.
    """
    _check(k, real=real)
    inside = _inside(finite(samples), real, k)
    return DensityCoverage(inside.pairs / (k * len(samples)), _share(inside.holds), k)


def memorisation(samples: Tensor, training: Tensor) -> Memorisation:
    """The training image nearest to each sample, and the share of samples that are nearer to it than it is to others.

    Args:
        samples, training: features, or flattened pixels, (N, D) and (M, D).

    Raises:
        UserError: fewer than two training images, or features that are not finite.
    """
    _check(1, training=training)
    finite(samples)
    found = [d.min(dim=1) for d in _distances(samples, training)]
    distance, nearest = (torch.cat(parts) for parts in zip(*found, strict=True))
    rows, row_of_sample = nearest.unique(return_inverse=True)
    alone = neighbour_distance(training, 1, rows)
    return Memorisation(nearest, distance, _share(distance < alone[row_of_sample]))


def neighbour_distance(features: Tensor, k: int, rows: Tensor | None = None) -> Tensor:
    """How far the k-th nearest other feature of the same set is, float64 (M,), or of some rows alone."""
    rows = torch.arange(len(features)) if rows is None else rows
    radii = []
    for part, d in zip(rows.split(_ROWS), _distances(features[rows], features), strict=True):
        d[torch.arange(len(part)), part] = torch.inf  # itself
        radii.append(d.kthvalue(k, dim=1).values)
    return torch.cat(radii)


def nearest_others(points: Tensor, among: Tensor | None = None) -> Tensor:
    """The index of the nearest of `among` to each of `points`, int64 (N,); None is `points` themselves, but for each.

    Raises:
        UserError: fewer than two points to compare each other with, or features that are not finite.
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
    """Which points lie in a neighbourhood, (N,); which neighbourhoods hold a point, (M,); and the number of pairs."""

    any: Tensor
    holds: Tensor
    pairs: int


def _inside(points: Tensor, centres: Tensor, k: int) -> _Inside:
    """Points against the neighbourhoods that reach from each centre to its k-th neighbour."""
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
    """Euclidean distances of some rows of `a` after others to all of `b`, float64 (rows, len(b))."""
    b = b.double()
    return (torch.cdist(part.double(), b) for part in a.split(_ROWS))


def _check(k: int, **sets: Tensor) -> None:
    for name, features in sets.items():
        if not 1 <= k < len(finite(features)):
            raise UserError(f"k={k} needs more than {len(features):,} {name} features, and k >= 1: give more images")
