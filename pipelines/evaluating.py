"""How a pipeline runs its networks: without gradients, without dropout."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch

Method = TypeVar("Method", bound=Callable[..., Any])


@contextmanager
def evaluating(*networks: torch.nn.Module) -> Iterator[None]:
    """No dropout in the block; afterwards every part of the networks is in the mode it was in."""
    trained = [part for network in networks for part in network.modules() if part.training]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for part in trained:
            part.training = True


def without_training(method: Method) -> Method:
    """A pipeline's method without gradients, and without dropout in any of its components."""

    @functools.wraps(method)
    def run(self: Any, *arguments: Any, **keywords: Any) -> Any:
        networks = [part for part in self.components.values() if isinstance(part, torch.nn.Module)]
        with torch.no_grad(), evaluating(*networks):
            return method(self, *arguments, **keywords)

    return cast(Method, run)
