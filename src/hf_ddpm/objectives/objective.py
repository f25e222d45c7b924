"""The interface of an objective: its turns, its random draws, and the loss of each image."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from hf_ddpm.data import Batch

MODEL = "model"
"""The turn, and the player, of an objective that trains one network."""


class Draws(NamedTuple):
    """The random draws of one optimizer step.

    rows: The tensors by name, each with one row per image, (B, ...). weight: The weight of each image's loss, (B,).
    """

    rows: dict[str, Tensor]
    weight: Tensor

    def part(self, cut: slice) -> "Draws":
        """Return the rows of some of the images."""
        return Draws({name: values[cut] for name, values in self.rows.items()}, self.weight[cut])


class Losses(NamedTuple):
    """The loss of each image, and further figures for the log.

    each: The loss of each image, (B,). said: Further figures for the log, by name. A scalar is a mean over these
    images. A pair [sum, count], (2,), is a mean over some of them, which may be none in a part of a batch: pairs are
    added up over parts, steps and processes before they are divided. All processes report the same names.
    """

    each: Tensor
    said: Mapping[str, Tensor] = {}

    @classmethod
    def joined(cls, parts: "Sequence[Losses]") -> "Losses":
        """Join the losses of the equal parts of a batch, without gradients."""
        said = {name: _joined([part.said[name].detach() for part in parts]) for name in parts[0].said}
        return cls(torch.cat([part.each.detach() for part in parts]), said)


def as_pair(figure: Tensor) -> Tensor:
    """Return a figure of `Losses.said` as [sum, count], float32 (2,): a scalar counts once."""
    return figure.float() if figure.ndim else torch.stack([figure, torch.ones_like(figure)]).float()


def _joined(figures: "Sequence[Tensor]") -> Tensor:
    """Return the mean of scalars, or the sum of pairs."""
    stacked = torch.stack([*figures])
    return stacked.sum(dim=0) if stacked.ndim == 2 else stacked.mean()


class Objective(Protocol):
    """The interface that the training loop uses in every step and every turn.

    In a turn one player is trained on `(draws.weight * loss(...).each).mean()`, and the others are not. All random
    numbers are drawn once per step for the global batch, as a function of the seed and the step; processes and
    accumulation parts get their rows of them.

    Attributes:
        turns: The name of the player of each turn, in order.
    """

    turns: tuple[str, ...]

    def draw(self, shape: tuple[int, ...], generator: torch.Generator, step: int = 0) -> Draws:
        """Draw the random numbers of a step for a global batch of `shape` (B, C, H, W), on the generator's device."""

    def loss(self, turn: str, models: Mapping[str, nn.Module], batch: "Batch", draws: Draws, step: int) -> Losses:
        """Compute the losses of a part of the batch.

        Args:
            turn: One of `turns`.
            models: The networks of all players. The network of `turn` is in Accelerate's wrapper and trainable, the
                others are neither.
            batch: Images in [-1, 1], (B, C, H, W), and their classes.
            draws: The rows of these images.
            step: The number of optimizer steps before this one, from 0.
        """

    def learn(self, turn: str, draws: Draws, losses: Tensor, gather: Callable[[Tensor], Tensor]) -> None:
        """Learn from the losses of a completed turn, in the same way on every process.

        Args:
            turn: One of `turns`.
            draws: The draws of the global batch.
            losses: The losses of this process's images, (B / processes,).
            gather: Gathers the losses of the global batch; a collective, so either all processes call it or none.
        """

    def state(self) -> dict[str, Tensor]:
        """Return what the objective has learned, for a saved state; it is the same on every process."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state()`.

        Raises:
            ValueError: If it is the state of another objective.
        """
