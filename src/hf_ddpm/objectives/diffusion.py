"""What the objectives of a diffusion model share: t and noise, and a sampler of t that learns from the losses."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hf_ddpm.objectives.objective import MODEL, Draws, Losses
from hf_ddpm.objectives.timestep_sampling import TimestepSampler
from hf_ddpm.schedulers import HFDDPMScheduler

if TYPE_CHECKING:
    from hf_ddpm.data import Batch


class DiffusionObjective(ABC):
    """An objective over (x_0, t, noise) with one player; its file holds its loss. See `Objective`.

    Args:
        scheduler: owns the noise process and says what the model predicts.
        sampler: draws t, and learns from the losses if it is of that kind.
    """

    turns = (MODEL,)

    def __init__(self, scheduler: HFDDPMScheduler, sampler: TimestepSampler) -> None:
        self.scheduler, self.sampler = scheduler, sampler

    def draw(self, shape: tuple[int, ...], generator: torch.Generator, step: int = 0) -> Draws:
        """`t` (B,) and `noise` (B, C, H, W), for any step."""
        t, weight = self.sampler.draw(shape[0], generator)
        return Draws({"t": t, "noise": torch.randn(shape, generator=generator, device=generator.device)}, weight)

    @abstractmethod
    def loss(self, turn: str, models: Mapping[str, nn.Module], batch: "Batch", draws: Draws, step: int) -> Losses:
        """The loss of each image, (B,): a mean over its dimensions."""

    def learn(self, turn: str, draws: Draws, losses: Tensor, gather: Callable[[Tensor], Tensor]) -> None:
        """Let the sampler of t see the losses of the global batch."""
        if self.sampler.history is not None:
            self.sampler.history.record(draws.rows["t"], gather(losses))

    def state(self) -> dict[str, Tensor]:
        """The history of losses, if t is drawn by it."""
        return {} if self.sampler.history is None else self.sampler.history.state()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from such a history."""
        if self.sampler.history is not None:
            self.sampler.history.load(state)
