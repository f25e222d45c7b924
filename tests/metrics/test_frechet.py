"""Statistics in a stream, and the Fréchet distance against torchmetrics and closed forms."""

import pytest
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from hf_ddpm.errors import UserError
from hf_ddpm.metrics import StatisticsAccumulator, feature_statistics, frechet_distance


def correlated(count, dimension=16, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimension, dimension, generator=generator, dtype=torch.float64)
    return torch.randn(count, dimension, generator=generator, dtype=torch.float64) @ mixing + shift


def distance(one, two):
    return frechet_distance(*feature_statistics(one)[:2], *feature_statistics(two)[:2])


@pytest.mark.parametrize("sizes", [(1000,), (1, 999), (7, 0, 300, 693)])
def test_batches_and_processes_add_up_to_the_whole(sizes):
    """Far from the origin, where sums of squares would lose the digits that matter."""
    features = correlated(1000, shift=1e6)
    one, two, both = (StatisticsAccumulator(16) for _ in range(3))
    for i, part in enumerate(features.split(sizes)):
        one.update(part)
        (two if i % 2 else both).update(part)
    both.merge(two)
    for found in (one.statistics(), both.statistics()):
        assert found.num_samples == 1000
        torch.testing.assert_close(found.mean, features.mean(dim=0), rtol=1e-14, atol=0)
        torch.testing.assert_close(found.covariance, features.T.cov(), rtol=1e-8, atol=1e-8)


def test_float32_features_are_summed_up_in_float64():
    features = correlated(5000).float()
    torch.testing.assert_close(
        feature_statistics(features).covariance, features.double().T.cov(), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("count", [500, 10])
def test_it_agrees_with_torchmetrics(count):
    """Of more images than features, and of fewer, whose covariance is singular."""

    class Pixels(nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, :16].double()

    pixels = [
        torch.randint(low, 256, (count, 1, 4, 4), generator=torch.Generator().manual_seed(low)).to(torch.uint8)
        for low in (0, 60)
    ]
    theirs = FrechetInceptionDistance(feature=Pixels(), input_img_size=(1, 4, 4)).set_dtype(torch.float64)
    for images, real in zip(pixels, (True, False), strict=True):
        theirs.update(images, real=real)
    ours = distance(*(images.flatten(1) for images in pixels))
    assert ours == pytest.approx(theirs.compute().item(), rel=1e-6)


def test_fewer_images_are_farther_away():
    """The reason why N belongs to the number: E of the distance falls as 1 / N."""
    reference = correlated(20_000, seed=3)
    few, more = (sum(distance(part, reference) for part in reference.split(size)[:20]) / 20 for size in (50, 500))
    assert 6 < few / more < 15


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (torch.full((3, 4), torch.nan), "the features are not finite: the images that they"),
        (torch.full((3, 4), torch.inf), "the features are not finite"),
        (torch.zeros(3, 5), r"the features have shape \(3, 5\), but must have shape \(b, 4\)"),
        (torch.zeros(4), r"the features have shape \(4,\), but must have shape \(b, 4\)"),
        (torch.zeros(1, 4), "the number of images is 1, but a covariance needs at least 2"),
        (torch.zeros(0, 4), "the number of images is 0, but a covariance"),
    ],
)
def test_what_has_no_statistics_is_one_sentence(features, said):
    accumulator = StatisticsAccumulator(4)
    with pytest.raises(UserError, match=said):
        accumulator.update(features)
        accumulator.statistics()
