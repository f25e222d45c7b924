"""L_simple against closed forms and the equivalence of its prediction types."""

import pytest
import torch
from objective_calls import losses_of

from hf_ddpm import HFDDPMScheduler
from hf_ddpm.objectives import make_objective

PREDICTIONS = ["epsilon", "sample", "v_prediction", "mean"]


def objective(prediction="epsilon", **kwargs):
    return make_objective(HFDDPMScheduler(prediction_type=prediction), **kwargs)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_right_answer_costs_nothing_and_the_wrong_one_its_square(prediction, make_batch, says):
    loss = objective(prediction)
    x_0, t, noise = make_batch()
    x_t = loss.scheduler.add_noise(x_0, noise, t)
    right = loss.scheduler.target(x_0, x_t, noise, t)
    off = torch.arange(6.0).view(-1, 1, 1, 1)
    assert losses_of(loss, says(right), x_0, t=t, noise=noise).tolist() == [0] * 6
    assert torch.allclose(
        losses_of(loss, says(right + off), x_0, t=t, noise=noise), torch.arange(6).double() ** 2, rtol=1e-5
    )


def test_targets_are_the_papers(make_batch):
    x_0, t, noise = make_batch()
    scheduler = HFDDPMScheduler()
    x_t = scheduler.add_noise(x_0, noise, t)
    a = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    targets = {p: HFDDPMScheduler(prediction_type=p).target(x_0, x_t, noise, t) for p in PREDICTIONS}
    assert torch.equal(targets["epsilon"], noise)
    assert torch.equal(targets["sample"], x_0)
    assert torch.allclose(targets["v_prediction"], a.sqrt() * noise - (1 - a).sqrt() * x_0)
    assert torch.allclose(targets["mean"], scheduler.posterior_mean(x_0, x_t, t))


def test_the_model_is_asked_about_x_t_and_labels_are_passed_on(make_batch, says):
    loss, (x_0, t, noise) = objective(), make_batch()
    model, labels = says(noise), torch.arange(6)
    losses_of(loss, model, x_0, labels, t=t, noise=noise)
    assert torch.equal(model.asked[0], loss.scheduler.add_noise(x_0, noise, t))
    assert torch.equal(model.asked[1], t)
    assert torch.equal(model.asked[2], labels)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_min_snr_weighs_the_same_x_0_error_alike(prediction, make_batch, says):
    """Whatever is predicted, an error d in x_0 at timestep t costs min(SNR, gamma) d^2 (arXiv 2303.09556)."""
    loss = objective(prediction, min_snr_gamma=5.0)
    x_0, t, noise = make_batch(1)
    for step in (1, 100, 400, 900):
        t = torch.tensor([step])
        x_t = loss.scheduler.add_noise(x_0, noise, t)
        wrong_x_0 = x_0 + 0.1
        wrong_noise = loss.scheduler.predict_epsilon(wrong_x_0, x_t, t)
        answer = loss.scheduler.target(wrong_x_0, x_t, wrong_noise, t)
        snr = loss.scheduler.snr(t).item()
        assert losses_of(loss, says(answer), x_0, t=t, noise=noise).item() == pytest.approx(
            min(snr, 5) * 0.01, rel=1e-3
        )


def test_draw_is_a_function_of_the_generator():
    one, two = (objective().draw((4, 1, 2, 2), torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(one.rows[name], two.rows[name]) for name in ("t", "noise"))
    assert torch.equal(one.weight, two.weight)
    assert [part.shape for part in (*one.rows.values(), one.weight)] == [(4,), (4, 1, 2, 2), (4,)]


def test_gradient_is_that_of_the_mean(make_batch, says):
    loss, (x_0, t, noise) = objective(), make_batch()
    value = noise.clone().add_(1).requires_grad_()
    losses_of(loss, says(value), x_0, t=t, noise=noise).mean().backward()
    assert torch.allclose(value.grad, torch.full_like(noise, 2 / noise.numel()))


@pytest.mark.parametrize(
    ("scheduler", "keywords", "sentence"),
    [
        ({}, {"loss": "hybird"}, "did you mean 'hybrid'"),
        ({}, {"rescaled": False}, "rescaled=False requires loss='vlb' or loss='hybrid'"),
        ({}, {"min_snr_gamma": 0.0}, "gamma must be positive"),
        ({"prediction_type": "mean"}, {"min_snr_gamma": 5.0}, "'epsilon', 'sample' or 'v_prediction'"),
        ({}, {"loss": "vlb", "min_snr_gamma": 5.0}, "weights L_simple, .*: use loss='simple' or loss='hybrid'"),
        ({"variance_type": "learned_range"}, {}, "no gradient in L_simple: use loss='hybrid' or 'vlb'"),
        ({"variance_type": "learned"}, {}, "no gradient in L_simple: use loss='hybrid' or 'vlb'"),
        ({"variance_type": "fixed_small"}, {"loss": "hybrid"}, "'fixed_small' is fixed.*use .*learned_range"),
        ({"variance_type": "fixed_large"}, {"loss": "hybrid"}, "'fixed_large' is fixed.*use .*learned_range"),
        (
            {"variance_type": "learned", "prediction_type": "mean"},
            {"loss": "hybrid", "min_snr_gamma": 1.0},
            "'mean' is not supported: gamma must",
        ),
    ],
)
def test_contradictions_are_refused(scheduler, keywords, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_objective(HFDDPMScheduler(**scheduler), **keywords)


@pytest.mark.parametrize(
    ("loss", "variance_type", "channels", "wanted"),
    [("simple", "fixed_small", 4, 2), ("vlb", "fixed_large", 4, 2), ("vlb", "learned", 2, 4)]
    + [("hybrid", "learned_range", channels, 4) for channels in (2, 3)],
)
def test_a_model_with_other_channels_is_refused(loss, variance_type, channels, wanted, make_batch, says):
    x_0, t, noise = make_batch()
    of_network = make_objective(HFDDPMScheduler(variance_type=variance_type), loss=loss)
    sentence = rf"shape \(6, {channels}, 4, 4\), but variance_type='{variance_type}' requires \(6, {wanted}, 4, 4\)"
    with pytest.raises(ValueError, match=rf"{sentence}: build it with out_channels={wanted}"):
        losses_of(of_network, says(torch.zeros(6, channels, 4, 4)), x_0, t=t, noise=noise)
