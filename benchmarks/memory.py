"""The memory of this process, read from /proc."""

import threading
import time
from pathlib import Path
from typing import Any, Self


def kib(name: str) -> int:
    """Return a line of /proc/self/status in KiB: VmHWM is the peak of the resident memory, RssAnon excludes files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


class Growth:
    """Measures in `mib` by how much the memory of the process grows in a block, without the pages of mapped files."""

    def __enter__(self) -> Self:
        self._before = self._most = kib("RssAnon")
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        self._watcher.join()

    @property
    def mib(self) -> float:
        """The largest growth so far."""
        return (self._most - self._before) / 1024

    def _watch(self) -> None:
        while not self._ended.is_set():
            self._most = max(self._most, kib("RssAnon"))
            time.sleep(0.002)
