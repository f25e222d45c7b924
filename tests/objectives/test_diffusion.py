"""Label dropout: one more row of the draws, and the null class in the place of the labels that it drops."""

import math

import pytest
import torch
from objective_calls import losses_of

from hf_ddpm import HFDDPMScheduler, unet_preset
from hf_ddpm.data import Batch
from hf_ddpm.objectives import MODEL, Draws, make_objective

SHAPE, K = (4000, 1, 2, 2), 3
LOSSES = [
    {"loss": "simple", "min_snr_gamma": 5.0},
    {"loss": "vlb", "timestep_sampling": "loss_second_moment"},
    {"loss": "hybrid", "min_snr_gamma": 5.0},
]


def objective(**keywords):
    variance_type = "learned_range" if keywords.get("loss") == "hybrid" else "fixed_small"
    made = make_objective(HFDDPMScheduler(10, variance_type=variance_type), **keywords)
    made.null_class = K
    return made


def generator():
    return torch.Generator().manual_seed(7)


@pytest.mark.parametrize("keywords", LOSSES)
def test_t_and_noise_are_the_same_numbers_with_and_without_label_dropout(keywords):
    without, dropping = (objective(**keywords, label_dropout=p).draw(SHAPE, generator()) for p in (0.0, 0.3))
    assert torch.equal(without.weight, dropping.weight)
    assert [*without.rows] == ["t", "noise"] and [*dropping.rows] == ["t", "noise", "drop"]
    assert all(torch.equal(without.rows[name], dropping.rows[name]) for name in without.rows)
    again = objective(**keywords, label_dropout=0.3).draw(SHAPE, generator())
    assert torch.equal(again.rows["drop"], dropping.rows["drop"])


@pytest.mark.parametrize("p", [0.1, 0.5, 0.999])
def test_labels_are_dropped_with_their_probability(p):
    drop = objective(label_dropout=p).draw(SHAPE, generator()).rows["drop"]
    assert drop.dtype == torch.bool and drop.shape == SHAPE[:1]
    assert drop.double().mean().item() == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / SHAPE[0]))


@pytest.mark.parametrize("keywords", LOSSES)
def test_the_network_is_told_the_null_class_instead_of_a_dropped_label(keywords, make_batch, says):
    x_0, _, noise = make_batch()
    t, labels = torch.arange(1, 7), torch.tensor([0, 1, 2, 0, 1, 2])
    drop = torch.tensor([True, False, False, True, True, False])
    network = says(torch.cat([noise, noise], dim=1) if keywords["loss"] == "hybrid" else noise)
    losses_of(objective(**keywords, label_dropout=0.1), network, x_0, labels, t=t, noise=noise, drop=drop)
    assert network.asked[2].tolist() == [K, 1, 2, K, K, 2]
    assert labels.tolist() == [0, 1, 2, 0, 1, 2]  # the data's own tensor is as it was
    losses_of(objective(**keywords), network, x_0, labels, t=t, noise=noise)
    assert torch.equal(network.asked[2], labels)


def test_each_embedding_learns_from_its_own_images_and_that_of_no_label_from_the_dropped_ones():
    """What a dropped image costs is what it costs as an image of class K, and no other class learns from it."""
    torch.manual_seed(0)
    network = unet_preset("tiny", num_class_embeds=K + 1)
    for weight in network.parameters():  # some begin at 0, so that nothing before them learns
        torch.nn.init.normal_(weight, std=0.1)
    x_0, labels, drop = torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 1, 2]), torch.tensor([True, True, False, False])
    dropping = objective(label_dropout=0.5)
    draws = dropping.draw(x_0.shape, generator())
    rows = draws.rows | {"drop": drop}
    found = dropping.loss(MODEL, {MODEL: network}, Batch(x_0, labels, labels), Draws(rows, draws.weight), 0).each
    asked = losses_of(objective(), network, x_0, torch.tensor([K, K, 1, 2]), t=rows["t"], noise=rows["noise"])
    assert torch.equal(found, asked)
    found.mean().backward()
    learned = network.class_embedding.weight.grad.abs().amax(dim=1) > 0
    assert learned.tolist() == [False, True, True, True]  # class 0 has the one image whose label was dropped


@pytest.mark.parametrize("label_dropout", [-0.1, 1.0, 1.5, math.nan])
@pytest.mark.parametrize("loss", ["simple", "vlb", "hybrid"])
def test_what_is_no_probability_is_refused(loss, label_dropout):
    with pytest.raises(ValueError, match=rf"label_dropout={label_dropout} must be a probability in \[0, 1\)"):
        objective(loss=loss, label_dropout=label_dropout)


@pytest.mark.parametrize(("labels", "null_class"), [(None, K), (torch.zeros(6, dtype=torch.long), None)])
def test_there_must_be_a_label_to_drop_and_a_class_for_it(labels, null_class, make_batch, says):
    (x_0, t, noise), dropping = make_batch(num_steps=10), objective(label_dropout=0.1)
    dropping.null_class = null_class
    drop = torch.ones(6, dtype=torch.bool)
    with pytest.raises(
        ValueError, match=r"label_dropout=0\.1 requires labels, and a null_class .*: set null_class to K"
    ):
        losses_of(dropping, says(noise), x_0, labels, t=t, noise=noise, drop=drop)
