"""The cross-entropy of noisy images, and what the log says of it: sums over some of the images."""

import math

import pytest
import torch
from torch import nn

from hf_ddpm import HFDDPMScheduler
from hf_ddpm.data import Batch
from hf_ddpm.objectives import MODEL, ClassificationObjective, Draws, Losses
from hf_ddpm.objectives.classification import quartile_of
from hf_ddpm.objectives.objective import as_pair


class Linear(nn.Module):
    """Logits that are linear in x_t, and t added to those of class 0."""

    def __init__(self, num_classes):
        super().__init__()
        self.weight = torch.randn(num_classes, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def forward(self, x_t, t):
        logits = x_t.flatten(1) @ self.weight.T
        logits[:, 0] += t
        return type("Output", (), {"logits": logits})


def asked(make_batch, num_classes, size=12, num_steps=8):
    x_0, t, noise = make_batch(size, num_steps)
    labels = torch.arange(size) % num_classes
    batch = Batch(x_0, labels, torch.arange(size))
    return batch, Draws({"t": t, "noise": noise}, torch.ones(size))


def test_the_loss_is_minus_log_p_of_x_t(make_batch):
    scheduler, model = HFDDPMScheduler(8), Linear(7)
    batch, draws = asked(make_batch, 7)
    found = ClassificationObjective(scheduler).loss(MODEL, {MODEL: model}, batch, draws, 0)
    for i, (x_0, t, noise) in enumerate(zip(batch.x_0, *(draws.rows[k] for k in ("t", "noise")), strict=True)):
        abar = scheduler.alphas_cumprod[t]
        logits = model((abar.sqrt() * x_0 + (1 - abar).sqrt() * noise)[None], t).logits[0]
        expected = math.log(sum(math.exp(float(logit - logits.max())) for logit in logits)) + float(logits.max())
        assert float(found.each[i]) == pytest.approx(expected - float(logits[batch.labels[i]]), rel=1e-4)


def test_accuracies_are_counted_by_quartile_of_t(make_batch):
    model = Linear(7)
    batch, draws = asked(make_batch, 7)
    objective = ClassificationObjective(HFDDPMScheduler(8))
    said = objective.loss(MODEL, {MODEL: model}, batch, draws, 0).said
    assert [*said] == [f"{name}_q{q}" for name in ("top1", "top5") for q in (1, 2, 3, 4)]
    t = draws.rows["t"]
    logits = model(objective.scheduler.add_noise(batch.x_0, draws.rows["noise"], t), t).logits
    best = logits.argsort(1, descending=True)
    for name, many in (("top1", 1), ("top5", 5)):
        for q in range(4):
            there = [i for i in range(12) if int(t[i]) in (2 * q, 2 * q + 1)]
            right = sum(int(batch.labels[i]) in best[i, :many].tolist() for i in there)
            assert said[f"{name}_q{q + 1}"].tolist() == [right, len(there)]
    assert sum(said[f"top5_q{q}"][0] for q in (1, 2, 3, 4)) > sum(said[f"top1_q{q}"][0] for q in (1, 2, 3, 4))


def test_there_is_no_top_5_of_five_classes(make_batch):
    batch, draws = asked(make_batch, 5)
    said = ClassificationObjective(HFDDPMScheduler(8)).loss(MODEL, {MODEL: Linear(5)}, batch, draws, 0).said
    assert [*said] == ["top1_q1", "top1_q2", "top1_q3", "top1_q4"]


@pytest.mark.parametrize("num_steps", [4, 10, 1000])
def test_quartiles_are_four_equal_parts_of_t(num_steps):
    counts = quartile_of(torch.arange(num_steps), num_steps).bincount().tolist()
    assert len(counts) == 4 and max(counts) - min(counts) <= 1


def test_images_without_labels_are_refused(make_batch):
    batch, draws = asked(make_batch, 5)
    with pytest.raises(ValueError, match="these images have none: set --label_column auto"):
        ClassificationObjective(HFDDPMScheduler(8)).loss(
            MODEL, {MODEL: Linear(5)}, batch._replace(labels=None), draws, 0
        )


def test_parts_add_up_to_the_whole(make_batch):
    """A quartile that a part has no image of does not count there."""
    objective, model = ClassificationObjective(HFDDPMScheduler(8)), Linear(7)
    batch, draws = asked(make_batch, 7)
    order = draws.rows["t"].argsort()
    batch = Batch(batch.x_0[order], batch.labels[order], order)
    draws = Draws({name: rows[order] for name, rows in draws.rows.items()}, draws.weight)
    whole = objective.loss(MODEL, {MODEL: model}, batch, draws, 0)
    cuts = [slice(0, 4), slice(4, 8), slice(8, 12)]
    parts = [objective.loss(MODEL, {MODEL: model}, batch.part(cut), draws.part(cut), 0) for cut in cuts]
    assert any(part.said["top1_q1"][1] == 0 for part in parts)
    joined = Losses.joined(parts)
    assert {name: pair.tolist() for name, pair in joined.said.items()} == {
        name: pair.tolist() for name, pair in whole.said.items()
    }
    assert torch.allclose(joined.each, whole.each)


def test_a_scalar_is_a_mean_that_counts_once():
    parts = [Losses(torch.zeros(2), {"r1": torch.tensor(value), "a": torch.tensor([value, 2])}) for value in (1.0, 4.0)]
    said = Losses.joined(parts).said
    assert said["r1"] == 2.5 and said["a"].tolist() == [5, 4]
    assert as_pair(said["r1"]).tolist() == [2.5, 1] and as_pair(said["a"]).tolist() == [5, 4]
