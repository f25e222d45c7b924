"""The terms of DDPM's variational bound (Ho et al. 2020, eq. 5), which L_vlb trains and whose sum gives bits/dim.

All terms are in nats per dimension; `/ math.log(2)` converts them to bits. They are computed in the dtype of the
images: float64 images, as used for likelihoods, get float64 coefficients, whatever the dtype of the network.
"""

import torch
from torch import Tensor

from hf_ddpm.models.gaussian import discretized_gaussian_log_likelihood, gaussian_kl
from hf_ddpm.schedulers import HFDDPMScheduler


def prior_term(scheduler: HFDDPMScheduler, x_0: Tensor) -> Tensor:
    """Return L_T = KL(q(x_T | x_0) || N(0, I)) of each image, (B,) in nats per dimension."""
    abar = scheduler.alphas_cumprod[-1].to(x_0.device, x_0.dtype)
    zero = torch.zeros((), device=x_0.device, dtype=x_0.dtype)
    if abar == 0:
        return zero.expand(len(x_0))
    return _mean_per_image(gaussian_kl(abar.sqrt() * x_0, torch.log1p(-abar), zero, zero))


def reverse_moments(
    scheduler: HFDDPMScheduler, model_output: Tensor, x_t: Tensor, t: Tensor, *, clip: bool
) -> tuple[Tensor, Tensor]:
    """Return the mean and log-variance of p(x_{t-1} | x_t), with the shape of `x_t`; for arguments see `bound_term`."""
    prediction, variance_output = scheduler.split_output(model_output.to(x_t.dtype), x_t)
    log_variance = scheduler.reverse_log_variance(variance_output, x_t, t).expand_as(x_t)
    if clip:
        x_0 = scheduler.predict_x_0(prediction, x_t, t).clamp(-1, 1)
        return scheduler.posterior_mean(x_0, x_t, t), log_variance
    return scheduler.reverse_mean(prediction, x_t, t), log_variance


def kl_term(
    scheduler: HFDDPMScheduler, x_0: Tensor, x_t: Tensor, t: Tensor, mean: Tensor, log_variance: Tensor
) -> Tensor:
    """Return KL(q(x_{t-1} | x_t, x_0) || N(mean, exp(log_variance))), (B,) in nats per dimension; for t >= 1."""
    posterior_mean = scheduler.posterior_mean(x_0, x_t, t)
    posterior_log_variance = scheduler.posterior_log_variance_at(t, x_t)
    return _mean_per_image(gaussian_kl(posterior_mean, posterior_log_variance, mean, log_variance))


def decoder_term(x_0: Tensor, mean: Tensor, log_variance: Tensor, *, bit_depth: int = 8) -> Tensor:
    """Return L_0 = -log p(x_0 | x_1) of each image, (B,) in nats per dimension."""
    return -_mean_per_image(discretized_gaussian_log_likelihood(x_0, mean, log_variance, bit_depth=bit_depth))


def bound_term(
    scheduler: HFDDPMScheduler,
    model_output: Tensor,
    x_0: Tensor,
    x_t: Tensor,
    t: Tensor,
    *,
    clip: bool = False,
    bit_depth: int = 8,
) -> Tensor:
    """Return L_t, (B,) in nats per dimension: KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), or L_0 at t = 0.

    The sum of all T terms and the prior term is a bound on -log p(x_0) (DDPM, eq. 5, whose t starts at 1).

    Args:
        model_output: The output of the network at (x_t, t), with C or 2C channels for the scheduler's `variance_type`.
        x_0: Images on the grid of levels in [-1, 1], (B, C, H, W).
        x_t: The noisy images, `add_noise(x_0, noise, t)`.
        t: The timesteps, integers in [0, T-1], (B,).
        clip: Whether the predicted x_0 is clipped to [-1, 1] first: yes for reported figures, no in training.
        bit_depth: The bit depth of the images.
    """
    mean, log_variance = reverse_moments(scheduler, model_output, x_t, t, clip=clip)
    kl = kl_term(scheduler, x_0, x_t, t, mean, log_variance)
    return torch.where(t == 0, decoder_term(x_0, mean, log_variance, bit_depth=bit_depth), kl)


def _mean_per_image(values: Tensor) -> Tensor:
    return values.flatten(1).mean(dim=1)
