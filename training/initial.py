"""The initial weights of a run: those of a saved checkpoint, as far as they fit."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hf_ddpm.checkpoint import load_checkpoint
from hf_ddpm.errors import UserError
from hf_ddpm.kinds import Kind, kind_of
from hf_ddpm.objectives import MODEL
from hf_ddpm.training.players import Player
from hf_ddpm.training.settings import Training

NAMED = 3  # the number of weights that do not fit which a message names
OF_THE_PROCESS = ("prediction_type", "num_train_timesteps", "variance_type")  # which a network is trained with


def take_weights(players: Mapping[str, Player], training: Training, kind: Kind, scheduler: Any) -> list[str]:
    """Load the weights of `training.init_from` into the players and their averages, before they are prepared.

    Args:
        players: The players, with random weights.
        training: The block `training`, which names the checkpoint.
        kind: The kind of model that the recipe trains.
        scheduler: The scheduler of the recipe; None for a kind without one.

    Returns:
        list: Messages about what was loaded and what does not fit.

    Raises:
        UserError: If the checkpoint cannot be opened or is of another kind, or if fewer than half of a network's
            tensors fit.
    """
    source = training.init_from
    if source is None:
        return []
    pipeline: Any = load_checkpoint(source, **({"variant": "raw"} if training.init_raw else {}))
    if kind_of(pipeline) is not kind:
        raise UserError(
            f"init_from={source!r} contains a {kind_of(pipeline).word}, but the recipe trains a {kind.word}: pass a "
            f"checkpoint of a {kind.word}"
        )
    said = []
    for name, player in players.items():
        component = kind.network if name == MODEL else name
        network = getattr(pipeline, component, None)
        if network is None:
            said.append(f"init_from: {source} has no {component}, which is initialised at random")
            continue
        said.append(f"init_from: {_taken(player, network.state_dict(), source, component)}")
    theirs = getattr(pipeline, "scheduler", None)
    if scheduler is not None and theirs is not None:
        other = [key for key in OF_THE_PROCESS if theirs.config.get(key) != scheduler.config.get(key)]
        said += [
            f"init_from: {source} was trained with {key}={theirs.config.get(key)!r}, but this run uses "
            f"{scheduler.config.get(key)!r}"
            for key in other
        ]
    return said


def _taken(player: Player, weights: Mapping[str, Tensor], source: str, component: str) -> str:
    """Load the weights that fit into a player and its average, and return a message about them."""
    own = player.model.state_dict()
    fitting = {name: weights[name] for name in own if name in weights and weights[name].shape == own[name].shape}
    if 2 * len(fitting) < len(own):
        raise UserError(
            f"init_from={source!r} fits only {len(fitting):,} of {len(own):,} tensors of the recipe's {component}: use "
            "the recipe that it was trained with"
        )
    player.model.load_state_dict(own | fitting)
    if player.ema is not None:
        player.ema.model.load_state_dict(player.model.state_dict())
    left = sorted((own.keys() | weights.keys()) - fitting.keys())
    taken = f"loaded {len(fitting):,} of {len(own):,} tensors of the {component} from {source}"
    if not left:
        return taken
    named = ", ".join(left[:NAMED]) + (f" and {len(left) - NAMED:,} more" if len(left) > NAMED else "")
    return f"{taken}; these do not fit and were not loaded: {named}"
