"""Fair clocks: what is compared takes turns in one process, so that a busy machine slows both sides."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch


class Rounds:
    """Seconds of one call of each contestant in each round.

    Args:
        contestants: functions without arguments, by name.
        rounds: how often every contestant has its turn.
        calls: calls of a turn.
        warm_up: one more turn in the beginning that is not counted.
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
        """Median seconds of a call."""
        return statistics.median(self.seconds[name])

    def speedup(self, name: str, over: str) -> float:
        """How many times faster `name` is than `over`: the median of the rounds' ratios."""
        return statistics.median(b / a for a, b in zip(self.seconds[name], self.seconds[over], strict=True))


def seconds_per_call(call: Callable[[], object], calls: int = 1) -> float:
    """Mean wall clock of `calls` calls, the work they left to a GPU included."""
    started = time.perf_counter()
    for _ in range(calls):
        call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / calls
