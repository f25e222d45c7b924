"""Precision, recall, density and coverage against prdc, at their limits, and copies that are found."""

import numpy as np
import pytest
import torch
from prdc import compute_prdc

from hf_ddpm.errors import UserError
from hf_ddpm.metrics import density_coverage, memorisation, neighbours, precision_recall


def normal(count, seed, scale=1.0, dimension=6):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, dimension, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("scale", [0.5, 1.0, 1.7])
def test_they_agree_with_prdc(k, scale, monkeypatch):
    monkeypatch.setattr(neighbours, "_ROWS", 64)  # several rounds
    samples, real = normal(150, 0, scale), normal(200, 1)
    theirs = compute_prdc(real.numpy(), samples.numpy(), nearest_k=k)
    ours = {**precision_recall(samples, real, k)._asdict(), **density_coverage(samples, real, k)._asdict()}
    assert {key: ours[key] for key in theirs} == pytest.approx(theirs, rel=1e-12)


def test_a_set_against_itself():
    real = normal(200, 0)
    assert precision_recall(real, real)[:2] == (1, 1)
    assert density_coverage(real, real).coverage == 1
    assert density_coverage(real, real, k=5).density == pytest.approx(6 / 5)  # each neighbourhood holds itself and 5


def test_real_images_against_as_many_others():
    """Coverage is 1 - 2^-k for large sets, density 1 (Naeem et al., section 3.3)."""
    found = [density_coverage(normal(2000, 2 * s), normal(2000, 2 * s + 1), k=5) for s in range(3)]
    assert np.mean([f.coverage for f in found]) == pytest.approx(1 - 2**-5, abs=0.01)
    assert np.mean([f.density for f in found]) == pytest.approx(1, abs=0.05)


def test_precision_sees_bad_samples_and_recall_missing_ones():
    real = torch.cat([normal(200, 0), normal(200, 1) + 30])
    one_mode, noise = normal(400, 2), torch.cat([real[::2], normal(200, 3, 100.0)])
    assert precision_recall(one_mode, real).recall < 0.55 < 0.9 < precision_recall(one_mode, real).precision
    assert precision_recall(noise, real).precision < 0.6 and precision_recall(noise, real).recall > 0.9


def test_one_outlier_inflates_precision_and_leaves_density():
    real, noise = normal(300, 0), normal(300, 1, 20.0)
    with_outlier = torch.cat([real, torch.full((1, 6), 500.0)])
    assert precision_recall(noise, real).precision < 0.05
    assert precision_recall(noise, with_outlier).precision > 0.4  # half of the space is in its neighbourhood
    assert density_coverage(noise, with_outlier).density < 0.1


def test_copies_are_found():
    training, new = normal(500, 0), normal(100, 1)
    copies = training[:50] + 1e-3 * normal(50, 2)
    found = memorisation(torch.cat([copies, new]), training)
    assert found.nearest[:50].tolist() == list(range(50))
    assert found.distance[:50].max() < 0.01 < found.distance[50:].min()
    distances = torch.cdist(new, training)
    assert torch.equal(found.nearest[50:], distances.argmin(dim=1))
    among = torch.cdist(training, training).fill_diagonal_(torch.inf).min(dim=1).values
    nearer = (distances.min(dim=1).values < among[distances.argmin(dim=1)]).sum().item()
    assert found.share == pytest.approx((50 + nearer) / 150)
    assert memorisation(copies, training).share == 1
    assert memorisation(new * 50, training).share == 0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda few, many: precision_recall(few, many), "k=3 must be at least 1 and less than .* in samples, 3:"),
        (lambda few, many: precision_recall(many, few), "k=3 must be at least 1 and less than .* in real, 3:"),
        (lambda few, many: density_coverage(many, few), "k=5 must be at least 1 and less than .* in real, 3:"),
        (lambda few, many: density_coverage(many, many, k=0), "k=0 must be at least 1 and less than .* in real, 20:"),
        (lambda few, many: memorisation(many, few[:1]), "k=1 must be at least 1 and less than .* in training, 1:"),
        (lambda few, many: density_coverage(many / 0, many), "the features are not finite"),
        (lambda few, many: memorisation(many, many / 0), "the features are not finite"),
    ],
)
def test_bad_input_is_one_sentence(call, said):
    with pytest.raises(UserError, match=said):
        call(normal(3, 0), normal(20, 1))
