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

    Such a p_t minimises the variance of the weighted loss L_t / (T p_t), which L_vlb needs because its terms differ by
    orders of magnitude. It depends only on the recorded losses, so processes that record the same losses draw the same
    t.

    Args:
        num_steps: T.

    Attributes:
        losses: The losses, (T, 10) float64, as a ring buffer for each t.
        counts: The number of losses that were recorded for each t, (T,) int64.
    """

    def __init__(self, num_steps: int) -> None:
        self.losses = np.zeros((num_steps, LOSSES_PER_T))
        self.counts = np.zeros(num_steps, dtype=np.int64)

    def record(self, t: Tensor, losses: Tensor) -> None:
        """Record the losses of a batch, `t` and `losses` (B,), in their order; losses that are not finite are skipped.

        This waits for the device that computes them.
        """
        for step, loss in zip(t.tolist(), losses.tolist(), strict=True):
            if math.isfinite(loss):
                self.losses[step, self.counts[step] % LOSSES_PER_T] = loss
                self.counts[step] += 1

    def probabilities(self) -> np.ndarray:
        """Return p_t, (T,) float64: uniform until every t has 10 losses, afterwards with a uniform part of 0.1%."""
        uniform = np.full(len(self.counts), 1 / len(self.counts))
        root_mean_square = np.sqrt(np.square(self.losses).mean(axis=1))
        if self.counts.min() < LOSSES_PER_T or root_mean_square.sum() == 0:
            return uniform
        return (1 - UNIFORM_SHARE) * root_mean_square / root_mean_square.sum() + UNIFORM_SHARE * uniform

    def state(self) -> dict[str, Tensor]:
        """Return the history as tensors for a saved state."""
        return {"losses": torch.from_numpy(self.losses), "counts": torch.from_numpy(self.counts)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the `state()` of a history with the same T.

        Raises:
            ValueError: If the state has another T, or is not that of a history.
        """
        for name, own in self.state().items():
            if name not in state or state[name].shape != own.shape:
                raise ValueError(f"the history of losses must contain {name} of shape {tuple(own.shape)}")
            own.copy_(state[name])
