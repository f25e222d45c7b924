"""A progress bar on the main process, which also measures the time."""

import sys
import time
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from accelerate import Accelerator


class ProgressBar:
    """A progress bar on the main process; every process has its `seconds` when the block ends.

    Args:
        name: The name in front of the bar.
        total: The number of units of this process.
        accelerator: The accelerator of the processes.
    """

    def __init__(self, name: str, total: int, accelerator: "Accelerator") -> None:
        every = 1 if sys.stderr.isatty() else 10  # seconds: in a file, each update is a new line
        hidden = not accelerator.is_main_process
        self._bar = tqdm(total=total, desc=name, mininterval=every, disable=hidden, leave=False)
        self.seconds = 0.0

    def update(self, units: int) -> None:
        """Add finished units to the bar."""
        self._bar.update(units)

    def __enter__(self) -> "ProgressBar":
        self._start = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.perf_counter() - self._start
        self._bar.close()
