"""L_simple against closed forms, the equivalence of its prediction types, and uniform timesteps."""

import pytest
import torch
from torch import nn

from hf_ddpm import HFDDPMScheduler
from hf_ddpm.objectives import SimpleObjective

PREDICTIONS = ["epsilon", "sample", "v_prediction", "mean"]


class Answer(nn.Module):
    """A model that always answers `value`, and remembers what it was asked."""

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, x_t, t, class_labels=None):
        self.asked = (x_t, t, class_labels)
        return type("Output", (), {"sample": self.value})


def batch(size: int = 6, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    x_0 = torch.rand(size, 2, 4, 4, generator=g, dtype=torch.float64) * 2 - 1
    noise = torch.randn(size, 2, 4, 4, generator=g, dtype=torch.float64)
    return x_0, torch.randint(1, 999, (size,), generator=g), noise


def objective(prediction="epsilon", **kwargs):
    return SimpleObjective(HFDDPMScheduler(prediction_type=prediction), **kwargs)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_right_answer_costs_nothing_and_the_wrong_one_its_square(prediction):
    loss = objective(prediction)
    x_0, t, noise = batch()
    x_t = loss.scheduler.add_noise(x_0, noise, t)
    target = loss.target(x_0, x_t, noise, t)
    assert loss(Answer(target), x_0, t, noise) == 0
    assert loss(Answer(target + 0.5), x_0, t, noise).item() == pytest.approx(0.25, rel=1e-5)


def test_targets_are_the_papers():
    x_0, t, noise = batch()
    scheduler = HFDDPMScheduler()
    x_t = scheduler.add_noise(x_0, noise, t)
    a = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    targets = {p: objective(p).target(x_0, x_t, noise, t) for p in PREDICTIONS}
    assert torch.equal(targets["epsilon"], noise)
    assert torch.equal(targets["sample"], x_0)
    assert torch.allclose(targets["v_prediction"], a.sqrt() * noise - (1 - a).sqrt() * x_0)
    assert torch.allclose(targets["mean"], scheduler.posterior_mean(x_0, x_t, t))


def test_the_model_is_asked_about_x_t_and_labels_are_passed_on():
    loss, (x_0, t, noise) = objective(), batch()
    model, labels = Answer(noise), torch.arange(6)
    loss(model, x_0, t, noise, labels)
    assert torch.equal(model.asked[0], loss.scheduler.add_noise(x_0, noise, t))
    assert torch.equal(model.asked[1], t)
    assert torch.equal(model.asked[2], labels)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_min_snr_weighs_the_same_x_0_error_alike(prediction):
    """Whatever is predicted, an error d in x_0 at timestep t costs min(SNR, gamma) d^2 (arXiv 2303.09556)."""
    loss = objective(prediction, min_snr_gamma=5.0)
    x_0, t, noise = batch(1)
    for step in (1, 100, 400, 900):
        t = torch.tensor([step])
        x_t = loss.scheduler.add_noise(x_0, noise, t)
        wrong_x_0 = x_0 + 0.1
        wrong_noise = loss.scheduler.predict_epsilon(wrong_x_0, x_t, t)
        answer = loss.target(wrong_x_0, x_t, wrong_noise, t)
        snr = loss.scheduler.snr(t).item()
        assert loss(Answer(answer), x_0, t, noise).item() == pytest.approx(min(snr, 5) * 0.01, rel=1e-3)


@pytest.mark.parametrize("sampling", ["uniform", "antithetic", "stratified"])
@pytest.mark.parametrize("batch_size", [7, 64])
def test_every_sampling_is_uniform_over_t(sampling, batch_size):
    scheduler = HFDDPMScheduler(20)
    loss = SimpleObjective(scheduler, timestep_sampling=sampling)
    generator = torch.Generator().manual_seed(0)
    draws = torch.cat([loss.draw((batch_size, 1), generator)[0] for _ in range(20_000 // batch_size)])
    counts = torch.bincount(draws, minlength=20).double()
    assert len(counts) == 20
    assert (counts / len(draws) - 1 / 20).abs().max() < 5 * (0.05 * 0.95 / 20_000) ** 0.5


def test_stratified_visits_every_part_once():
    t, _ = objective(timestep_sampling="stratified").draw((50, 1), torch.Generator().manual_seed(0))
    assert (t // 20).tolist() == list(range(50))


def test_logit_normal_is_normal_in_the_logit_of_t():
    loss = objective(timestep_sampling="logit_normal", logit_mean=0.8, logit_std=1.2)
    generator = torch.Generator().manual_seed(0)
    t = torch.cat([loss.draw((100, 1), generator)[0] for _ in range(100)])
    logit = torch.logit((t.double() + 0.5) / 1000)
    assert logit.mean().item() == pytest.approx(0.8, abs=0.02)
    assert logit.std().item() == pytest.approx(1.2, abs=0.02)
    assert t.min() >= 0 and t.max() <= 999


def test_antithetic_pairs():
    t, _ = objective(timestep_sampling="antithetic").draw((7, 1), torch.Generator().manual_seed(0))
    assert (t[:3] + t[4:]).tolist() == [999] * 3


def test_draw_is_a_function_of_the_generator():
    one, two = (objective().draw((4, 1, 2, 2), torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


def test_gradient_is_that_of_the_mean():
    loss, (x_0, t, noise) = objective(), batch()
    value = noise.clone().add_(1).requires_grad_()
    loss(Answer(value), x_0, t, noise).backward()
    assert torch.allclose(value.grad, torch.full_like(noise, 2 / noise.numel()))


@pytest.mark.parametrize(
    ("scheduler", "keywords", "sentence"),
    [
        ({}, {"timestep_sampling": "stratifed"}, "did you mean 'stratified'"),
        ({}, {"logit_std": 0.0}, r"logit_std=0\.0 must be positive"),
        ({}, {"min_snr_gamma": 0.0}, "gamma must be positive"),
        ({"prediction_type": "mean"}, {"min_snr_gamma": 5.0}, "'epsilon', 'sample' or 'v_prediction'"),
        ({"variance_type": "learned_range"}, {}, "no gradient in L_simple.*'fixed_small' or 'fixed_large'"),
    ],
)
def test_contradictions_are_refused(scheduler, keywords, sentence):
    with pytest.raises(ValueError, match=sentence):
        SimpleObjective(HFDDPMScheduler(**scheduler), **keywords)


def test_a_model_with_other_channels_is_refused():
    loss, (x_0, t, noise) = objective(), batch()
    with pytest.raises(ValueError, match=r"returns \(6, 4, 4, 4\) where L_simple needs \(6, 2, 4, 4\)"):
        loss(Answer(torch.cat([noise, noise], 1)), x_0, t, noise)
