"""What every benchmark is told, from one command line."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """Settings of a run of benchmarks.

    Args:
        data: folder with train.parquet and test.parquet of 28x28 digits; None is the embedded digits.
        out: where README.md and results/ are written.
        seconds: wall clock of each training in time_to_quality.
        seeds: trainings of each arm in time_to_quality.
        quick: tiny budgets, to see that everything runs; the figures mean nothing.
        command: the command line as the results tell it, without paths of this machine.
    """

    data: Path | None = None
    out: Path = Path("benchmarks")
    seconds: float = 300.0
    seeds: tuple[int, ...] = (0, 1, 2)
    quick: bool = False
    command: str = "python -m benchmarks.run"


def parse(argv: Sequence[str], names: Sequence[str]) -> tuple[Options, list[str]]:
    """The options of a command line, and which of the benchmarks `names` to run."""
    default = Options()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=names, default=list(names), help="run these benchmarks")
    parser.add_argument("--data", type=Path, help="folder with train.parquet and test.parquet of digits")
    parser.add_argument("--out", type=Path, default=default.out, help="folder of README.md and results/")
    parser.add_argument("--seconds", type=float, default=default.seconds, help="training time in time_to_quality")
    parser.add_argument("--seeds", type=int, nargs="+", default=default.seeds, help="seeds in time_to_quality")
    parser.add_argument("--quick", action="store_true", help="tiny budgets: does everything run?")
    given = parser.parse_args(argv)
    if given.data is not None and not all((given.data / f"{split}.parquet").is_file() for split in ("train", "test")):
        parser.error(f"--data {given.data} must be a folder with train.parquet and test.parquet")
    hidden = {str(given.data): "<folder>", str(given.out): "<out>"}
    command = " ".join(["python -m benchmarks.run", *(hidden.get(word, word) for word in argv)])
    options = Options(given.data, given.out, given.seconds, tuple(given.seeds), given.quick, command)
    return options, given.only
