"""What an objective is: turns, what is drawn for them, and the loss of each image."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from hf_ddpm.data import Batch

MODEL = "model"
"""The turn, and the player, of an objective that trains one network."""


class Draws(NamedTuple):
    """What is random in one optimizer step.

    rows: by name, each tensor with a row for each image, (B, ...). weight: of the loss of each image, (B,).
    """

    rows: dict[str, Tensor]
    weight: Tensor

    def part(self, cut: slice) -> "Draws":
        """The rows of some of the images."""
        return Draws({name: values[cut] for name, values in self.rows.items()}, self.weight[cut])


class Losses(NamedTuple):
    """The loss of each image, and what else the log says.

    each: the loss of each image, (B,). said: further figures for the log, by name. A scalar is a mean over these
    images. A pair [sum, count], (2,), is a mean over some of them, of which a part of a batch may have none: pairs are
    added up over parts, steps and processes before they are divided. All processes say the same names.
    """

    each: Tensor
    said: Mapping[str, Tensor] = {}

    @classmethod
    def joined(cls, parts: "Sequence[Losses]") -> "Losses":
        """Of the equal parts of a batch that of the batch, without gradients."""
        said = {name: _joined([part.said[name].detach() for part in parts]) for name in parts[0].said}
        return cls(torch.cat([part.each.detach() for part in parts]), said)


def as_pair(figure: Tensor) -> Tensor:
    """A figure of `Losses.said` as [sum, count], float32 (2,): a scalar counts once."""
    return figure.float() if figure.ndim else torch.stack([figure, torch.ones_like(figure)]).float()


def _joined(figures: "Sequence[Tensor]") -> Tensor:
    """The mean of scalars, or the sum of pairs."""
    stacked = torch.stack([*figures])
    return stacked.sum(dim=0) if stacked.ndim == 2 else stacked.mean()


class Objective(Protocol):
    """What the training loop asks of an objective, step after step and turn after turn.

    In a turn one player is trained, by `(draws.weight * loss(...).each).mean()`, and the others stand still. Everything
    random is drawn once a step for the global batch, as a function of the seed and the step; processes and accumulation
    parts get their rows of it.

    Attributes:
        turns: the name of the player whose turn it is, in their order.
    """

    turns: tuple[str, ...]

    def draw(self, shape: tuple[int, ...], generator: torch.Generator, step: int = 0) -> Draws:
        """What is random in a step for a global batch of images of `shape` (B, C, H, W), on the generator's device."""

    def loss(self, turn: str, models: Mapping[str, nn.Module], batch: "Batch", draws: Draws, step: int) -> Losses:
        """The losses of a part of the batch.

        Args:
            turn: one of `turns`.
            models: every player's network. That of `turn` is in Accelerate's wrapper and trainable, the others are
                neither.
            batch: images in [-1, 1], (B, C, H, W), and their classes.
            draws: the rows of these images.
            step: optimizer steps done before, from 0.
        """

    def learn(self, turn: str, draws: Draws, losses: Tensor, gather: Callable[[Tensor], Tensor]) -> None:
        """See the losses of a turn that was taken, on every process alike.

        Args:
            turn: one of `turns`.
            draws: of the global batch.
            losses: of this process's images, (B / processes,).
            gather: makes those of the global batch of them; a collective, so every process calls it or none.
        """

    def state(self) -> dict[str, Tensor]:
        """What the objective has learned, for a saved state; alike on every process."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state()`.

        Raises:
            ValueError: the state of another objective.
        """
