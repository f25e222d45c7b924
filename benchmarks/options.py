"""The settings of all benchmarks, from one command line."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

QUICK_OUT = Path("runs/quick-benchmarks")


@dataclass(frozen=True)
class Options:
    """The settings of a run of benchmarks.

    Args:
        data: The folder with train.parquet and test.parquet of 28x28 digits; None uses the embedded digits.
        out: The folder for README.md and results/.
        seconds: The wall-clock time of each training in time_to_quality.
        seeds: The seeds of the trainings of each arm in time_to_quality.
        checkpoint: The checkpoint for benchmarks of a trained model.
        quick: Whether to use tiny budgets, to check that everything runs; the figures have no meaning.
        kept: Whether to only render the tables of trained cells on disk, without new measurements.
        command: The command line for the results, without paths of this machine.
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
    """Return whether a folder contains train.parquet and test.parquet."""
    return all((folder / f"{split}.parquet").is_file() for split in ("train", "test"))


def parse(argv: Sequence[str], names: Sequence[str]) -> tuple[Options, list[str]]:
    """Parse the options of a command line, and which of the benchmarks `names` to run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=names, help="run only these benchmarks")
    parser.add_argument("--data", type=Path, help="folder with train.parquet and test.parquet of digits")
    parser.add_argument("--out", type=Path, help="folder for README.md and results/")
    parser.add_argument("--seconds", type=float, help="training time in time_to_quality")
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds in time_to_quality")
    parser.add_argument("--checkpoint", type=Path, help="checkpoint folder of the mnist recipe, for hub_transfer")
    parser.add_argument("--quick", action="store_true", help=f"check with tiny budgets that all run, into {QUICK_OUT}")
    parser.add_argument("--kept", action="store_true", help="only render the tables of the trained cells on disk")
    given = {k: v for k, v in vars(parser.parse_args(argv)).items() if v is not None and v is not False}
    data = given.get("data")
    if data is not None and not holds_splits(data):
        parser.error(f"--data {data} must be a folder with train.parquet and test.parquet")
    if given.get("seconds", 1.0) <= 0:
        parser.error(f"--seconds {given['seconds']} must be positive")
    only = given.get("only", list(names))
    checkpoint = given.get("checkpoint", Options.checkpoint)
    if "hub_transfer" in only and not given.get("quick") and not (checkpoint / "model_index.json").is_file():
        parser.error(f"--checkpoint {checkpoint} is not a checkpoint: `make train` writes one to {Options.checkpoint}")
    command = " ".join(["python -m benchmarks.run", *(_shown(name, value) for name, value in given.items())])
    given.pop("only", None)
    quick = {"seconds": 1.0, "out": QUICK_OUT} if given.get("quick") else {}
    return Options(**{**quick, **given, "seeds": tuple(given.get("seeds", Options.seeds)), "command": command}), only


def _shown(name: str, value: Any) -> str:
    """Return an option for the results, without paths of this machine."""
    if isinstance(value, Path):
        return f"--{name} <{'folder' if name == 'data' else name}>"
    values = [] if value is True else value if isinstance(value, list) else [value]
    return " ".join([f"--{name}", *(f"{v:g}" if isinstance(v, float) else str(v) for v in values)])
