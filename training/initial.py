"""Weights that a run begins with: those of a saved checkpoint, as far as they fit."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hf_ddpm.checkpoint import load_checkpoint
from hf_ddpm.errors import UserError
from hf_ddpm.kinds import Kind, kind_of
from hf_ddpm.objectives import MODEL
from hf_ddpm.training.players import Player
from hf_ddpm.training.settings import Training

NAMED = 3  # weights that do not fit, in a sentence
OF_THE_PROCESS = ("prediction_type", "num_train_timesteps", "variance_type")  # in which a network was trained


def take_weights(players: Mapping[str, Player], training: Training, kind: Kind, scheduler: Any) -> list[str]:
    """Give the players and their averages the weights of `training.init_from`, before they are prepared.

    Args:
        players: with random weights.
        training: which names the checkpoint.
        kind: of what the recipe trains.
        scheduler: of the recipe; None for a kind without one.

    Returns:
        list: sentences about what was taken and what does not fit.

    Raises:
        UserError: the checkpoint cannot be opened, is of another kind, or has no weight that fits.
    """
    source = training.init_from
    if source is None:
        return []
    pipeline: Any = load_checkpoint(source, **({"variant": "raw"} if training.init_raw else {}))
    if kind_of(pipeline) is not kind:
        raise UserError(
            f"init_from={source!r} holds a {kind_of(pipeline).word} and the recipe trains a {kind.word}: give one of "
            "these"
        )
    said = []
    for name, player in players.items():
        component = kind.network if name == MODEL else name
        network = getattr(pipeline, component, None)
        if network is None:
            said.append(f"init_from: {source} has no {component}, which begins with random weights")
            continue
        said.append(f"init_from: {_taken(player, network.state_dict(), source, component)}")
    theirs = getattr(pipeline, "scheduler", None)
    if scheduler is not None and theirs is not None:
        other = [key for key in OF_THE_PROCESS if theirs.config.get(key) != scheduler.config.get(key)]
        said += [
            f"init_from: {source} was trained with {key}={theirs.config.get(key)!r}, and this run has "
            f"{scheduler.config.get(key)!r}"
            for key in other
        ]
    return said


def _taken(player: Player, weights: Mapping[str, Tensor], source: str, component: str) -> str:
    """Load what fits into a player and its average; what was taken, in words."""
    own = player.model.state_dict()
    fitting = {name: weights[name] for name in own if name in weights and weights[name].shape == own[name].shape}
    if 2 * len(fitting) < len(own):
        raise UserError(
            f"init_from={source!r}: {len(fitting):,} of {len(own):,} tensors of its {component} fit the network of the "
            "recipe, which is another one: take the recipe that it was trained with"
        )
    player.model.load_state_dict(own | fitting)
    if player.ema is not None:
        player.ema.model.load_state_dict(player.model.state_dict())
    left = sorted((own.keys() | weights.keys()) - fitting.keys())
    taken = f"{len(fitting):,} of {len(own):,} tensors of the {component} are those of {source}"
    if not left:
        return taken
    named = ", ".join(left[:NAMED]) + (f" and {len(left) - NAMED:,} more" if len(left) > NAMED else "")
    return f"{taken}; these do not fit and begin as they are: {named}"
