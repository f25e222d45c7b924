"""The digit distance: how far 28x28 handwritten digits are from real ones. See digit_features.md for its definition.

It is a Fréchet distance between features of a fixed digit network; it is not the FID and cannot be compared with it.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hf_ddpm.data import to_float
from hf_ddpm.errors import UserError
from hf_ddpm.metrics.frechet import FeatureStatistics, feature_statistics, frechet_distance

FEATURES_FILE = Path(__file__).parent / "digit_features.safetensors"
SURE = 0.9  # a sample counts for the share when its top class is more probable than this
SIDE = 28  # the height and width of a digit, in pixels
_CHUNK = 1000  # the number of images that the network sees at a time


class DigitScore(NamedTuple):
    """distance: 0 is best; 1,000 real digits have about 6.6. share: the share of samples with a sure class, 0 to 1."""

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
        """Map images (B, 1, 28, 28) in [-1, 1] to features (B, 64) and logits of the ten digits (B, 10)."""
        h = self.conv1(images).relu()  # (B, 16, 14, 14)
        h = self.conv2(h).relu()  # (B, 32, 7, 7)
        features = self.features(h.flatten(1)).relu()
        return features, self.classifier(features)

    @classmethod
    def trained(cls) -> "DigitFeatures":
        """Return the network with the weights that ship with hf_ddpm, in evaluation mode."""
        network = cls()
        network.load_state_dict(load_file(FEATURES_FILE))
        return network.eval().requires_grad_(False)


def digit_statistics(images: Tensor) -> FeatureStatistics:
    """Compute the mean and covariance of the features of real or sampled digits, with a shape as for `digit_score`."""
    features, _ = _look_at(images)
    return feature_statistics(features)


def digit_score(samples: Tensor, reference: FeatureStatistics) -> DigitScore:
    """Compute the distance of `samples` from the real digits of `reference`, and the share that is clearly some digit.

    Args:
        samples: (N, 1, 28, 28), uint8, or floating point in [-1, 1] (values beyond are clipped); 1,000 samples for a
            figure that can be compared with others.
        reference: The `digit_statistics` of real digits; for such a figure, of the 10,000 test digits of MNIST.

    Raises:
        UserError: If the images have another shape, if there are fewer than two, or if they are not finite.
    """
    features, logits = _look_at(samples)
    mean, covariance, num_samples = feature_statistics(features)
    distance = frechet_distance(mean, covariance, reference.mean, reference.covariance)
    share = (logits.softmax(dim=1).amax(dim=1) > SURE).double().mean().item()
    return DigitScore(distance, share, num_samples)


@cache
def _network() -> DigitFeatures:
    return DigitFeatures.trained()


@torch.no_grad()
def _look_at(images: Tensor) -> tuple[Tensor, Tensor]:
    """Check images and compute their features (N, 64) and logits (N, 10), float64, on the CPU."""
    if images.ndim != 4 or tuple(images.shape[1:]) != (1, 28, 28) or len(images) < 2:
        raise UserError(
            f"images of shape {tuple(images.shape)} have no digit distance: use at least 2 of shape (N, 1, 28, 28)"
        )
    x = to_float(images) if images.dtype == torch.uint8 else images.float()
    if not x.isfinite().all():
        raise UserError("the images are not finite and have no digit distance: the network that drew them has diverged")
    parts = [_network()(part) for part in x.cpu().clamp(-1, 1).split(_CHUNK)]
    features, logits = (torch.cat(part).double() for part in zip(*parts, strict=True))
    return features, logits
