"""Importance sampling of t by the second moment of its loss (Improved DDPM, Nichol & Dhariwal 2021, sec. 3.3)."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

LOSSES_PER_T = 10
UNIFORM_SHARE = 0.001


class LossHistory:
    """The last 10 losses of each t, and p_t ~ sqrt(E[L_t^2]) from them (eq. 18).

    Such a p_t gives the weighted loss L_t / (T p_t) its least variance, and L_vlb needs it: its terms differ by orders
    of magnitude. It is a function of what was recorded alone, so processes that record the same draw the same.

    Args:
        num_steps: T.

    Attributes:
        losses: (T, 10) float64, a ring for each t.
        counts: how many losses each t had, (T,) int64.
    """

    def __init__(self, num_steps: int) -> None:
        self.losses = np.zeros((num_steps, LOSSES_PER_T))
        self.counts = np.zeros(num_steps, dtype=np.int64)

    def record(self, t: Tensor, losses: Tensor) -> None:
        """Remember the losses of a batch, `t` and `losses` (B,), in their order; one that is not finite is left out.

        A device that computes them is waited for.
        """
        for step, loss in zip(t.tolist(), losses.tolist(), strict=True):
            if math.isfinite(loss):
                self.losses[step, self.counts[step] % LOSSES_PER_T] = loss
                self.counts[step] += 1

    def probabilities(self) -> np.ndarray:
        """p_t, (T,) float64: uniform until every t has its 10 losses, from then on 0.1% of it stays uniform."""
        uniform = np.full(len(self.counts), 1 / len(self.counts))
        root_mean_square = np.sqrt(np.square(self.losses).mean(axis=1))
        if self.counts.min() < LOSSES_PER_T or root_mean_square.sum() == 0:
            return uniform
        return (1 - UNIFORM_SHARE) * root_mean_square / root_mean_square.sum() + UNIFORM_SHARE * uniform

    def state(self) -> dict[str, Tensor]:
        """What a saved state holds."""
        return {"losses": torch.from_numpy(self.losses), "counts": torch.from_numpy(self.counts)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state()` of a history of the same T.

        Raises:
            ValueError: a state of another T, or of no history.
        """
        for name, own in self.state().items():
            if name not in state or state[name].shape != own.shape:
                raise ValueError(f"the history of losses must hold {name} of shape {tuple(own.shape)}")
            own.copy_(state[name])
