"""The evidence lower bound of a VAE (Kingma & Welling 2014, arXiv 1312.6114, eq. 10), and the bound of IWAE."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, get_args

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from hf_ddpm.models.vae import VAEOutput
from hf_ddpm.models.vae_likelihoods import Likelihood, decoder_distribution, optimal_log_variance
from hf_ddpm.objectives.objective import MODEL, Draws, Losses
from hf_ddpm.schedulers.annotations import check_choice, check_count

if TYPE_CHECKING:
    from hf_ddpm.data import Batch

Bound = Literal["elbo", "iwae"]


class ELBOObjective:
    """-E_q[log p(x|z)] + beta KL(q(z|x) || N(0, I)), summed over dimensions: nats per image.

    `iwae` is -log mean_k w_k with w_k = p(x|z_k) p(z_k) / q(z_k|x) (Burda et al. 2016, arXiv 1509.00519, eq. 8): the
    more samples, the closer to -log p(x); with one it is the ELBO with a sampled KL.

    Args:
        likelihood: The likelihood p(x|z) of the model.
        latent_shape: The shape (J, h, w) of its latents.
        bound: `elbo` or `iwae`.
        num_samples: The number of draws of z per image: L of the ELBO's Monte Carlo mean, or k of IWAE.
        beta: The weight of the KL; 1 is the bound, larger values disentangle the latents (Higgins et al. 2017).
        kl_warmup_steps: The number of optimizer steps over which the weight of the KL, or of log p(z) / q(z|x) in IWAE,
            grows from 0 to beta (arXiv 1602.02282). Without it many latent dimensions are dropped early and stay
            unused.
        free_bits: The number of nats below which the KL of a latent dimension is not penalised. See arXiv 1606.04934,
            eq. 15; the paper averages over a batch first, this objective does not.

    Raises:
        ValueError: If the bound is unknown, a number is out of range, or `beta` or `free_bits` is set for IWAE, which
            has no separate KL.
    """

    turns = (MODEL,)

    def __init__(
        self,
        likelihood: Likelihood,
        latent_shape: tuple[int, int, int],
        *,
        bound: Bound = "elbo",
        num_samples: int = 1,
        beta: float = 1.0,
        kl_warmup_steps: int = 0,
        free_bits: float = 0.0,
    ) -> None:
        check_choice("bound", bound, get_args(Bound))
        check_choice("likelihood", likelihood, get_args(Likelihood))
        check_count("num_samples", num_samples)
        if not (beta >= 0 and kl_warmup_steps >= 0 and free_bits >= 0):  # rejects nan too
            raise ValueError(
                f"beta={beta}, kl_warmup_steps={kl_warmup_steps} and free_bits={free_bits} must not be negative"
            )
        if bound == "iwae" and (beta, free_bits) != (1, 0):
            raise ValueError(
                f"beta={beta} and free_bits={free_bits} change the KL of bound='elbo', but bound='iwae' has no "
                "separate KL: omit them"
            )
        self.likelihood, self.latent_shape, self.bound, self.num_samples = likelihood, latent_shape, bound, num_samples
        self.beta, self.kl_warmup_steps, self.free_bits = beta, kl_warmup_steps, free_bits

    def draw(self, shape: tuple[int, ...], generator: torch.Generator, step: int = 0) -> Draws:
        """Draw `noise` (B, L, J, h, w) for z; `kl_weight` (B,) follows from the step."""
        device = generator.device
        noise = torch.randn(shape[0], self.num_samples, *self.latent_shape, generator=generator, device=device)
        kl_weight = torch.full(shape[:1], self.kl_weight(step), device=device)
        return Draws({"noise": noise, "kl_weight": kl_weight}, torch.ones(shape[0], device=device))

    def kl_weight(self, step: int) -> float:
        """Return beta, or the part of it that the warm-up has reached in optimizer step `step` (from 0)."""
        return self.beta * min(1.0, step / self.kl_warmup_steps) if self.kl_warmup_steps else self.beta

    def loss(self, turn: str, models: Mapping[str, nn.Module], batch: "Batch", draws: Draws, step: int) -> Losses:
        """Compute the loss of each image, (B,) in nats. Labels are not used: p(x) is over all classes."""
        vae, x, noise, kl_weight = models[turn], batch.x_0, draws.rows["noise"], draws.rows["kl_weight"]
        found: VAEOutput = vae(x, noise=noise)
        log_p_x = self._log_p_x(found, x, noise.shape[1])  # (B, L)
        mean, log_variance = moments_of(found)
        if self.bound == "iwae":
            log_w = log_p_x + kl_weight[:, None] * log_prior_ratio(mean, log_variance, noise)
            return Losses(math.log(noise.shape[1]) - log_w.logsumexp(dim=1))
        kl = kl_per_dimension(mean, log_variance).clamp(min=self.free_bits)  # (B, J, h, w)
        return Losses(kl_weight * kl.flatten(1).sum(dim=1) - log_p_x.mean(dim=1))

    def learn(self, turn: str, draws: Draws, losses: Tensor, gather: Callable[[Tensor], Tensor]) -> None:
        """Do nothing: nothing is learned from the losses."""

    def state(self) -> dict[str, Tensor]:
        """Return an empty state: nothing was learned."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Do nothing: the state is empty."""

    def _log_p_x(self, found: VAEOutput, x: Tensor, num_samples: int) -> Tensor:
        """log p(x|z) of each draw, (B, L)."""
        x, log_variance = x.repeat_interleave(num_samples, dim=0), found.log_variance
        if self.likelihood == "gaussian_optimal":
            log_variance = optimal_log_variance(x, found.output)
        return decoder_distribution(self.likelihood, found.output, log_variance).log_prob(x).view(-1, num_samples)


def moments_of(found: VAEOutput) -> tuple[Tensor, Tensor]:
    """Return mu and log sigma^2 of q(z|x), each (B, J, h, w), clamped as in `DiagonalGaussianDistribution`."""
    posterior = DiagonalGaussianDistribution(found.moments)
    return posterior.mean, posterior.logvar


def kl_per_dimension(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mu, sigma^2) || N(0, 1)) = (mu^2 + sigma^2 - log sigma^2 - 1) / 2 of each element (appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1)


def log_prior_ratio(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """log p(z) - log q(z|x) at z = mu + sigma * noise, (B, L), in which the terms with 2 pi cancel.

    Args:
        mean, log_variance: The mean and the log-variance of q(z|x), (B, J, h, w).
        noise: Standard normal noise, (B, L, J, h, w).
    """
    z = mean[:, None] + torch.exp(0.5 * log_variance)[:, None] * noise
    return 0.5 * (noise.square() + log_variance[:, None] - z.square()).flatten(2).sum(dim=2)
