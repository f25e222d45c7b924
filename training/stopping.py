"""Requests to stop: signals, a limit of hours, or the end of the launcher. The run finishes its step, saves and ends.

SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 have the same effect. Schedulers and launchers send a signal twice, so signals
within two seconds are the same request; a later signal ends the process immediately. This module is imported first,
before anything that takes long to import.
"""

import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")  # those that the system does not have are ignored
SAME_REQUEST = 2.0  # seconds in which further signals are the same request
STOPPED = 75  # the exit code of a run that can be resumed, EX_TEMPFAIL of sysexits.h
LAUNCHED = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")  # environment variables of launchers


class RunStopped(Exception):
    """Raised if a run was stopped on request; it can be resumed.

    Attributes:
        reason: The reason, such as the name of a signal.
        step: The number of completed optimizer steps.
        state: The folder to resume from; None if nothing was saved.
    """

    def __init__(self, reason: str, step: int, state: Path | None) -> None:
        self.reason, self.step, self.state = reason, step, state
        saved = f"{state.name} is saved" if state else "no state is saved"
        super().__init__(
            f"stopped at step {step} ({reason}): {saved}; run the same command with --resume auto to continue"
        )


class StopRequests:
    """The requests to stop this process: a context manager that handles signals, and restores their handlers.

    If it is entered again, it continues unchanged until the first block ends.
    """

    def __init__(self) -> None:
        self.max_hours: float | None = None
        self._reason: str | None = None
        self._first = 0.0
        self._began = time.monotonic()
        self._parent = os.getppid() if any(name in os.environ for name in LAUNCHED) else None
        self._before: dict[int, Any] = {}
        self._entered = 0

    def __enter__(self) -> "StopRequests":
        self._entered += 1
        if self._entered > 1:
            return self
        self.max_hours, self._reason, self._began = None, None, time.monotonic()
        for name in SIGNALS:
            if (number := getattr(signal, name, None)) is not None:
                try:
                    self._before[number] = signal.signal(number, self._take)
                except ValueError:  # only the main thread of a process can handle signals
                    break
        return self

    def __exit__(self, *_: object) -> None:
        self._entered -= 1
        if not self._entered:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    @property
    def reason(self) -> str | None:
        """Why this process should stop; None if it should not."""
        if self._reason is None and self._parent is not None and os.getppid() != self._parent:
            self._reason = "its launcher has ended"
        if self._reason is None and self.max_hours is not None and self.hours >= self.max_hours:
            self._reason = f"max_hours={self.max_hours:g}"
        return self._reason

    @property
    def hours(self) -> float:
        """The hours since the context manager was entered."""
        return (time.monotonic() - self._began) / 3600

    def _take(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._reason is None:
            self._reason, self._first = signal.Signals(number).name, now
        elif now - self._first > SAME_REQUEST:
            os._exit(128 + number)


class Agreement:
    """Tells all processes of a run about the requests of each of them; every process must ask at every step.

    Args:
        requests: The requests of this process.
        num_processes: The number of processes of the run, which must be connected by now.
    """

    def __init__(self, requests: StopRequests, num_processes: int) -> None:
        self._requests, self._num_processes = requests, num_processes
        self._group: Any = None
        if num_processes > 1:
            from torch import distributed

            self._group = distributed.new_group(backend="gloo")  # so that it does not wait for a GPU

    def reason(self) -> str | None:
        """Return why the run should stop after this step, the same in every process; None if it should not."""
        mine = self._requests.reason
        if self._group is None:
            return mine
        import torch
        from torch import distributed

        anyone = torch.tensor([int(mine is not None)])
        distributed.all_reduce(anyone, op=distributed.ReduceOp.MAX, group=self._group)
        if not anyone.item():
            return None
        reasons: list[str | None] = [None] * self._num_processes
        distributed.all_gather_object(reasons, mine, group=self._group)
        return next(reason for reason in reasons if reason is not None)
