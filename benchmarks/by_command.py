"""Training, sweeps and evaluations by the commands that a user types; what is there already is kept."""

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

UNSEEN = ("--samples", "0", "--evaluation.every", "null", "--cpu_threads", "1")  # nothing is measured on the way


@dataclass(frozen=True)
class Place:
    """Where digits are, where trained models are kept, and of which training seeds."""

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
    """What a benchmark of several trainings does: measure what is missing, and write the figures of all seeds.

    Args:
        module: its name, which is that of its results.
        about: its docstring.
        argv: its command line; None is the process's.
        names: of the arms.
        measure: trains and measures one of them with one seed.
        num_images: that are measured, unless the command line says otherwise.
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
    """The command line of a benchmark that trains, and which of its parts `names` are asked for."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{module}", description=about)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.parquet and test.parquet of digits")
    parser.add_argument("--runs", type=Path, default=Path("runs") / module, help="folder of the trained models")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of training (default: 0 1 2)")
    parser.add_argument(
        "--only", nargs="+", default=[*names], choices=[*names], metavar="PART", help=f"of: {'; '.join(names)}"
    )
    parser.add_argument(
        "--num-images", type=int, default=num_images, help=f"that are measured (default: {num_images:,})"
    )
    given = parser.parse_args(sys.argv[1:] if argv is None else argv)
    if not holds_splits(given.data):
        parser.error(f"--data {given.data} must be a folder with train.parquet and test.parquet")
    return Place(given.data, given.runs, tuple(given.seeds), given.num_images), given.only


def trained(name: str, seed: int, place: Place, *words: str) -> Path:
    """The checkpoint of a training with these words of `train.py`, begun, gone on with or finished earlier."""
    run = place.runs / f"{word_of(name)}-seed{seed}"
    if not (run / "checkpoint").is_dir():
        more = ["--seed", str(seed), "--output_dir", str(run), "--tracker", "none"]
        if any(run.glob("states/step_*")):
            more += ["--resume", "latest"]
        elif run.exists():  # stopped before its first state
            shutil.rmtree(run)
        command = ["training/train.py", "--data.source", str(place.data), *words, *more]
        subprocess.run([sys.executable, *command], check=True)
    return run / "checkpoint"


def evaluated(name: str, seed: int, place: Place, checkpoint: Path, *words: str) -> dict[str, Any]:
    """The record of `hf-ddpm evaluate` on the place's digits, with these words of the command."""
    out = place.runs / "evaluations" / f"{word_of(name)}-seed{seed}.json"
    how = ["--data", str(place.data), "--num-images", str(place.num_images)]
    return commanded("evaluate", checkpoint, out, *how, *words)


def figures_of(record: dict[str, Any], names: Sequence[str]) -> dict[str, float]:
    """Of an evaluation's record the figures of these names that are there."""
    return {number["name"]: number["value"] for number in record["numbers"] if number["name"] in names}


def measure_missing(
    folder: Path, names: Sequence[str], seeds: Sequence[int], measure: Callable[[str, int], Result]
) -> None:
    """Write `measure(name, seed)` into a folder for every name and seed that has no file there."""
    for seed in seeds:
        for name in names:
            file = folder / f"{word_of(name)}-seed{seed}.json"
            if not file.is_file():
                write_json(file, measure(name, seed))


def on_disk(folder: Path, names: Sequence[str]) -> Iterator[tuple[str, Result]]:
    """What `measure_missing` has written, by name, the seeds in their order."""
    for name in names:
        for file in sorted(folder.glob(f"{word_of(name)}-seed*.json")):
            yield name, json.loads(file.read_text())


def by_seed(folder: Path, names: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """By name and figure, the numbers of all seeds that `measure_missing` has written."""
    rows: dict[str, dict[str, list[float]]] = {}
    for name, found in on_disk(folder, names):
        for figure, value in {**found, **found.get("logged", {})}.items():
            if isinstance(value, int | float):
                rows.setdefault(name, {}).setdefault(figure, []).append(value)
    return rows


def word_of(name: str) -> str:
    """A name as that of a file."""
    return "-".join("".join(letter if letter.isalnum() else " " for letter in name).split())


def publish(file: Path, result: Result) -> None:
    """Write what was measured; `python -m benchmarks.run --kept --only startup` makes the page of it."""
    write_json(file, {"machine": machine(), "quick": False, **result})


def commanded(command: str, checkpoint: Path, out: Path, *words: str) -> dict[str, Any]:
    """The record that `hf-ddpm evaluate` or `hf-ddpm sweep` writes."""
    subprocess.run(
        [sys.executable, "-m", "hf_ddpm.cli", command, str(checkpoint), "--out", str(out), *words], check=True
    )
    found: dict[str, Any] = json.loads((out / "sweep.json" if command == "sweep" else out).read_text())
    return found
