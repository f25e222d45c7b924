"""Every way to draw t, and importance sampling by the second moment of the loss (Improved DDPM, eq. 18)."""

import numpy as np
import pytest
import torch

from hf_ddpm.objectives.loss_history import LossHistory
from hf_ddpm.objectives.timestep_sampling import TimestepSampler


def draws(sampler, batch_size=64, count=20_000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    parts = [sampler.draw(batch_size, generator) for _ in range(count // batch_size)]
    return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))


def recorded(losses):
    """A sampler whose history has seen 10 times each of `losses`, (T,)."""
    sampler = TimestepSampler(len(losses), "loss_second_moment")
    sampler.history.record(torch.arange(len(losses)).repeat(10), losses.repeat(10))
    return sampler


@pytest.mark.parametrize("sampling", ["uniform", "antithetic", "stratified", "loss_second_moment"])
@pytest.mark.parametrize("batch_size", [7, 64])
def test_every_sampling_is_uniform_over_t_with_weight_1(sampling, batch_size):
    """`loss_second_moment` as long as it has seen no losses."""
    t, weight = draws(TimestepSampler(20, sampling), batch_size)
    counts = torch.bincount(t, minlength=20).double()
    assert len(counts) == 20
    assert (counts / len(t) - 1 / 20).abs().max() < 5 * (0.05 * 0.95 / 20_000) ** 0.5
    assert weight.dtype == torch.float32 and (weight == 1).all()


def test_stratified_visits_every_part_once():
    t, _ = TimestepSampler(1000, "stratified").draw(50, torch.Generator().manual_seed(0))
    assert (t // 20).tolist() == list(range(50))


def test_logit_normal_is_normal_in_the_logit_of_t():
    t, weight = draws(TimestepSampler(1000, "logit_normal", logit_mean=0.8, logit_std=1.2), 100, 10_000)
    logit = torch.logit((t.double() + 0.5) / 1000)
    assert logit.mean().item() == pytest.approx(0.8, abs=0.02)
    assert logit.std().item() == pytest.approx(1.2, abs=0.02)
    assert t.min() >= 0 and t.max() <= 999
    assert (weight == 1).all()


def test_antithetic_pairs():
    t, _ = TimestepSampler(1000, "antithetic").draw(7, torch.Generator().manual_seed(0))
    assert (t[:3] + t[4:]).tolist() == [999] * 3


@pytest.mark.parametrize(
    ("words", "keywords", "sentence"),
    [(["stratifed"], {}, "did you mean 'stratified'"), ([], {"logit_std": 0.0}, r"logit_std=0\.0 must be positive")],
)
def test_mistakes(words, keywords, sentence):
    with pytest.raises(ValueError, match=sentence):
        TimestepSampler(10, *words, **keywords)


# --- importance sampling ---------------------------------------------------------------------------------------------


def test_it_is_uniform_until_every_t_has_ten_losses():
    history = LossHistory(3)
    t, losses = torch.arange(3).repeat(9), torch.tensor([1.0, 2.0, 5.0]).repeat(9)
    history.record(t, losses)
    history.record(torch.tensor([0, 1] * 20), torch.tensor([1.0, 2.0] * 20))
    assert history.counts.tolist() == [29, 29, 9]
    assert np.array_equal(history.probabilities(), np.full(3, 1 / 3))
    history.record(torch.tensor([2]), torch.tensor([5.0]))
    expected = 0.999 * np.array([1, 2, 5]) / 8 + 0.001 / 3
    assert history.probabilities() == pytest.approx(expected, rel=1e-12)


def test_p_is_the_root_of_the_mean_square_of_the_last_ten():
    history = LossHistory(2)
    history.record(torch.tensor([0] * 25 + [1] * 10), torch.cat([torch.arange(25.0), torch.full((10,), 3.0)]))
    rms = np.sqrt(np.mean(np.arange(15, 25) ** 2.0))
    assert history.probabilities() == pytest.approx(0.999 * np.array([rms, 3]) / (rms + 3) + 0.0005, rel=1e-12)


def test_no_t_is_ever_given_up():
    p = recorded(torch.tensor([0.0, 0.0, 0.0, 100.0])).history.probabilities()
    assert p[:3] == pytest.approx([0.001 / 4] * 3)
    assert p.sum() == pytest.approx(1)


def test_draws_follow_p_and_weights_undo_it():
    """E[w L] over p is the mean of L over t: exactly by sum p w L, and in the draws."""
    losses = torch.tensor([9.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.1, 0.01])
    sampler = recorded(losses)
    p = sampler.history.probabilities()
    t, weight = draws(sampler, 50, 100_000)
    shares = torch.bincount(t, minlength=8).double() / len(t)
    assert (shares - torch.from_numpy(p)).abs().max() < 5e-3
    w = torch.stack([weight[t == i][0] for i in range(8)]).double()
    assert (torch.from_numpy(p) * w * losses).sum().item() == pytest.approx(losses.mean().item(), rel=1e-6)
    weighted = weight * losses[t]
    assert weighted.mean().item() == pytest.approx(losses.mean().item(), rel=0.01)
    assert weighted.std() < 0.1 * losses.std()  # what it is for


def test_losses_that_are_not_finite_are_left_out():
    history = LossHistory(2)
    history.record(torch.tensor([0, 0, 1, 1]), torch.tensor([float("nan"), 2.0, float("inf"), -float("inf")]))
    assert history.counts.tolist() == [1, 0]
    assert history.losses.tolist() == [[2.0] + [0.0] * 9, [0.0] * 10]


def test_a_model_without_error_has_nothing_to_prefer():
    assert recorded(torch.zeros(4)).history.probabilities().tolist() == [0.25] * 4


def test_a_history_continues_where_it_was_saved():
    one, two = recorded(torch.tensor([1.0, 3.0])), TimestepSampler(2, "loss_second_moment")
    two.history.load({name: values.clone() for name, values in one.history.state().items()})
    for sampler in (one, two):
        sampler.history.record(torch.tensor([1]), torch.tensor([7.0]))
    assert np.array_equal(one.history.probabilities(), two.history.probabilities())
    assert torch.equal(draws(one)[0], draws(two)[0])
    with pytest.raises(ValueError, match=r"must contain losses of shape \(2, 10\)"):
        two.history.load(LossHistory(3).state())
