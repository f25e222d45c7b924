"""The timesteps of a training step, and the weights of their losses."""

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from hf_ddpm.objectives.loss_history import LossHistory
from hf_ddpm.schedulers.annotations import check_choice

TimestepSampling = Literal["uniform", "antithetic", "stratified", "logit_normal", "loss_second_moment"]


class TimestepSampler:
    """Draws t for a global batch, in one of the ways that `make_objective` lists.

    Args:
        num_steps: T.
        timestep_sampling: The way in which t is drawn.
        logit_mean, logit_std: The mean and the standard deviation of the logits of `logit_normal`.

    Attributes:
        history: The losses from which `loss_second_moment` learns p_t, None for the others. The caller records the
            losses of the global batch in it, once per step and in the same way on every process, and saves it with the
            training state.

    Raises:
        ValueError: If the sampling is unknown, or logit_std <= 0.
    """

    def __init__(
        self,
        num_steps: int,
        timestep_sampling: TimestepSampling = "uniform",
        *,
        logit_mean: float = 0.0,
        logit_std: float = 1.0,
    ) -> None:
        check_choice("timestep_sampling", timestep_sampling, get_args(TimestepSampling))
        if logit_std <= 0:
            raise ValueError(f"logit_std={logit_std} must be positive")
        self.num_steps, self.timestep_sampling = num_steps, timestep_sampling
        self.logit_mean, self.logit_std = logit_mean, logit_std
        self.history = LossHistory(num_steps) if timestep_sampling == "loss_second_moment" else None

    def draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw `t` (B,) in [0, T-1] and return it with the weight of each loss (B,) float32, on the generator's device.

        The weight is 1 / (T p_t) for `loss_second_moment`, so that E[weight * loss] is the mean over all t whatever p,
        and 1 for the others: the preference of `logit_normal` is part of the objective.
        """
        if self.history is not None:
            return self._draw_by_history(self.history.probabilities(), batch_size, generator)
        return self._draw_timesteps(batch_size, generator), torch.ones(batch_size, device=generator.device)

    def _draw_timesteps(self, batch_size: int, generator: torch.Generator) -> Tensor:
        num_steps, device = self.num_steps, generator.device
        if self.timestep_sampling in ("uniform", "antithetic"):
            t = torch.randint(num_steps, (batch_size,), generator=generator, device=device)
            if self.timestep_sampling == "uniform":
                return t
            half = (batch_size + 1) // 2
            return torch.cat([t[:half], num_steps - 1 - t[: batch_size - half]])
        u = torch.rand(batch_size, generator=generator, device=device)
        u = (torch.arange(batch_size, device=device) + u) / batch_size  # one in each part of [0, 1)
        if self.timestep_sampling == "logit_normal":
            u = torch.sigmoid(self.logit_mean + self.logit_std * torch.special.ndtri(u))
        return (u * num_steps).long().clamp(max=num_steps - 1)

    def _draw_by_history(self, p: np.ndarray, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw one t from each of B equal parts of p's cumulative distribution: each t comes B p_t times on average."""
        u = torch.rand(batch_size, generator=generator, device=generator.device).cpu().double().numpy()
        u = (np.arange(batch_size) + u) / batch_size
        t = np.searchsorted(p.cumsum(), u, side="right").clip(max=self.num_steps - 1)
        weight = 1 / (self.num_steps * p[t])
        return torch.from_numpy(t).to(generator.device), torch.from_numpy(weight).float().to(generator.device)
