"""How a pipeline runs its networks: without gradients, without dropout."""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch

Method = TypeVar("Method", bound=Callable[..., Any])


_LOCK = threading.Lock()
_USED: dict[int, list[Any]] = {}  # by the id of a network: how many blocks evaluate it, and its parts that were trained


@contextmanager
def evaluating(*networks: torch.nn.Module) -> Iterator[None]:
    """No dropout in the block; afterwards every part of the networks is in the mode it was in.

    Threads may be in such blocks at the same time: the last one that leaves puts the modes back.
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
    """A pipeline's method without gradients, and without dropout in any of its components."""

    @functools.wraps(method)
    def run(self: Any, *arguments: Any, **keywords: Any) -> Any:
        networks = [part for part in self.components.values() if isinstance(part, torch.nn.Module)]
        with torch.no_grad(), evaluating(*networks):
            return method(self, *arguments, **keywords)

    return cast(Method, run)
