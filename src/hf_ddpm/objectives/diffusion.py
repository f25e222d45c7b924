"""The common base of the objectives of a diffusion model: draws of t and noise, and an adaptive sampler of t."""

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
    """An objective over (x_0, t, noise) with one player; subclasses define the loss. See `Objective`.

    Args:
        scheduler: The noise process; its config defines what the model predicts.
        sampler: The sampler of t, which may learn from the losses.
        label_dropout: The probability of training an image without its label, in [0, 1).

    Attributes:
        null_class: K, the class that stands for "no label". It follows from the data, so it is set when they are
            opened; only a loss with `label_dropout` needs it.

    Raises:
        ValueError: If `label_dropout` is outside [0, 1).
    """

    turns = (MODEL,)

    def __init__(self, scheduler: HFDDPMScheduler, sampler: TimestepSampler, *, label_dropout: float = 0.0) -> None:
        if not 0 <= label_dropout < 1:  # rejects nan too
            raise ValueError(f"label_dropout={label_dropout} must be a probability in [0, 1); 0 drops no labels")
        self.scheduler, self.sampler, self.label_dropout = scheduler, sampler, label_dropout
        self.null_class: int | None = None

    def draw(self, shape: tuple[int, ...], generator: torch.Generator, step: int = 0) -> Draws:
        """Draw `t` (B,), `noise` (B, C, H, W) and, if labels are dropped, `drop` (B,) bool; `step` is not used."""
        t, weight = self.sampler.draw(shape[0], generator)
        rows = {"t": t, "noise": torch.randn(shape, generator=generator, device=generator.device)}
        if self.label_dropout:  # drawn last: t and noise are the same numbers with and without it
            rows["drop"] = torch.rand(shape[:1], generator=generator, device=generator.device) < self.label_dropout
        return Draws(rows, weight)

    def labels(self, batch: "Batch", draws: Draws) -> Tensor | None:
        """c, or the null class with probability `label_dropout` (Ho & Salimans 2022, arXiv 2207.12598, Algorithm 1).

        Returns:
            Tensor | None: The labels that are passed to the network, (B,); None for images without labels.

        Raises:
            ValueError: If labels should be dropped, but there are none, or no class stands for "no label".
        """
        if "drop" not in draws.rows:
            return batch.labels
        if batch.labels is None or self.null_class is None:
            raise ValueError(
                f"label_dropout={self.label_dropout} requires labels, and a null_class that replaces dropped ones: "
                "set null_class to K, the last class of a network with K + 1 classes, or omit label_dropout"
            )
        return batch.labels.masked_fill(draws.rows["drop"], self.null_class)

    @abstractmethod
    def loss(self, turn: str, models: Mapping[str, nn.Module], batch: "Batch", draws: Draws, step: int) -> Losses:
        """Compute the loss of each image, (B,): a mean over its dimensions."""

    def learn(self, turn: str, draws: Draws, losses: Tensor, gather: Callable[[Tensor], Tensor]) -> None:
        """Record the losses of the global batch, if t is drawn by them."""
        if self.sampler.history is not None:
            self.sampler.history.record(draws.rows["t"], gather(losses))

    def state(self) -> dict[str, Tensor]:
        """Return the history of losses, if t is drawn by it."""
        return {} if self.sampler.history is None else self.sampler.history.state()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from such a history."""
        if self.sampler.history is not None:
            self.sampler.history.load(state)
