"""What presets of networks are, and how a network is built of one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

from hf_ddpm.errors import UserError, as_user_error, did_you_mean
from hf_ddpm.schedulers.annotations import parameters_of

N = TypeVar("N")


@dataclass(frozen=True)
class NetworkPreset:
    """One network.

    Attributes:
        config: keywords of its class. Read-only: the functions that build it take overrides.
        parameters: number of weights with no override; a test counts them.
        about: the model, its data and its paper in one line.
    """

    config: Mapping[str, Any]
    parameters: int
    about: str


def preset(parameters: int, about: str, **config: Any) -> NetworkPreset:
    """A preset of these keywords, read-only."""
    return NetworkPreset(MappingProxyType(config), parameters, about)


def build_preset(
    network: Callable[..., N], word: str, presets: Mapping[str, NetworkPreset], name: str, overrides: Mapping[str, Any]
) -> N:
    """A network of a preset.

    Args:
        network: its class.
        word: what a user calls it, such as "classifier".
        presets: by their names.
        name: of one of them.
        overrides: keywords of the class that replace the preset's; lists, as YAML has them, become tuples.

    Raises:
        UserError: unknown name or keyword, or what the class refuses.
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
