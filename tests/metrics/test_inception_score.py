"""The Inception Score against torchmetrics, at its two limits, and in any order of arrival."""

import pytest
import torch
from torch import nn
from torchmetrics.image.inception import InceptionScore as TheirScore

from hf_ddpm.errors import UserError
from hf_ddpm.metrics import InceptionScoreAccumulator


def scored(logits, splits=10, order=None, batch=64):
    accumulator = InceptionScoreAccumulator(len(logits), logits.shape[1], splits)
    order = torch.arange(len(logits)) if order is None else order
    for part in order.split(batch):
        accumulator.update(logits[part], part)
    return accumulator.score()


def random_logits(count, classes=12, seed=0):
    return 3 * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_limits():
    """Sure of each image and every class as often: K. The same answer for every image: 1."""
    sure = 1e3 * torch.eye(10).repeat(20, 1)
    assert scored(sure).mean == pytest.approx(10, rel=1e-9)
    same = random_logits(1).repeat(200, 1)
    assert scored(same).mean == pytest.approx(1, rel=1e-12)
    assert scored(same).standard_deviation < 1e-12


def test_it_agrees_with_torchmetrics_in_one_split(monkeypatch):
    """torchmetrics shuffles before it splits, which one split does not feel."""

    class Pixels(nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, :12].double() / 25

    images = torch.randint(0, 256, (300, 1, 3, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    theirs = TheirScore(feature=Pixels(), splits=1)
    theirs.update(images)
    ours = scored(images.flatten(1).double() / 25, splits=1)
    assert ours.mean == pytest.approx(theirs.compute()[0].item(), rel=1e-6)


def test_splits_are_runs_of_the_indices_in_any_order_of_arrival():
    logits = random_logits(103)
    expected = [scored(logits[start:end], splits=1).mean for start, end in ((0, 35), (35, 69), (69, 103))]
    found = scored(logits, splits=3)
    assert found.mean == pytest.approx(sum(expected) / 3, rel=1e-12)
    assert found.standard_deviation == pytest.approx(torch.tensor(expected).std(correction=0).item(), rel=1e-6)
    shuffled = scored(logits, splits=3, order=torch.randperm(103), batch=10)
    assert shuffled.mean == pytest.approx(found.mean, rel=1e-12)


def test_two_processes_merge():
    logits, halves = random_logits(50), [InceptionScoreAccumulator(50, 12, 5) for _ in range(2)]
    for rank, half in enumerate(halves):
        rows = torch.arange(rank, 50, 2)
        half.update(logits[rows], rows)
    halves[0].merge(halves[1])
    assert halves[0].score().mean == pytest.approx(scored(logits, splits=5).mean, rel=1e-12)


def test_bad_input_is_one_sentence():
    with pytest.raises(UserError, match="splits=10 must be from 1 to 5, the number of images"):
        InceptionScoreAccumulator(5, 10)
    accumulator = InceptionScoreAccumulator(20, 12)
    with pytest.raises(UserError, match="the features are not finite"):
        accumulator.update(random_logits(1) * torch.nan, torch.tensor([0]))
    accumulator.update(random_logits(19), torch.arange(19))
    with pytest.raises(UserError, match="19 of 20 images were added: add each one once"):
        accumulator.score()
