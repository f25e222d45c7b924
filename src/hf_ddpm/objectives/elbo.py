"""The evidence lower bound of a VAE (Kingma & Welling 2014, arXiv 1312.6114, eq. 10), and IWAE's."""

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
    """-E_q[log p(x|z)] + beta KL(q(z|x) || N(0, I)), summed over dimensions: nats an image.

    `iwae` is -log mean_k w_k with w_k = p(x|z_k) p(z_k) / q(z_k|x) (Burda et al. 2016, arXiv 1509.00519, eq. 8): the
    more samples, the closer to -log p(x); with one it is the ELBO with a sampled KL.

    Args:
        likelihood: of the model.
        latent_shape: (J, h, w) of its latents.
        bound: elbo or iwae.
        num_samples: L of the elbo's Monte Carlo mean, or k of iwae; draws of z for each image.
        beta: weight of the KL; 1 is the bound, more presses latents apart (Higgins et al. 2017).
        kl_warmup_steps: the weight of the KL grows from 0 to beta over so many optimizer steps (arXiv 1602.02282); in
            iwae that of log p(z) / q(z|x). Without it many latent dimensions are given up early and stay unused.
        free_bits: nats below which the KL of a latent dimension costs nothing more (arXiv 1606.04934, eq. 15, for each
            image where the paper averages over a batch first).

    Raises:
        ValueError: an unknown bound, a number out of range, or weights of a KL that iwae has not.
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
        if not (beta >= 0 and kl_warmup_steps >= 0 and free_bits >= 0):  # nan is refused too
            raise ValueError(
                f"beta={beta}, kl_warmup_steps={kl_warmup_steps} and free_bits={free_bits} must not be negative"
            )
        if bound == "iwae" and (beta, free_bits) != (1, 0):
            raise ValueError(
                f"beta={beta} and free_bits={free_bits} change the KL of bound='elbo': iwae has none apart, "
                "leave them out"
            )
        self.likelihood, self.latent_shape, self.bound, self.num_samples = likelihood, latent_shape, bound, num_samples
        self.beta, self.kl_warmup_steps, self.free_bits = beta, kl_warmup_steps, free_bits

    def draw(self, shape: tuple[int, ...], generator: torch.Generator, step: int = 0) -> Draws:
        """`noise` (B, L, J, h, w) of the draws of z, and `kl_weight` (B,), which follows from the step."""
        device = generator.device
        noise = torch.randn(shape[0], self.num_samples, *self.latent_shape, generator=generator, device=device)
        kl_weight = torch.full(shape[:1], self.kl_weight(step), device=device)
        return Draws({"noise": noise, "kl_weight": kl_weight}, torch.ones(shape[0], device=device))

    def kl_weight(self, step: int) -> float:
        """beta, or the part of it that the warm-up has reached in optimizer step `step` (from 0)."""
        return self.beta * min(1.0, step / self.kl_warmup_steps) if self.kl_warmup_steps else self.beta

    def loss(self, turn: str, models: Mapping[str, nn.Module], batch: "Batch", draws: Draws, step: int) -> Losses:
        """The loss of each image, (B,) in nats. Labels are not used: p(x) is of all classes."""
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
        """Nothing is learned from the losses."""

    def state(self) -> dict[str, Tensor]:
        """Empty, as nothing was learned."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """There is nothing to load."""

    def _log_p_x(self, found: VAEOutput, x: Tensor, num_samples: int) -> Tensor:
        """log p(x|z) of each draw, (B, L)."""
        x, log_variance = x.repeat_interleave(num_samples, dim=0), found.log_variance
        if self.likelihood == "gaussian_optimal":
            log_variance = optimal_log_variance(x, found.output)
        return decoder_distribution(self.likelihood, found.output, log_variance).log_prob(x).view(-1, num_samples)


def moments_of(found: VAEOutput) -> tuple[Tensor, Tensor]:
    """mu and log sigma^2 of q(z|x), each (B, J, h, w), clamped as `DiagonalGaussianDistribution` does."""
    posterior = DiagonalGaussianDistribution(found.moments)
    return posterior.mean, posterior.logvar


def kl_per_dimension(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mu, sigma^2) || N(0, 1)) = (mu^2 + sigma^2 - log sigma^2 - 1) / 2 of each element (appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1)


def log_prior_ratio(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """log p(z) - log q(z|x) at z = mu + sigma * noise, (B, L): what the 2 pi of both leave.

    Args:
        mean, log_variance: of q(z|x), (B, J, h, w).
        noise: (B, L, J, h, w).
    """
    z = mean[:, None] + torch.exp(0.5 * log_variance)[:, None] * noise
    return 0.5 * (noise.square() + log_variance[:, None] - z.square()).flatten(2).sum(dim=2)
