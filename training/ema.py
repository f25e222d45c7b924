"""The exponential moving average of the weights, which is used for sampling."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class EMA:
    """theta_ema <- decay * theta_ema + (1 - decay) * theta after each optimizer step.

    The decay of step n (from 1) is min(max_decay, 1 - (1 + n / inv_gamma) ** -power): a short run averages over its
    last part instead of keeping its random initial weights, and a long run reaches `max_decay`.

    Args:
        model: The model whose weights are averaged; the average starts as a copy of it.
        max_decay: The decay of a long run, in [0, 1).
        inv_gamma: The time scale of the warm-up of the decay, in steps.
        power: The exponent of the warm-up of the decay; with 1, the average covers a fixed fraction of the steps so
            far.
    """

    def __init__(
        self, model: nn.Module, *, max_decay: float = 0.9999, inv_gamma: float = 1.0, power: float = 0.75
    ) -> None:
        if not 0 <= max_decay < 1 or inv_gamma <= 0 or power <= 0:
            raise ValueError(
                f"max_decay={max_decay} must lie in [0, 1), and inv_gamma={inv_gamma} and power={power} must be "
                "positive"
            )
        self.max_decay, self.inv_gamma, self.power = max_decay, inv_gamma, power
        self.model: Any = copy.deepcopy(model).eval().requires_grad_(False)  # has the class of `model`

    def decay(self, step: int) -> float:
        """Return the decay of update number `step`, counted from 1."""
        return min(self.max_decay, 1 - (1 + step / self.inv_gamma) ** -self.power)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards `model` after its optimizer step number `step`, in one call for all weights."""
        averages: list[Tensor] = [*self.model.parameters()]
        weights: list[Tensor] = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]  # FSDP2
        torch._foreach_lerp_(averages, weights, 1 - self.decay(step))
