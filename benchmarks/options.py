"""What every benchmark is told, from one command line."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

QUICK_OUT = Path("runs/quick-benchmarks")


@dataclass(frozen=True)
class Options:
    """Settings of a run of benchmarks.

    Args:
        data: folder with train.parquet and test.parquet of 28x28 digits; None is the embedded digits.
        out: where README.md and results/ are written.
        seconds: wall clock of each training in time_to_quality.
        seeds: trainings of each arm in time_to_quality.
        checkpoint: of the benchmarks that look at a trained model.
        quick: tiny budgets, to see that everything runs; the figures mean nothing.
        kept: measure nothing, make the tables of trained cells that are on disk.
        command: the command line as the results tell it, without paths of this machine.
    """

    data: Path | None = None
    out: Path = Path("benchmarks")
    seconds: float = 300.0
    seeds: tuple[int, ...] = (0, 1, 2)
    checkpoint: Path = Path("runs/mnist/checkpoint")
    quick: bool = False
    kept: bool = False
    command: str = "python -m benchmarks.run"


def holds_splits(folder: Path) -> bool:
    """Whether a folder has train.parquet and test.parquet."""
    return all((folder / f"{split}.parquet").is_file() for split in ("train", "test"))


def parse(argv: Sequence[str], names: Sequence[str]) -> tuple[Options, list[str]]:
    """The options of a command line, and which of the benchmarks `names` to run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=names, help="run these benchmarks")
    parser.add_argument("--data", type=Path, help="folder with train.parquet and test.parquet of digits")
    parser.add_argument("--out", type=Path, help="folder of README.md and results/")
    parser.add_argument("--seconds", type=float, help="training time in time_to_quality")
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds in time_to_quality")
    parser.add_argument("--checkpoint", type=Path, help="checkpoint folder of the mnist recipe, for hub_transfer")
    parser.add_argument("--quick", action="store_true", help=f"tiny budgets, into {QUICK_OUT}: does everything run?")
    parser.add_argument("--kept", action="store_true", help="tables of the trained cells on disk, nothing new")
    given = {k: v for k, v in vars(parser.parse_args(argv)).items() if v is not None and v is not False}
    data = given.get("data")
    if data is not None and not holds_splits(data):
        parser.error(f"--data {data} must be a folder with train.parquet and test.parquet")
    if given.get("seconds", 1.0) <= 0:
        parser.error(f"--seconds {given['seconds']} must be positive")
    only = given.get("only", list(names))
    checkpoint = given.get("checkpoint", Options.checkpoint)
    if "hub_transfer" in only and not given.get("quick") and not (checkpoint / "model_index.json").is_file():
        parser.error(f"--checkpoint {checkpoint} is no checkpoint: `make train` leaves one in {Options.checkpoint}")
    command = " ".join(["python -m benchmarks.run", *(_shown(name, value) for name, value in given.items())])
    given.pop("only", None)
    quick = {"seconds": 1.0, "out": QUICK_OUT} if given.get("quick") else {}
    return Options(**{**quick, **given, "seeds": tuple(given.get("seeds", Options.seeds)), "command": command}), only


def _shown(name: str, value: Any) -> str:
    """An option as the results tell it, without paths of this machine."""
    if isinstance(value, Path):
        return f"--{name} <{'folder' if name == 'data' else name}>"
    values = [] if value is True else value if isinstance(value, list) else [value]
    return " ".join([f"--{name}", *(f"{v:g}" if isinstance(v, float) else str(v) for v in values)])
