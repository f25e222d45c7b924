"""The players of a run: each network with the optimizer that trains it and the average of its weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType
from torch import nn

from hf_ddpm.errors import UserError, as_user_error
from hf_ddpm.objectives import MODEL
from hf_ddpm.training.ema import EMA
from hf_ddpm.training.recipe import Block, Blocks, Recipe
from hf_ddpm.training.settings import Optimization, Training

OF_ONE_PLAYER: Blocks = {"optimization": Block(Optimization), "ema": Block(EMA, supplied=("model",))}


@dataclass
class Player:
    """One network of a run.

    Attributes:
        model: The network; after `prepare`, it is in Accelerate's wrapper.
        optimization: The settings of its optimizer.
        ema: The average of its weights; None if they are not averaged.
        optimizer: The optimizer, which `prepare` creates.
    """

    model: Any
    optimization: Optimization
    ema: EMA | None
    optimizer: AcceleratedOptimizer = None

    def prepare(self, accelerator: Accelerator, training: Training) -> None:
        """Move the network to the device on which it is trained, and create its optimizer.

        Raises:
            UserError: If FSDP would save the weights as the shards of one process.
        """
        if accelerator.distributed_type == DistributedType.FSDP and (self.ema is None or not accelerator.is_fsdp2):
            raise UserError(
                "distributed_type FSDP shards the weights, which are gathered for saving only with FSDP2 and averaged "
                "weights (ema): use distributed_type MULTI_GPU, or fsdp_version 2 for a recipe with an average"
            )
        if self.ema is not None:
            self.ema.model.to(accelerator.device)
        if training.gradient_checkpointing:
            self.model.enable_gradient_checkpointing()
        if training.channels_last:
            self.model.to(memory_format=torch.channels_last)
        if training.compile:
            self.model.compile()
        self.model, self.optimizer = accelerator.prepare(self.model, self.optimization.build(self.model))

    def network(self, accelerator: Accelerator) -> nn.Module:
        """Return the network that samples and is saved, with averaged weights if they are averaged."""
        return accelerator.unwrap_model(self.model) if self.ema is None else self.ema.model


def single_player(network: nn.Module, recipe: Recipe, *, averaged: bool = True) -> dict[str, Player]:
    """Return the player of a family that trains one network, from the recipe's blocks `optimization` and `ema`.

    Args:
        network: The network, with random weights.
        recipe: The recipe with these blocks.
        averaged: Whether to average its weights.
    """
    with as_user_error("ema"):
        ema = EMA(network, **recipe["ema"]) if averaged else None
    return {MODEL: Player(network, Optimization(**recipe["optimization"]), ema)}


def check_turns(turns: tuple[str, ...], players: Mapping[str, Player]) -> None:
    """Reject an objective whose turns are not those of the players.

    Raises:
        UserError: If a turn belongs to a player that does not exist, or a player never has a turn.
    """
    strangers, idle = sorted({*turns} - players.keys()), sorted(players.keys() - {*turns})
    if strangers or idle:
        wrong = f"a turn {strangers[0]!r}, which is not a player" if strangers else f"no turn of player {idle[0]!r}"
        known = f"its turns ({', '.join(turns)}) must be the players ({', '.join(players)})"
        raise UserError(f"the objective has {wrong}: {known}")


@contextmanager
def alone(turn: str, players: Mapping[str, Player], accelerator: Accelerator) -> Iterator[dict[str, nn.Module]]:
    """Yield every player's network during the turn of one of them: its own for training, and the others as they are.

    The others are frozen and outside of Accelerate's wrapper, so that gradients pass through them but are not stored,
    and no process waits for their gradients.
    """
    waiting = {name: accelerator.unwrap_model(player.model) for name, player in players.items() if name != turn}
    frozen = [weight for network in waiting.values() for weight in network.parameters() if weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_(False)
    try:
        yield {**waiting, turn: players[turn].model}
    finally:
        for weight in frozen:
            weight.requires_grad_(True)
