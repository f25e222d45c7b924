"""L_vlb, the variational bound itself (Ho et al. 2020, eq. 5; Nichol & Dhariwal 2021, eq. 4 to 7), in bits."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn

from hf_ddpm.objectives.diffusion import DiffusionObjective
from hf_ddpm.objectives.network import network_output
from hf_ddpm.objectives.objective import Draws, Losses
from hf_ddpm.objectives.timestep_sampling import TimestepSampler
from hf_ddpm.schedulers import HFDDPMScheduler
from hf_ddpm.variational_bound import bound_term

if TYPE_CHECKING:
    from hf_ddpm.data import Batch


class VLBObjective(DiffusionObjective):
    """E_{t, x_0, eps} [T L_t] = L_0 + ... + L_{T-1} in bits per dimension: L_vlb without its prior, which is constant.

    L_t = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), or -log p(x_0 | x_1) at t = 0. All predictions and variances
    have a gradient in it; x_0 is not clipped, because clipping would remove the gradient.

    Args:
        scheduler: The noise process; its config defines what the model predicts.
        sampler: The sampler of t; `loss_second_moment` is made for terms that differ by orders of magnitude, as here.
        rescaled: Whether the loss is T L_t (the authors' RESCALED_KL) instead of L_t.
        label_dropout: See `DiffusionObjective`.

    Raises:
        ValueError: If `label_dropout` is out of range.
    """

    def __init__(
        self,
        scheduler: HFDDPMScheduler,
        sampler: TimestepSampler,
        *,
        rescaled: bool = True,
        label_dropout: float = 0.0,
    ) -> None:
        super().__init__(scheduler, sampler, label_dropout=label_dropout)
        self.scale = len(scheduler) if rescaled else 1

    def loss(self, turn: str, models: Mapping[str, nn.Module], batch: "Batch", draws: Draws, step: int) -> Losses:
        """Compute the loss of each image, (B,), in bits per dimension."""
        x_0, t, noise = batch.x_0, draws.rows["t"], draws.rows["noise"]
        labels = self.labels(batch, draws)
        x_t = self.scheduler.add_noise(x_0, noise, t)
        output = network_output(models[turn], self.scheduler, x_t, t, labels)
        term = bound_term(self.scheduler, output, x_0, x_t, t, bit_depth=batch.bit_depth) / math.log(2)
        return Losses(self.scale * term)
