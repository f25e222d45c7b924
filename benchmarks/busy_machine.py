"""The time of a training step while other programs are busy on the machine, with different numbers of threads."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.options import Options
from benchmarks.report import Result, table

TITLE = "Training on a busy machine"
ABOUT = """Seconds of a training step of the `mnist` network, as the median over 12 seconds of training, each setting in
a fresh process, while other processes add numbers in a loop. `passive` is the environment variable
OMP_WAIT_POLICY=passive, with which threads that wait for each other release their core."""
ROOT = Path(__file__).resolve().parent.parent
OTHERS = (0, 1, 3, 8)  # other busy processes
SETTINGS = {
    "2 threads": {"threads": "2"},
    "2 threads, passive": {"threads": "2", "OMP_WAIT_POLICY": "passive"},
    "1 thread": {"threads": "1"},
}


def measure(options: Options) -> Result:
    seconds, others = (0.5, (0, 1)) if options.quick else (12.0, OTHERS)
    settings = dict(list(SETTINGS.items())[:2]) if options.quick else SETTINGS
    found: dict[str, dict[str, float]] = {}
    for count in others:
        with busy(count):
            found[str(count)] = {name: _step(setting, seconds) for name, setting in settings.items()}
    return {"seconds": found}


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep `count` other processes busy, one thread each."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: sum(range(10**6))"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def _step(setting: dict[str, str], seconds: float) -> float:
    """Measure the median seconds of a step in a fresh process."""
    environment = {**os.environ, **setting}
    environment.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, "-m", "benchmarks.busy_machine", setting["threads"], str(seconds)]
    out = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    return float(out.splitlines()[-1])


def render(result: Result) -> str:
    rows = [[others, *times.values()] for others, times in result["seconds"].items()]
    settings = next(iter(result["seconds"].values()))
    return table(["other busy processes", *settings], rows)


def main() -> None:
    """Train for some seconds and print the median seconds of a step."""
    import torch

    from benchmarks.ours import recipe_with, start

    threads, seconds = int(sys.argv[1]), float(sys.argv[2])
    recipe = recipe_with("mnist", {"training": {"cpu_threads": threads}})
    with tempfile.TemporaryDirectory() as folder:
        _, step = start(recipe, Path(folder) / "run", total_steps=100_000)
        assert torch.get_num_threads() == threads
        step()
        taken: list[float] = []
        while len(taken) < 3 or sum(taken) < seconds:
            started = time.perf_counter()
            step()
            taken.append(time.perf_counter() - started)
    print(statistics.median(taken))


if __name__ == "__main__":
    main()
