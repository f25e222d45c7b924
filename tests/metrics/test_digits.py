"""The digit distance: closed forms, the reference network, and the order of things that are visibly better or worse."""

import hashlib

import pytest
import torch
from torch.nn.functional import avg_pool2d

from hf_ddpm.data import ImageData, to_uint8
from hf_ddpm.errors import UserError
from hf_ddpm.metrics import digit_score, digit_statistics, frechet_distance
from hf_ddpm.metrics.digits import FEATURES_FILE, DigitFeatures


def covariance(seed, rank, size=8):
    factor = torch.randn(size, rank, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return factor @ factor.T


@pytest.fixture(scope="module")
def digits():
    """All embedded digits, uint8 (5000, 1, 28, 28), and their labels, in a shuffled order."""
    batch = next(ImageData("digits", label_column="label").batches(batch_size=5000, seed=0))
    return to_uint8(batch.x_0), batch.labels


@pytest.fixture(scope="module")
def reference(digits):
    return digit_statistics(digits[0][1000:])


def test_weights_are_the_published_ones():
    digest = hashlib.sha256(FEATURES_FILE.read_bytes()).hexdigest()
    assert digest == "6e7b918a8a96cb7b1b6e4e7168e8e312bb66a91d90958d45a8f002ddee44b01b"


def test_network_recognises_digits(digits):
    images, labels = digits
    _, logits = DigitFeatures.trained()(images[:2000] / 127.5 - 1)
    assert (logits.argmax(dim=1) == labels[:2000]).float().mean() > 0.985


def test_distance_of_one_dimensional_gaussians():
    # |m1 - m2|^2 + (s1 - s2)^2
    value = frechet_distance(*(torch.tensor(x) for x in ([1.0], [[4.0]], [4.0], [[25.0]])))
    assert value == pytest.approx(9 + 9, rel=1e-12)


def test_distance_of_commuting_gaussians():
    rotation = torch.linalg.qr(covariance(0, 8))[0]
    a, b = (torch.tensor(x, dtype=torch.float64) for x in (range(1, 9), range(8, 0, -1)))
    mean = torch.zeros(8)
    value = frechet_distance(mean, rotation * a @ rotation.T, mean + 1, rotation * b @ rotation.T)
    assert value == pytest.approx(8 + (a.sqrt() - b.sqrt()).square().sum().item(), rel=1e-9)


@pytest.mark.parametrize("rank", [8, 3])
def test_distance_agrees_with_scipy_for_full_and_singular_covariances(rank):
    linalg = pytest.importorskip("scipy.linalg")
    cov1, cov2 = covariance(1, 8), covariance(2, rank)
    root = linalg.sqrtm((cov1 @ cov2).numpy()).real
    expected = (cov1 + cov2).trace().item() - 2 * root.trace()
    mean = torch.zeros(8)
    assert frechet_distance(mean, cov1, mean, cov2) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(mean, cov2, mean, cov1) == pytest.approx(expected, rel=1e-6)


def test_distance_of_a_set_to_itself_is_zero(digits):
    assert digit_score(digits[0][:500], digit_statistics(digits[0][:500])).distance < 1e-9


def test_real_digits_score_as_documented(digits, reference):
    score = digit_score(digits[0][:1000], reference)
    assert score.num_samples == 1000
    assert 3 < score.distance < 10
    assert 0.94 < score.share < 0.99


def test_floats_and_integers_score_the_same(digits, reference):
    images = digits[0][:200]
    as_float = digit_score(images / 127.5 - 1, reference)
    assert digit_score(images, reference).distance == pytest.approx(as_float.distance, rel=1e-5)


def test_more_blur_and_fewer_samples_are_farther(digits, reference):
    x = digits[0][:1000] / 127.5 - 1
    blurred = [x, *(avg_pool2d(x, size, 1, size // 2, count_include_pad=False) for size in (3, 5, 7))]
    distances = [digit_score(images, reference).distance for images in blurred]
    assert distances == sorted(distances)
    assert distances[1] > 2 * distances[0]
    assert digit_score(x[:100], reference).distance > 2 * distances[0]


def test_noise_is_far_and_unsure(reference):
    noise = torch.randn(1000, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert digit_score(noise, reference).distance > 500


def test_one_digit_repeated_is_farther_than_all_of_them(digits, reference):
    images, labels = digits
    ones = digit_score(images[labels == 1][:500], reference)
    assert ones.share > 0.9  # each is a digit, yet the set is wrong
    assert ones.distance > 20 * digit_score(images[:500], reference).distance


@pytest.mark.parametrize("shape", [(4, 3, 28, 28), (4, 1, 32, 32), (1, 28, 28), (1, 1, 28, 28)])
def test_other_shapes_are_refused(shape, reference):
    with pytest.raises(UserError, match=r"use at least 2 of shape \(N, 1, 28, 28\)"):
        digit_score(torch.zeros(shape), reference)


def test_not_finite_is_refused(reference):
    with pytest.raises(UserError, match="diverged"):
        digit_score(torch.full((4, 1, 28, 28), torch.nan), reference)
