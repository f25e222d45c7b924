"""Measure the speed and quality of training and sampling on a machine with one GPU, within ten minutes.

    make bench-gpu DATA=<folder with train.parquet and test.parquet of CIFAR-10>
    make bench-gpu ARGS=--rehearse

Each part runs in its own process, which is killed at its time limit, and writes every figure as soon as it is measured.
A rehearsal runs the same code in two minutes on the CPU with a tiny network, only to check that everything works.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_job import RECIPE, STARTED, SUBJECTS, note
from benchmarks.gpu_page import FOLDER, REHEARSAL, page_of
from benchmarks.options import Options, holds_splits
from benchmarks.report import Result, machine, write_json
from benchmarks.run import write_page
from hf_ddpm.errors import quoted

ROOT = Path(__file__).resolve().parent.parent
WITHOUT_GPU = {"CUDA_VISIBLE_DEVICES": ""}
CALM = {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
TO_DIE = 5.0  # seconds to wait for the end of a killed process


@dataclass(frozen=True)
class Budget:
    """Limits in seconds of wall-clock time.

    Args:
        total: The limit of everything, from the start of the first process.
        training, sampling: The limits of these parts; `quality` has the remaining time.
        notice: The time before its limit at which a part should end by itself.
        closing: The time that is reserved for writing the page.
    """

    total: float
    training: float
    sampling: float
    notice: float
    closing: float

    def limit(self, part: str, spent: float) -> float:
        """Return the time limit of `part` in seconds, if it starts after `spent` seconds."""
        left = max(0.0, self.total - self.closing - spent)
        own = {"training": self.training, "sampling": self.sampling}
        return min(left, own.get(part, left))


FULL_BUDGET = Budget(total=585, training=190, sampling=90, notice=15, closing=15)
REHEARSAL_BUDGET = Budget(total=110, training=35, sampling=25, notice=8, closing=5)


@dataclass(frozen=True)
class Order:
    """The settings of a run of the benchmark.

    Args:
        data: The folder with train.parquet and test.parquet of CIFAR-10; None uses the embedded digits (rehearsal).
        out: The folder for README.md and results/.
        seed: The seed of weights, order, noise and samples.
        rehearsal: Whether to run a tiny network on the CPU.
        recipe: The recipe, a key of `SUBJECTS`.
    """

    data: Path | None
    out: Path
    seed: int
    rehearsal: bool
    recipe: str = RECIPE

    @property
    def command(self) -> str:
        """The command line for the results, without paths of this machine."""
        data = ["--data <folder>"] if self.data else []
        data += [] if self.recipe == RECIPE else [f"--recipe {self.recipe}"]
        return " ".join(["python -m benchmarks.gpu", *data, f"--seed {self.seed}", *["--rehearse"] * self.rehearsal])

    @property
    def budget(self) -> Budget:
        """The time limits."""
        return REHEARSAL_BUDGET if self.rehearsal else FULL_BUDGET


def main(argv: Sequence[str] | None = None) -> None:
    order = parse(sys.argv[1:] if argv is None else argv, torch.cuda.is_available())
    if order.rehearsal:
        print("This is a rehearsal on the CPU with a tiny network. Its figures are not those of a GPU.", flush=True)
    result = begin(order)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:
        for part in SUBJECTS[order.recipe].parts:
            run_part(part, order, result, Path(work))
    write_page(Options(out=order.out))
    print(f"{page_of(result)}\n\nwrote {result}, after {spent():.0f} s", flush=True)


def parse(argv: Sequence[str], on_gpu: bool) -> Order:
    """Parse the command line; without a GPU, it is always a rehearsal."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with train.parquet and test.parquet of CIFAR-10")
    parser.add_argument("--recipe", choices=SUBJECTS, default=RECIPE, help=f"recipe to measure (default: {RECIPE})")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"), help="folder for README.md and results/")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order, noise and samples (default: 0)")
    parser.add_argument("--rehearse", action="store_true", help="run the same code on the CPU, with a tiny network")
    given = parser.parse_args(argv)
    data, rehearsal = given.data, given.rehearse or not on_gpu
    if data is None and not rehearsal:
        parser.error("training data is missing: set --data to a folder with train.parquet and test.parquet of CIFAR-10")
    if data is not None and not holds_splits(data):
        parser.error(f"--data {data} must be a folder with train.parquet and test.parquet of CIFAR-10")
    if given.seed < 0:
        parser.error(f"--seed {given.seed} must not be negative")
    return Order(None if data is None else data.resolve(), given.out.resolve(), given.seed, rehearsal, given.recipe)


def begin(order: Order) -> Path:
    """Write a result without figures, and return its file, which is named after the device."""
    where = machine()
    if order.rehearsal:
        where["gpu"] = None  # even if there is one
    about: Result = {"machine": where, "command": order.command, "quick": False, "rehearsal": order.rehearsal}
    about |= {"device": where["gpu"], "cuda": None if order.rehearsal else torch.version.cuda, "seed": order.seed}
    data = "the embedded digits" if order.data is None else "train.parquet and test.parquet of --data"
    about |= {"recipe": order.recipe, "data": data, "seconds": order.budget.total}
    result = order.out / "results" / FOLDER / f"{file_name(where['gpu'], order.recipe)}.json"
    write_json(result, about | {"parts": {}})
    return result


def file_name(device: str | None, recipe: str = RECIPE) -> str:
    """Return a file name for a device and a recipe; the device is None for a rehearsal."""
    name = REHEARSAL if device is None else re.sub(r"[^A-Za-z0-9.]+", "-", device).strip("-")
    return name if recipe == RECIPE else f"{name}-{recipe}"


def run_part(part: str, order: Order, result: Path, work: Path) -> None:
    """Run a part in its own process, and always write how it ended."""
    began, limit = spent(), order.budget.limit(part, spent())
    words = ["--result", str(result), "--work", str(work), "--seconds", f"{max(0.0, limit - order.budget.notice):.1f}"]
    words += ["--seed", str(order.seed), *(["--data", str(order.data)] if order.data else [])]
    words += ["--recipe", order.recipe, *(["--rehearse"] if order.rehearsal else [])]
    print(f"--- {part}, at most {limit:.0f} s", flush=True)
    complaints = work / f"{part}.txt"
    code = run_until([sys.executable, "-m", "benchmarks.gpu_part", part, *words], limit, complaints, order.rehearsal)
    ended: dict[str, Any] = {"ended": "in time" if code == 0 else "at its limit" if code is None else "with an error"}
    if code:
        print(complaints.read_text()[-4000:], file=sys.stderr, flush=True)
        ended["error"] = last_line(complaints, order, work)
    note(result, part, ended | {"limit_seconds": round(limit, 1), "took_seconds": round(spent() - began, 1)})


def run_until(command: Sequence[str], seconds: float, complaints: Path, without_gpu: bool) -> int | None:
    """Run a command with its stderr in a file; return its exit code, or None if it was killed after `seconds`."""
    environment = os.environ | CALM | (WITHOUT_GPU if without_gpu else {})
    with complaints.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=file, start_new_session=True)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its child processes, if any of them is still running."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(TO_DIE)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        pass  # it has ended, or it hangs in a driver and cannot be killed


def last_line(complaints: Path, order: Order, work: Path) -> str:
    """Return the last line of the error output of a process, without paths of this machine."""
    lines = complaints.read_text().strip().splitlines() or ["it printed nothing"]
    places = {str(work): "<work>", str(ROOT): "<checkout>", str(Path.home()): "<home>"}
    if order.data is not None:
        places = {str(order.data): "<data>", **places}
    for place, word in places.items():
        lines[-1] = lines[-1].replace(place, word)
    return quoted(lines[-1])


def spent() -> float:
    """Return the seconds since this process was started."""
    return time.time() - STARTED


if __name__ == "__main__":
    main()
