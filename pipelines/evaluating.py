"""Evaluation of a pipeline's networks, without gradients and without dropout."""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch

Method = TypeVar("Method", bound=Callable[..., Any])


_LOCK = threading.Lock()
_USED: dict[int, list[Any]] = {}  # by the id of a network: how many blocks evaluate it, and its parts in train mode


@contextmanager
def evaluating(*networks: torch.nn.Module) -> Iterator[None]:
    """Disable dropout in the block; afterwards every part of the networks is in its previous mode again.

    Threads may be in such blocks at the same time: the last one that leaves restores the modes.
    """
    with _LOCK:
        for network in networks:
            used = _USED.setdefault(id(network), [0, [part for part in network.modules() if part.training]])
            used[0] += 1
            network.eval()
    try:
        yield
    finally:
        with _LOCK:
            for network in networks:
                used = _USED[id(network)]
                used[0] -= 1
                if not used[0]:
                    del _USED[id(network)]
                    for part in used[1]:
                        part.training = True


def without_training(method: Method) -> Method:
    """Run a pipeline's method without gradients, and without dropout in any of its components.

    Raises:
        ValueError: If a component is a module without a config, such as `DataParallel`.
    """

    @functools.wraps(method)
    def run(self: Any, *arguments: Any, **keywords: Any) -> Any:
        networks = {name: part for name, part in self.components.items() if isinstance(part, torch.nn.Module)}
        for name, network in networks.items():
            if getattr(network, "config", None) is None:
                raise ValueError(
                    f"{name} of type {type(network).__name__} has no config: pass the network itself, not a wrapper"
                )
        with torch.no_grad(), evaluating(*networks.values()):
            return method(self, *arguments, **keywords)

    return cast(Method, run)
