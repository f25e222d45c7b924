"""The walk's coefficients are those of the posterior between the two noise levels of each step."""

import pytest
import torch

from hf_ddpm.schedulers import HFDDPMScheduler
from hf_ddpm.schedulers.reverse_walk import ReverseWalk

STEPS = [999, 600, 599, 40, 0]


def walk(variance_type: str = "fixed_small", **config) -> tuple[ReverseWalk, torch.Tensor]:
    abar = HFDDPMScheduler(**config).alphas_cumprod
    x_0_itself = torch.stack([torch.zeros_like(abar), torch.ones_like(abar)], dim=1)
    return ReverseWalk(STEPS, abar, x_0_itself, variance_type), abar


def test_each_step_goes_to_the_next_of_the_list():
    path, _ = walk()
    assert [path.previous(t) for t in STEPS] == [600, 599, 40, 0, -1]


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_a_step_lands_on_the_marginal_of_the_level_it_goes_to(eta):
    """With x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps: x_{t'} has mean sqrt(abar') x_0 and variance 1 - abar'."""
    path, abar = walk()
    for t in STEPS:
        c = path.coefficients(eta, t, torch.zeros(1, 1, 1, 1, dtype=torch.float64))
        previous = path.previous(t)
        abar_prev = abar[previous] if previous >= 0 else torch.tensor(1.0, dtype=torch.float64)
        signal = c.from_x_0 + c.from_x_t * abar[t].sqrt()
        variance = c.from_x_t**2 * (1 - abar[t]) + c.std**2
        torch.testing.assert_close(signal.squeeze(), abar_prev.sqrt(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(variance.squeeze(), 1 - abar_prev, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large", "learned_range"])
def test_the_last_step_adds_no_noise(variance_type):
    path, _ = walk(variance_type)
    assert path.coefficients(None, 0, torch.zeros(2, 1, 4, 4)).std.item() == 0


def test_many_timesteps_give_one_row_a_sample():
    path, _ = walk()
    sample = torch.zeros(3, 1, 4, 4)
    together = path.coefficients(0.5, torch.tensor([600, 0, 999]), sample)
    for i, t in enumerate((600, 0, 999)):
        alone = path.coefficients(0.5, t, sample)
        assert all(torch.equal(a[i : i + 1], b) for a, b in zip(together[:6], alone[:6], strict=True))


@pytest.mark.parametrize(
    ("eta", "timestep", "sentence"),
    [
        (None, 5, "timestep 5 is not in the list of length 5 that set_timesteps chose"),
        (0.0, 2.5, "timestep 2.5 must be a whole number"),
        (1.5, 999, r"eta=1.5 must lie in \[0, 1\]"),
    ],
)
def test_what_is_no_step_of_the_walk(eta, timestep, sentence):
    path, _ = walk()
    with pytest.raises(ValueError, match=sentence):
        path.coefficients(eta, timestep, torch.zeros(1, 1, 2, 2))
    if not sentence.startswith("eta"):
        with pytest.raises(ValueError, match=sentence):
            path.previous(timestep)
