"""Gaussian data: every quantity of a diffusion model of it has a closed form, and so has its denoiser."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_ddpm.likelihood import GridImages, Network, NoiseAngle
from hf_ddpm.schedulers import HFDDPMScheduler


class GaussianDenoiser(nn.Module):
    """E[x_0 | x_t] of N(mean, covariance) as `prediction_type` says it, and the exact reverse variance if learned.

    mean (D,), covariance (D, D) over the flattened dimensions of an image.
    """

    def __init__(self, scheduler, mean, covariance, share=1.0):
        super().__init__()
        self.precise = nn.Parameter(torch.zeros((), dtype=torch.float64))  # the network's own dtype
        self.scheduler, self.angle, self.mean, self.share = scheduler, NoiseAngle(scheduler), mean, share
        self.spectrum, self.axes = torch.linalg.eigh(covariance)

    def forward(self, x_t, t, class_labels=None):
        assert x_t.dtype == torch.float64
        times = t.double().tolist()
        phi, before = (torch.tensor([self.angle(s - k) for s in times], dtype=torch.float64)[:, None] for k in (0, 1))
        alpha, sigma, alpha_before, sigma_before = phi.cos(), phi.sin(), before.cos(), before.sin()  # (B, 1)
        x = x_t.flatten(1)
        gain = alpha * self.spectrum / (alpha**2 * self.spectrum + sigma**2)
        x_0 = self.mean + (gain * ((x - alpha * self.mean) @ self.axes)) @ self.axes.T
        step = alpha / alpha_before
        from_x_0, from_x_t = alpha_before * (1 - step**2) / sigma**2, step * sigma_before**2 / sigma**2
        epsilon = (x - alpha * x_0) / sigma
        output = {
            "epsilon": epsilon,
            "sample": x_0,
            "v_prediction": alpha * epsilon - sigma * x_0,
            "mean": from_x_0 * x_0 + from_x_t * x,
        }[self.scheduler.config["prediction_type"]].view_as(x_t) * self.share
        if not self.scheduler.learns_variance:
            return SimpleNamespace(sample=output)
        variance = exact_variances(self.scheduler, float(self.spectrum[0]))[1][t.long()]
        log_variance = variance.log()[:, None, None, None].expand_as(x_t)
        return SimpleNamespace(sample=torch.cat([output, log_variance], dim=1))


def exact_variances(scheduler, variance):
    """Var[x_0 | x_t] and Var[x_{t-1} | x_t] of data with independent dimensions of one variance, each (T,)."""
    abar = scheduler.alphas_cumprod
    of_x_0 = variance * (1 - abar) / (abar * variance + 1 - abar)
    one = torch.ones((len(abar), 1), dtype=torch.float64)
    from_x_0 = scheduler.posterior_mean(one, 0 * one, torch.arange(len(abar))).squeeze(1)
    return of_x_0, scheduler.posterior_variance + from_x_0**2 * of_x_0


@pytest.fixture
def gaussian():
    """(scheduler keywords, mean, covariance) -> network; a number is that of independent dimensions, `size` of them.

    It says `share` of what is true.
    """

    def make(mean=0.1, covariance=0.25, size=1, share=1.0, **scheduler):
        if isinstance(covariance, float):
            covariance = covariance * torch.eye(size, dtype=torch.float64)
        mean = torch.as_tensor(mean, dtype=torch.float64).expand(len(covariance))
        own = HFDDPMScheduler(clip_sample=False, **scheduler)
        return Network(GaussianDenoiser(own, mean, covariance, share), own)

    return make


@pytest.fixture
def gaussian_images():
    """(n, shape, mean, variance) -> draws of just these moments on the 16-bit grid, continued beyond [-1, 1]."""

    def draw(n, shape, mean=0.1, variance=0.25):
        z = torch.randn(n, *shape, generator=torch.Generator().manual_seed(0)).double()
        x = mean + variance**0.5 * (z - z.mean()) / z.std(correction=0)
        levels = ((x + 1) * 65535 / 2).round().int()
        return GridImages(levels, None, torch.arange(n), 16)

    return draw


@pytest.fixture
def variances():
    """(scheduler, variance of the data) -> Var[x_0 | x_t], Var[x_{t-1} | x_t]."""
    return exact_variances


@pytest.fixture
def random_images():
    """(n, shape, bits) -> images of random grey levels."""

    def draw(n, shape=(1, 8, 8), bit_depth=8, labels=None):
        levels = torch.randint(0, 2**bit_depth, (n, *shape), generator=torch.Generator().manual_seed(1)).int()
        return GridImages(levels, labels, torch.arange(n), bit_depth)

    return draw
