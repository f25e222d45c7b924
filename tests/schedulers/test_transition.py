"""The velocity of a prediction at any level, whole or not, against its definition."""

import math

import pytest
import torch

from hf_ddpm import HFDDPMScheduler
from hf_ddpm.schedulers.transition import velocity

PREDICTIONS = ["epsilon", "sample", "v_prediction", "mean"]


def draw(seed):
    return torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("angle", [0.02, 0.7, 1.5])
def test_it_is_cos_eps_minus_sin_x_0_whatever_is_predicted(prediction, angle):
    """x_t = cos(phi) x_0 + sin(phi) eps, so v is dx_t / dphi; mu is the posterior mean between the two angles."""
    x_0, noise, before = draw(0), draw(1), 0.9 * angle
    alpha, sigma = math.cos(angle), math.sin(angle)
    x_t = alpha * x_0 + sigma * noise
    step = (alpha / math.cos(before)) ** 2  # alpha_t of DDPM's eq. 7
    mean = math.cos(before) * (1 - step) * x_0 + step**0.5 * math.sin(before) ** 2 * x_t
    v = alpha * noise - sigma * x_0
    says = {"epsilon": noise, "sample": x_0, "v_prediction": v, "mean": mean / sigma**2}[prediction]
    torch.testing.assert_close(velocity(prediction, says, x_t, angle, before), v, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_at_whole_steps_it_is_the_schedulers(prediction, prediction_of):
    scheduler = HFDDPMScheduler(prediction_type=prediction)
    x_0, noise = draw(0), draw(1)
    angles = scheduler.alphas_cumprod.sqrt().acos().tolist()
    for t in (1, 400, 999):
        x_t, right = scheduler.add_noise(x_0, noise, t), scheduler.get_velocity(x_0, noise, torch.tensor([t, t]))
        says = prediction_of(scheduler, x_0, noise, torch.tensor([t, t]))
        found = velocity(prediction, says, x_t, angles[t], angles[t - 1])
        torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-6)
