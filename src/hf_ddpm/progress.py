"""A progress bar of the main process, with the time that passed under it."""

import sys
import time
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from accelerate import Accelerator


class ProgressBar:
    """A bar on the main process; every process has its `seconds` when the block ends.

    Args:
        name: What it says first.
        total: How many units this process has before it.
        accelerator: Of the processes.
    """

    def __init__(self, name: str, total: int, accelerator: "Accelerator") -> None:
        every = 1 if sys.stderr.isatty() else 10  # seconds: in a file each is a line that stays
        hidden = not accelerator.is_main_process
        self._bar = tqdm(total=total, desc=name, mininterval=every, disable=hidden, leave=False)
        self.seconds = 0.0

    def update(self, units: int) -> None:
        """So many units more are done."""
        self._bar.update(units)

    def __enter__(self) -> "ProgressBar":
        self._start = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.perf_counter() - self._start
        self._bar.close()
