"""The kernel distance (KID) between two sets of features, which does not assume that they are Gaussian."""

from typing import NamedTuple

import torch
from torch import Tensor

from hf_ddpm.errors import UserError
from hf_ddpm.metrics.frechet import finite


class KernelDistance(NamedTuple):
    """mean, standard_deviation: of the squared MMD over the subsets; both depend on the subsets and the subset_size."""

    mean: float
    standard_deviation: float
    subsets: int
    subset_size: int


def squared_mmd(x: Tensor, y: Tensor) -> float:
    """Return the unbiased estimate of the squared maximum mean discrepancy with the kernel (x . y / D + 1)^3.

    Binkowski et al. 2018 (arXiv 1801.01401), eq. 4 and section 4. It may be negative for similar sets.

    Args:
        x, y: Features (m, D) and (n, D), at least two of each.
    """
    x, y = x.double(), y.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def mean_of_pairs(k: Tensor) -> Tensor:
        return (k.sum() - k.trace()) / (len(k) * (len(k) - 1))

    return float(mean_of_pairs(kernel(x, x)) + mean_of_pairs(kernel(y, y)) - 2 * kernel(x, y).mean())


def kernel_distance(
    samples: Tensor, reference: Tensor, *, generator: torch.Generator, subsets: int = 100, subset_size: int = 1000
) -> KernelDistance:
    """Compute the mean and the standard deviation of `squared_mmd` over random subsets, as the KID is reported.

    Args:
        samples, reference: Features (N, D) and (M, D).
        generator: The generator that draws the subsets, each without replacement.
        subsets, subset_size: The number of subsets and their size; 100 and 1,000 in the paper.

    Raises:
        UserError: If a subset is larger than one of the sets or has fewer than two members, or if features are not
            finite.
    """
    fewest = min(len(samples), len(reference))
    if subsets < 1 or not 2 <= subset_size <= fewest:
        raise UserError(
            f"subsets={subsets} of subset_size={subset_size} cannot be drawn from {fewest:,} features: use at least 1 "
            f"subset of 2 to {fewest:,}"
        )
    sets = finite(samples), finite(reference)
    drawn = [
        squared_mmd(*(part[torch.randperm(len(part), generator=generator)[:subset_size]] for part in sets))
        for _ in range(subsets)
    ]
    values = torch.tensor(drawn, dtype=torch.float64)
    return KernelDistance(values.mean().item(), values.std(correction=0).item(), subsets, subset_size)
