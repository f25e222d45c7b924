"""Class accuracy by the nearest real image."""

import pytest
import torch

from hf_ddpm.errors import UserError
from hf_ddpm.metrics.classes import class_accuracy
from hf_ddpm.metrics.neighbours import nearest_others


def clusters(count, classes, spread, seed):
    """Points around one corner of a cube for each class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    return 10 * torch.eye(classes)[labels] + spread * torch.randn(count, classes, generator=generator), labels


def test_separate_classes_are_told_apart():
    (samples, labels), (real, real_labels) = clusters(30, 3, 0.1, 0), clusters(50, 3, 0.1, 1)
    assert class_accuracy(samples, labels, real, real_labels) == (1.0, 1.0)
    wrong = (labels + (torch.arange(30) < 6)) % 3
    assert class_accuracy(samples, wrong, real, real_labels).samples == pytest.approx(24 / 30)


def test_classes_that_are_one_cloud_are_guessed():
    (samples, labels), (real, real_labels) = clusters(3000, 4, 1e4, 0), clusters(3000, 4, 1e4, 1)
    found = class_accuracy(samples, labels, real, real_labels)
    assert found.samples == pytest.approx(0.25, abs=0.03) and found.real == pytest.approx(0.25, abs=0.03)


def test_a_real_image_is_not_its_own_neighbour():
    points = torch.randn(700, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # two blocks of rows
    d = torch.cdist(points, points)
    d.fill_diagonal_(torch.inf)
    assert torch.equal(nearest_others(points), d.argmin(dim=1))
    assert torch.equal(nearest_others(points, points), torch.arange(700))


@pytest.mark.parametrize(
    ("labels", "real_labels", "sentence"),
    [
        (torch.tensor([0, 1, 3, 0]), torch.tensor([0, 1, 2]), "no real image has the class 3, but some samples"),
        (torch.tensor([0, 1]), torch.tensor([0, 1, 2]), r"samples have shape \(2,\), but must have shape \(4,\)"),
        (torch.tensor([0, 1, 0, 0]), torch.tensor([0]), r"real images have shape \(1,\), but must have shape \(3,\)"),
    ],
)
def test_labels_that_do_not_fit(labels, real_labels, sentence):
    with pytest.raises(UserError, match=sentence):
        class_accuracy(torch.randn(4, 2), labels, torch.randn(3, 2), real_labels)
