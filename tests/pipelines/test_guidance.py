"""The formulas of guidance against closed forms, and what they refuse."""

import math

import pytest
import torch

from hf_ddpm.pipelines.guidance import (
    Guidance,
    classifier_free,
    clipped_norm,
    gradient,
    rescaled,
    shift_output,
    x_0_of,
)


def normal(seed, shape=(3, 2, 4, 4)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_classifier_free_guidance_is_off_at_1_and_goes_on_beyond_it():
    without, with_class = normal(0), normal(1)
    assert torch.equal(classifier_free(without, with_class, 0.0), without)
    torch.testing.assert_close(classifier_free(without, with_class, 1.0), with_class)
    halfway = classifier_free(without, with_class, 0.5)
    torch.testing.assert_close(halfway, (without + with_class) / 2)
    torch.testing.assert_close(classifier_free(halfway, with_class, 2.0), classifier_free(without, with_class, 1.5))


def test_rescaled_predictions_have_the_width_of_those_with_the_class():
    guided, with_class = 3 * normal(0), normal(1)
    whole = rescaled(guided, with_class, 1.0)
    torch.testing.assert_close(whole.std((1, 2, 3)), with_class.std((1, 2, 3)))
    torch.testing.assert_close(whole / whole.std(), guided / guided.std(), rtol=0.4, atol=0.4)
    torch.testing.assert_close(rescaled(guided, with_class, 0.5), (whole + guided) / 2)
    assert torch.equal(rescaled(guided, with_class, 0.0), guided)


def test_the_gradient_is_that_of_each_image_alone_and_keeps_no_graph():
    """log N(x; m, 1) has the gradient m - x, whatever stands beside the image in its batch."""
    x, m = normal(0).float(), normal(1).float()
    found = gradient(lambda at: -(at - m).square().flatten(1).sum(1) / 2, x)
    torch.testing.assert_close(found, m - x)
    assert not found.requires_grad and not x.requires_grad
    one = gradient(lambda at: -(at - m[:1]).square().flatten(1).sum(1) / 2, x[:1])
    torch.testing.assert_close(found[:1], one)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_the_gradient_comes_out_of_modes_that_have_none(around):
    with around():
        x = normal(0).float()
        found = gradient(lambda at: at.square().flatten(1).sum(1), x)
    torch.testing.assert_close(found, 2 * x)


def test_the_gradient_of_half_precision_images_is_float32():
    x = normal(0).to(torch.bfloat16)
    assert gradient(lambda at: at.square().flatten(1).sum(1), x).dtype == torch.float32


def test_a_gradient_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="gradient of the classifier is not finite"):
        gradient(lambda at: at.flatten(1).sum(1).sqrt(), torch.zeros(2, 1, 2, 2))


def test_the_norm_of_each_images_gradient_is_bounded():
    score = torch.stack([torch.full((1, 2, 2), 5.0), torch.full((1, 2, 2), 0.1), torch.zeros(1, 2, 2)])
    found = clipped_norm(score, 1.0)
    torch.testing.assert_close(found.flatten(1).norm(dim=1), torch.tensor([1.0, 0.2, 0.0]))
    torch.testing.assert_close(found[0] / found[0].norm(), score[0] / score[0].norm())
    assert clipped_norm(score, None) is score


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_a_shift_is_the_same_eps_whatever_the_network_predicts(prediction_type):
    """eps moves by -sqrt(1 - alpha_bar) score, and a learned variance stays."""
    x_0, eps, score, variance, abar = normal(0), normal(1), normal(2), normal(3), 0.3
    x_t = math.sqrt(abar) * x_0 + math.sqrt(1 - abar) * eps
    outputs = {
        "epsilon": eps,
        "sample": x_0,
        "v_prediction": math.sqrt(abar) * eps - math.sqrt(1 - abar) * x_0,
    }
    output = torch.cat([outputs[prediction_type], variance], dim=1)
    shifted = shift_output(output, score, x_t, abar, prediction_type)
    assert torch.equal(shifted[:, 2:], variance)
    moved = x_0_of(shifted[:, :2], x_t, abar, prediction_type)
    found = (x_t - math.sqrt(abar) * moved) / math.sqrt(1 - abar)
    torch.testing.assert_close(found, eps - math.sqrt(1 - abar) * score)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_a_clipped_shift_ends_at_the_border_and_is_nothing_without_a_score(prediction_type):
    x_t, output, score, abar = normal(0), normal(1), 9 * normal(2), 0.6
    shifted = shift_output(output, score, x_t, abar, prediction_type, 1.0)
    before, after = (x_0_of(one, x_t, abar, prediction_type) for one in (output, shifted))
    inside = before.abs() < 1
    assert ((after - before) * score > 0)[inside].all() and after[inside].abs().max() < 1 + 1e-6
    nothing = shift_output(output, 0 * score, x_t, abar, prediction_type, 1.0)
    torch.testing.assert_close(nothing, output)


def test_other_predictions_cannot_be_shifted():
    with pytest.raises(ValueError, match="prediction_type='flow_prediction' must be one of 'epsilon'"):
        shift_output(normal(0), normal(1), normal(2), 0.5, "flow_prediction")


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedules_grow_from_nothing_at_the_noise_and_are_1_on_average(schedule):
    guidance = Guidance(guidance_scale=3.0, classifier_scale=2.0, guidance_schedule=schedule)
    shares = [guidance.share(t, 1000) for t in range(1000)]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == pytest.approx(0, abs=1e-9) and shares[0] == pytest.approx(2, abs=0.01)
    assert sum(shares) / 1000 == pytest.approx(1, abs=2e-3)
    assert guidance.scales(999, 1000) == pytest.approx((1, 0))
    assert guidance.scales(torch.tensor(0), 1000) == pytest.approx((5, 4), abs=0.02)


def test_outside_of_its_interval_a_walk_is_not_guided():
    guidance = Guidance(guidance_scale=3.0, classifier_scale=2.0, guidance_interval=(100, 500))
    assert [guidance.scales(t, 1000) for t in (99, 100, 500, 501)] == [(1, 0), (3, 2), (3, 2), (1, 0)]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"guidance_scale": "2"}, "guidance_scale='2' must be a finite number"),
        ({"guidance_scale": math.nan}, "guidance_scale=nan must be a finite number"),
        ({"classifier_scale": math.inf}, "classifier_scale=inf must be a finite number"),
        ({"guidance_scale": 10**400}, "guidance_scale=1000.* must be a finite number"),
        ({"classifier_scale": True}, "classifier_scale=True must be a finite number"),
        ({"guidance_rescale": 1.5}, r"guidance_rescale=1.5 must lie in \[0, 1\]"),
        ({"guidance_interval": (500, 100)}, r"guidance_interval=\(500, 100\) must be two timesteps"),
        ({"guidance_interval": 3}, "guidance_interval=3 must be two timesteps"),
        ({"guidance_schedule": "lineal"}, "guidance_schedule='lineal' must be one of .*did you mean 'linear'"),
        ({"classifier_gradient": "mu"}, "classifier_gradient='mu' must be one of 'x_t', 'mean'"),
        ({"classifier_max_norm": 0}, "classifier_max_norm=0 must be positive"),
    ],
)
def test_what_guidance_cannot_be_is_said(keywords, message):
    with pytest.raises(ValueError, match=message):
        Guidance(**keywords)


def test_an_x_0_outside_of_the_range_comes_in_as_far_as_the_score_says_and_goes_no_further_away():
    x_0 = torch.tensor([1.5, 1.5, 1.5, -2.0]).view(4, 1, 1, 1)
    wanted = torch.tensor([1.2, -1.0, 1.5, -1.5]).view(4, 1, 1, 1)
    abar = 0.5
    factor = (1 - abar) / math.sqrt(abar)
    score = torch.tensor([-0.3, -9.0, 0.4, 0.5]).view(4, 1, 1, 1) / factor
    torch.testing.assert_close(shift_output(x_0, score, 0 * x_0, abar, "sample", 1.0), wanted)


def test_images_that_are_not_finite_are_said_to_be_so():
    with pytest.raises(ValueError, match="x_t is not finite: the weights of the network have diverged"):
        gradient(lambda at: at.flatten(1).sum(1).square(), torch.full((2, 1, 2, 2), math.nan))
