"""q(x_{t-1} | x_t) of a mixture is Bayes' rule, and Gaussian in the limit of small beta at the rate beta^3."""

import math

import pytest
import torch

from hf_ddpm.figures import reverse_gaussian
from hf_ddpm.figures.reverse_gaussian import (
    X_T,
    Mixture,
    forward_step,
    kl_to_gaussian,
    number_of_modes,
    reverse_step,
    two_modes,
)


@pytest.mark.parametrize("beta", [0.003, 0.1, 0.7])
def test_the_reverse_step_is_bayes_rule(beta):
    q = two_modes()
    x = torch.linspace(-6, 6, 60_001, dtype=torch.float64)
    step = torch.distributions.Normal(math.sqrt(1 - beta) * x, math.sqrt(beta))
    joint = (q.log_density(x) + step.log_prob(torch.tensor(X_T, dtype=torch.float64))).exp()
    evidence = torch.trapezoid(joint, x)
    torch.testing.assert_close(reverse_step(q, X_T, beta).log_density(x).exp(), joint / evidence, rtol=1e-6, atol=1e-12)
    after = forward_step(q, beta).log_density(torch.tensor([X_T], dtype=torch.float64)).exp()
    assert float(evidence) == pytest.approx(after.item(), rel=1e-9)


def test_small_steps_are_gaussian_and_large_ones_have_two_modes():
    numbers = reverse_gaussian().numbers
    assert numbers["beta"] == [0.01, 0.1, 0.5, 0.9]
    assert numbers["modes"] == [1, 2, 2, 2]
    assert numbers["kl"][0] < 1e-3 and numbers["kl"][-1] > 0.3


def test_the_loss_of_the_best_gaussian_falls_as_beta_cubed():
    """The posterior's skewness is beta^(3/2) (log q)'''(x_t), and a skewness s costs s^2 / 12 nats."""
    q, beta = two_modes(), 1e-4
    x = torch.tensor([X_T / math.sqrt(1 - beta)], dtype=torch.float64, requires_grad=True)
    slope = q.log_density(x)
    for _ in range(3):
        (slope,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
    assert kl_to_gaussian(reverse_step(q, X_T, beta)) == pytest.approx(beta**3 * slope.item() ** 2 / 12, rel=0.05)


def test_a_gaussian_stays_one_for_every_beta():
    one = Mixture(*(torch.tensor([value], dtype=torch.float64) for value in (1.0, 0.3, 0.5)))
    for beta in (0.01, 0.9):
        step = reverse_step(one, X_T, beta)
        assert number_of_modes(step) == 1
        assert abs(kl_to_gaussian(step)) < 1e-12
        variance = 1 / (1 / 0.5 + (1 - beta) / beta)
        assert step.variance == pytest.approx(variance, rel=1e-12)
    half = torch.full((2,), 0.5, dtype=torch.float64)
    close = Mixture(half, torch.tensor([-0.3, 0.3], dtype=torch.float64), torch.full((2,), 0.1, dtype=torch.float64))
    assert number_of_modes(close) == 1  # two parts closer than two standard deviations have one mode
