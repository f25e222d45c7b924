"""The digit distance: how far 28x28 handwritten digits are from real ones. See digit_features.md for its definition.

It is a Fréchet distance between features of a fixed digit network; it is not the FID and does not compare with one.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hf_ddpm.data import to_float
from hf_ddpm.errors import UserError

FEATURES_FILE = Path(__file__).parent / "digit_features.safetensors"
SURE = 0.9  # a sample counts for the share when its top class is more probable than this
_CHUNK = 1000  # images seen by the network at a time


class DigitStatistics(NamedTuple):
    """The features of a set of images, summed up: mean (64,) and covariance (64, 64), float64."""

    mean: Tensor
    covariance: Tensor
    num_samples: int


class DigitScore(NamedTuple):
    """distance: 0 is best, 1,000 real digits get about 6.6. share: of samples with a sure class, in [0, 1]."""

    distance: float
    share: float
    num_samples: int


class DigitFeatures(nn.Module):
    """The fixed feature network, a small classifier of digits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, kernel_size=5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(16, 32, kernel_size=5, stride=2, padding=2)
        self.features = nn.Linear(32 * 7 * 7, 64)
        self.classifier = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 1, 28, 28) in [-1, 1] to features (B, 64) and logits of the ten digits (B, 10)."""
        h = self.conv1(images).relu()  # (B, 16, 14, 14)
        h = self.conv2(h).relu()  # (B, 32, 7, 7)
        features = self.features(h.flatten(1)).relu()
        return features, self.classifier(features)

    @classmethod
    def trained(cls) -> "DigitFeatures":
        """The network with the weights that ship with hf_ddpm, in evaluation mode."""
        network = cls()
        network.load_state_dict(load_file(FEATURES_FILE))
        return network.eval().requires_grad_(False)


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """The squared Fréchet distance of two Gaussians, |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)).

    Dowson and Landau 1982, eq. 4. C1 C2 has the eigenvalues of S C2 S with S = C1^(1/2), which is symmetric, so the
    trace of its root is the sum of their roots.

    Args:
        mean1, mean2: (D,).
        cov1, cov2: symmetric and positive semidefinite, (D, D); singular ones are fine.
    """
    mean1, cov1, mean2, cov2 = (part.double() for part in (mean1, cov1, mean2, cov2))
    values, vectors = torch.linalg.eigh(cov1)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = root @ cov2 @ root
    trace_of_root = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    distance = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * trace_of_root
    return max(0.0, distance.item())  # rounding may leave -1e-13 for equal Gaussians


def digit_statistics(images: Tensor) -> DigitStatistics:
    """Mean and covariance of the features of real or sampled digits, shaped as for `digit_score`."""
    features, _ = _look_at(images)
    return _statistics(features)


def digit_score(samples: Tensor, reference: DigitStatistics) -> DigitScore:
    """How far `samples` are from the digits that `reference` sums up, and how many are clearly some digit.

    Args:
        samples: (N, 1, 28, 28), uint8, or floating in [-1, 1] (values beyond are clipped); 1,000 of them for a figure
            that others can compare with.
        reference: `digit_statistics` of real digits, for such a figure the 10,000 test digits of MNIST.

    Raises:
        UserError: images of another shape, fewer than two, or not finite.
    """
    features, logits = _look_at(samples)
    mean, covariance, num_samples = _statistics(features)
    distance = frechet_distance(mean, covariance, reference.mean, reference.covariance)
    share = (logits.softmax(dim=1).amax(dim=1) > SURE).double().mean().item()
    return DigitScore(distance, share, num_samples)


@cache
def _network() -> DigitFeatures:
    return DigitFeatures.trained()


@torch.no_grad()
def _look_at(images: Tensor) -> tuple[Tensor, Tensor]:
    """Features (N, 64) and logits (N, 10) of checked images, float64, on the CPU."""
    if images.ndim != 4 or tuple(images.shape[1:]) != (1, 28, 28) or len(images) < 2:
        raise UserError(
            f"images of shape {tuple(images.shape)} have no digit distance: give at least 2 of shape (N, 1, 28, 28)"
        )
    x = to_float(images) if images.dtype == torch.uint8 else images.float()
    if not x.isfinite().all():
        raise UserError("images that are not finite have no digit distance: the network that drew them has diverged")
    parts = [_network()(part) for part in x.cpu().clamp(-1, 1).split(_CHUNK)]
    features, logits = (torch.cat(part).double() for part in zip(*parts, strict=True))
    return features, logits


def _statistics(features: Tensor) -> DigitStatistics:
    return DigitStatistics(features.mean(dim=0), features.T.cov(), len(features))
