"""The terms of the bound are what their names say."""

import math

import pytest
import torch

from hf_ddpm.models.gaussian import discretized_gaussian_log_likelihood
from hf_ddpm.schedulers import HFDDPMScheduler
from hf_ddpm.variational_bound import bound_term, prior_term


def test_the_term_of_t_0_is_the_decoder_and_the_others_are_divergences():
    """A network that knows the noise: the reverse mean is the posterior's, fixed_small leaves no divergence at all."""
    scheduler = HFDDPMScheduler(20, beta_schedule="cosine")
    x_0 = torch.randint(0, 256, (4, 1, 6, 6), generator=torch.Generator().manual_seed(0)).double() / 127.5 - 1
    noise, t = torch.randn(4, 1, 6, 6).double(), torch.tensor([0, 1, 7, 19])
    x_t = scheduler.add_noise(x_0, noise, t)
    terms = bound_term(scheduler, noise, x_0, x_t, t)
    torch.testing.assert_close(terms[1:], torch.zeros(3).double(), rtol=0, atol=1e-9)
    decoder = discretized_gaussian_log_likelihood(x_0[0], x_0[0], scheduler.posterior_variance[1].log())
    assert terms[0].item() == pytest.approx(-decoder.mean().item(), rel=1e-6)


def test_the_prior_term_of_images():
    scheduler = HFDDPMScheduler(20)
    x_0 = torch.full((2, 1, 3, 3), 0.5, dtype=torch.float64)
    abar = scheduler.alphas_cumprod[-1].item()
    wanted = 0.5 * (-math.log(1 - abar) - abar + abar * 0.25)
    torch.testing.assert_close(prior_term(scheduler, x_0), torch.full((2,), wanted).double())
    ends_at_zero = HFDDPMScheduler(
        20, rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"
    )
    assert prior_term(ends_at_zero, x_0).tolist() == [0, 0]
