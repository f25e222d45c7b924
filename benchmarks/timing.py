"""Fair timing: contestants take turns in one process, so that a busy machine slows all of them equally."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch


class Rounds:
    """The seconds of one call of each contestant in each round.

    Args:
        contestants: Functions without arguments, by name.
        rounds: The number of turns of every contestant.
        calls: The number of calls in one turn.
        warm_up: Whether to run one additional turn at the beginning, which is not counted.
    """

    def __init__(
        self, contestants: Mapping[str, Callable[[], object]], *, rounds: int, calls: int = 1, warm_up: bool = True
    ) -> None:
        self.seconds: dict[str, list[float]] = {name: [] for name in contestants}
        for turn in range(0 if warm_up else 1, rounds + 1):
            for name, call in contestants.items():
                seconds = seconds_per_call(call, calls)
                if turn > 0:
                    self.seconds[name].append(seconds)

    def median(self, name: str) -> float:
        """Return the median seconds of a call."""
        return statistics.median(self.seconds[name])

    def speedup(self, name: str, over: str) -> float:
        """Return how many times faster `name` is than `over`: the median of the ratios of the rounds."""
        return statistics.median(b / a for a, b in zip(self.seconds[name], self.seconds[over], strict=True))


def seconds_per_call(call: Callable[[], object], calls: int = 1) -> float:
    """Measure the mean wall-clock time of `calls` calls, including pending work of a GPU."""
    started = time.perf_counter()
    for _ in range(calls):
        call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / calls
