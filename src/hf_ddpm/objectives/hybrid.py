"""L_hybrid of Improved DDPM (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 16): L_simple and a learned variance."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from hf_ddpm.objectives.diffusion import DiffusionObjective
from hf_ddpm.objectives.network import network_output
from hf_ddpm.objectives.objective import Draws, Losses
from hf_ddpm.objectives.simple import check_min_snr, simple_loss
from hf_ddpm.objectives.timestep_sampling import TimestepSampler
from hf_ddpm.schedulers import HFDDPMScheduler
from hf_ddpm.variational_bound import bound_term

if TYPE_CHECKING:
    from hf_ddpm.data import Batch

LAMBDA = 0.001


class HybridObjective(DiffusionObjective):
    """L_simple + lambda L_vlb, with lambda = 0.001 and L_vlb = E_t [T L_t] in bits per dimension.

    The first half of the output, the prediction, learns from L_simple alone: L_t sees it behind a stop-gradient. The
    second half, the variance, learns from L_t alone (sec. 3.1). One forward pass serves both.

    Args:
        scheduler: The noise process, with a learned variance; its config defines what the model predicts.
        sampler: The sampler of t.
        min_snr_gamma: The gamma of the weight of L_simple, see `min_snr_weight`.
        rescaled: Whether L_t has the weight lambda T = T / 1000 (the authors' RESCALED_MSE) instead of 1.
        label_dropout: See `DiffusionObjective`.

    Raises:
        ValueError: If the variance is not learned, `min_snr_weight` does not support the gamma, or `label_dropout` is
            out of range.
    """

    def __init__(
        self,
        scheduler: HFDDPMScheduler,
        sampler: TimestepSampler,
        *,
        min_snr_gamma: float | None = None,
        rescaled: bool = True,
        label_dropout: float = 0.0,
    ) -> None:
        if not scheduler.learns_variance:
            raise ValueError(
                f"variance_type={scheduler.config['variance_type']!r} is fixed, so the L_vlb half of L_hybrid has no "
                "gradient: use variance_type='learned_range' (or 'learned'), or loss='simple'"
            )
        check_min_snr(min_snr_gamma, scheduler.config["prediction_type"])
        super().__init__(scheduler, sampler, label_dropout=label_dropout)
        self.min_snr_gamma = min_snr_gamma
        self.scale = LAMBDA * len(scheduler) if rescaled else 1.0

    def loss(self, turn: str, models: Mapping[str, nn.Module], batch: "Batch", draws: Draws, step: int) -> Losses:
        """Compute the loss of each image, (B,)."""
        x_0, t, noise = batch.x_0, draws.rows["t"], draws.rows["noise"]
        labels = self.labels(batch, draws)
        x_t = self.scheduler.add_noise(x_0, noise, t)
        prediction, variance = network_output(models[turn], self.scheduler, x_t, t, labels).chunk(2, dim=1)
        simple = simple_loss(self.scheduler, prediction, x_0, x_t, noise, t, self.min_snr_gamma)
        stopped = torch.cat([prediction.detach(), variance], dim=1)  # (B, 2C, H, W)
        term = bound_term(self.scheduler, stopped, x_0, x_t, t, bit_depth=batch.bit_depth) / math.log(2)
        return Losses(simple + self.scale * term)
