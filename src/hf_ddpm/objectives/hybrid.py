"""L_hybrid of Improved DDPM (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 16): a learned variance beside L_simple."""

import math

import torch
from torch import Tensor, nn

from hf_ddpm.objectives.network import network_output
from hf_ddpm.objectives.simple import check_min_snr, simple_loss
from hf_ddpm.objectives.timestep_sampling import TimestepSampler
from hf_ddpm.schedulers import HFDDPMScheduler
from hf_ddpm.variational_bound import bound_term

LAMBDA = 0.001


class HybridObjective:
    """L_simple + lambda L_vlb, lambda = 0.001 and L_vlb = E_t [T L_t] in bits a dimension.

    The first half of the output, the prediction, learns from L_simple alone: L_t sees it behind a stop-gradient. The
    second half, the variance, learns from L_t alone (sec. 3.1). One forward pass serves both.

    Args:
        scheduler: owns the noise process and says what the model predicts; its variance is learned.
        sampler: draws t.
        min_snr_gamma: weights L_simple, see `min_snr_weight`.
        rescaled: whether L_t weighs lambda T = T / 1000 (the authors' RESCALED_MSE); if not, 1.

    Raises:
        ValueError: a variance that is not learned, or a gamma that `min_snr_weight` does not know.
    """

    def __init__(
        self,
        scheduler: HFDDPMScheduler,
        sampler: TimestepSampler,
        *,
        min_snr_gamma: float | None = None,
        rescaled: bool = True,
    ) -> None:
        if not scheduler.learns_variance:
            raise ValueError(
                f"variance_type={scheduler.config['variance_type']!r} is fixed, so the L_vlb half of L_hybrid has no "
                "gradient: choose variance_type='learned_range' (or 'learned'), or loss='simple'"
            )
        check_min_snr(min_snr_gamma, scheduler.config["prediction_type"])
        self.scheduler, self.sampler, self.min_snr_gamma = scheduler, sampler, min_snr_gamma
        self.history = sampler.history
        self.scale = LAMBDA * len(scheduler) if rescaled else 1.0

    def draw(self, shape: tuple[int, ...], generator: torch.Generator, step: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """`t` (B,), `noise` (B, C, H, W) and the weight of each loss (B,) for a global batch of `shape`; any step."""
        t, weight = self.sampler.draw(shape[0], generator)
        return t, torch.randn(shape, generator=generator, device=generator.device), weight

    def __call__(self, model: nn.Module, x_0: Tensor, t: Tensor, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """The loss of each image, (B,); arguments as `SimpleObjective`."""
        x_t = self.scheduler.add_noise(x_0, noise, t)
        prediction, variance = network_output(model, self.scheduler, x_t, t, labels).chunk(2, dim=1)
        simple = simple_loss(self.scheduler, prediction, x_0, x_t, noise, t, self.min_snr_gamma)
        stopped = torch.cat([prediction.detach(), variance], dim=1)  # (B, 2C, H, W)
        term = bound_term(self.scheduler, stopped, x_0, x_t, t) / math.log(2)
        return simple + self.scale * term
