"""Training, sweeps and evaluations with the commands that a user types; existing results are kept."""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.options import holds_splits
from benchmarks.report import Result, machine, write_json

UNSEEN = ("--samples", "0", "--evaluation.every", "null", "--cpu_threads", "1")  # nothing is measured during training


@dataclass(frozen=True)
class Place:
    """The folders of the digits and of trained models, the training seeds, and the number of measured images."""

    data: Path
    runs: Path
    seeds: tuple[int, ...]
    num_images: int


def measure_arms(
    module: str,
    about: str,
    argv: Sequence[str] | None,
    names: Sequence[str],
    measure: Callable[[Place, str, int], Result],
    num_images: int = 1000,
) -> Result:
    """Run a benchmark of several trainings: measure what is missing, and write the figures of all seeds.

    Args:
        module: The name of the benchmark's module, which is also that of its results.
        about: Its docstring.
        argv: Its command line; None uses that of the process.
        names: The names of the arms.
        measure: A function that trains and measures one arm with one seed.
        num_images: The default number of measured images.
    """
    place, chosen = parse_place(module, about, argv, names, num_images)
    folder = Path("benchmarks/results") / module
    measure_missing(folder, chosen, place.seeds, partial(measure, place))
    result = {"command": f"python -m benchmarks.{module} --data <folder>", "arms": by_seed(folder, names)}
    publish(folder.with_suffix(".json"), result)
    return result


def parse_place(
    module: str, about: str, argv: Sequence[str] | None, names: Sequence[str], num_images: int = 1000
) -> tuple[Place, list[str]]:
    """Parse the command line of a benchmark that trains; return its settings and the requested parts of `names`."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{module}", description=about)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.parquet and test.parquet of digits")
    parser.add_argument("--runs", type=Path, default=Path("runs") / module, help="folder of the trained models")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds (default: 0 1 2)")
    parser.add_argument(
        "--only", nargs="+", default=[*names], choices=[*names], metavar="PART", help=f"run only: {'; '.join(names)}"
    )
    parser.add_argument(
        "--num-images", type=int, default=num_images, help=f"number of measured images (default: {num_images:,})"
    )
    given = parser.parse_args(sys.argv[1:] if argv is None else argv)
    if not holds_splits(given.data):
        parser.error(f"--data {given.data} must be a folder with train.parquet and test.parquet")
    return Place(given.data, given.runs, tuple(given.seeds), given.num_images), given.only


def trained(name: str, seed: int, place: Place, *words: str) -> Path:
    """Return the checkpoint of a training with these options of `train.py`, started, continued or finished earlier."""
    run = place.runs / f"{word_of(name)}-seed{seed}"
    if not (run / "checkpoint").is_dir():
        more = ["--seed", str(seed), "--output_dir", str(run), "--tracker", "none"]
        if any(run.glob("states/step_*")):
            more += ["--resume", "latest"]
        elif run.exists():  # interrupted before its first state
            shutil.rmtree(run)
        command = ["training/train.py", "--data.source", str(place.data), *words, *more]
        subprocess.run([sys.executable, *command], check=True)
    return run / "checkpoint"


def evaluated(name: str, seed: int, place: Place, checkpoint: Path, *words: str) -> dict[str, Any]:
    """Return the record of `hf-ddpm evaluate` on the digits of `place`, with these options of the command."""
    out = place.runs / "evaluations" / f"{word_of(name)}-seed{seed}.json"
    how = ["--data", str(place.data), "--num-images", str(place.num_images)]
    return commanded("evaluate", checkpoint, out, *how, *words)


def figures_of(record: dict[str, Any], names: Sequence[str]) -> dict[str, float]:
    """Return the figures of an evaluation record with these names, if they exist."""
    return {number["name"]: number["value"] for number in record["numbers"] if number["name"] in names}


def measure_missing(
    folder: Path, names: Sequence[str], seeds: Sequence[int], measure: Callable[[str, int], Result]
) -> None:
    """Write `measure(name, seed)` to a folder for every name and seed without a file there."""
    for seed in seeds:
        for name in names:
            file = folder / f"{word_of(name)}-seed{seed}.json"
            if not file.is_file():
                write_json(file, measure(name, seed))


def on_disk(folder: Path, names: Sequence[str]) -> Iterator[tuple[str, Result]]:
    """Yield the results that `measure_missing` has written, by name, with the seeds in order."""
    for name in names:
        for file in sorted(folder.glob(f"{word_of(name)}-seed*.json")):
            yield name, json.loads(file.read_text())


def by_seed(folder: Path, names: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Return the numbers of all seeds that `measure_missing` has written, by name and figure."""
    rows: dict[str, dict[str, list[float]]] = {}
    for name, found in on_disk(folder, names):
        for figure, value in {**found, **found.get("logged", {})}.items():
            if isinstance(value, int | float):
                rows.setdefault(name, {}).setdefault(figure, []).append(value)
    return rows


def word_of(name: str) -> str:
    """Convert a name to a file name."""
    return "-".join("".join(letter if letter.isalnum() else " " for letter in name).split())


def publish(file: Path, result: Result) -> None:
    """Write the results; `python -m benchmarks.run --kept --only startup` renders the page from them."""
    write_json(file, {"machine": machine(), "quick": False, **result})


def commanded(command: str, checkpoint: Path, out: Path, *words: str) -> dict[str, Any]:
    """Run `hf-ddpm evaluate` or `hf-ddpm sweep` and return its record."""
    subprocess.run(
        [sys.executable, "-m", "hf_ddpm.cli", command, str(checkpoint), "--out", str(out), *words], check=True
    )
    found: dict[str, Any] = json.loads((out / "sweep.json" if command == "sweep" else out).read_text())
    return found
