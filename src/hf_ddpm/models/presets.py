"""Presets of networks, and how to build a network from a preset."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

from hf_ddpm.errors import UserError, as_user_error, did_you_mean
from hf_ddpm.schedulers.annotations import parameters_of

N = TypeVar("N")


@dataclass(frozen=True)
class NetworkPreset:
    """The preset of a network.

    Attributes:
        config: The keywords of its class. Read-only: the functions that build a network take overrides.
        parameters: The number of weights without overrides; a test counts them.
        about: The model, its data and its paper in one line.
    """

    config: Mapping[str, Any]
    parameters: int
    about: str


def preset(parameters: int, about: str, **config: Any) -> NetworkPreset:
    """Create a read-only preset from these keywords."""
    return NetworkPreset(MappingProxyType(config), parameters, about)


def build_preset(
    network: Callable[..., N], word: str, presets: Mapping[str, NetworkPreset], name: str, overrides: Mapping[str, Any]
) -> N:
    """Build a network from a preset.

    Args:
        network: The class of the network.
        word: What error messages call the network, such as "classifier".
        presets: The presets by their names.
        name: The name of one of them.
        overrides: Keywords of the class that replace those of the preset; lists, as in YAML, become tuples.

    Raises:
        UserError: If the name or a keyword is unknown, or the class raises a `ValueError`.
    """
    if name not in presets:
        raise UserError(
            f"there is no {word} preset {name!r}; use one of {', '.join(presets)}{did_you_mean(name, presets)}"
        )
    known = parameters_of(network)
    for key in overrides:
        if key not in known:
            raise UserError(
                f"{network.__name__} has no keyword {key!r}; it has {', '.join(known)}{did_you_mean(key, known)}"
            )
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in overrides.items()}
    with as_user_error():
        return network(**{**presets[name].config, **given})
