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
        model: the network, in Accelerate's wrapper from `prepare` on.
        optimization: its optimizer's settings.
        ema: the average of its weights; None if it has none.
        optimizer: made by `prepare`.
    """

    model: Any
    optimization: Optimization
    ema: EMA | None
    optimizer: AcceleratedOptimizer = None

    def prepare(self, accelerator: Accelerator, training: Training) -> None:
        """Bring the network and its optimizer to where they are trained.

        Raises:
            UserError: FSDP with weights that would be saved as one process's shards.
        """
        if accelerator.distributed_type == DistributedType.FSDP and (self.ema is None or not accelerator.is_fsdp2):
            raise UserError(
                "distributed_type FSDP shards the weights, and only those of FSDP2 that have an average (ema) are "
                "gathered before they are saved: take distributed_type MULTI_GPU, or fsdp_version 2 where there is one"
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
        """The weights that sample and are saved: the averaged ones, if there is an average."""
        return accelerator.unwrap_model(self.model) if self.ema is None else self.ema.model


def single_player(network: nn.Module, recipe: Recipe, *, averaged: bool = True) -> dict[str, Player]:
    """The player of a family that trains one network, by the recipe's blocks `optimization` and `ema`.

    Args:
        network: with random weights.
        recipe: whose blocks they are.
        averaged: whether its weights have an average.
    """
    with as_user_error("ema"):
        ema = EMA(network, **recipe["ema"]) if averaged else None
    return {MODEL: Player(network, Optimization(**recipe["optimization"]), ema)}


def check_turns(turns: tuple[str, ...], players: Mapping[str, Player]) -> None:
    """Refuse an objective whose turns are not those of the players.

    Raises:
        UserError: a turn of a player that is not there, or a player who never has a turn.
    """
    strangers, idle = sorted({*turns} - players.keys()), sorted(players.keys() - {*turns})
    if strangers or idle:
        wrong = f"a turn of {strangers[0]!r}, who is no player" if strangers else f"no turn of the player {idle[0]!r}"
        known = f"its turns are {', '.join(turns)}, the players {', '.join(players)}"
        raise UserError(f"the objective has {wrong}: {known}, which must be the same")


@contextmanager
def alone(turn: str, players: Mapping[str, Player], accelerator: Accelerator) -> Iterator[dict[str, nn.Module]]:
    """Every player's network while one of them has its turn: its own to be trained, the others as they are.

    Those who wait are frozen and out of Accelerate's wrapper, so that a gradient passes through them and none is kept,
    and no process waits for a gradient of theirs.
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
