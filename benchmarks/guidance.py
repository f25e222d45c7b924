"""Guidance on digits: class accuracy and diversity against the scale, with a classifier and classifier-free.

    python -m benchmarks.guidance --data <folder with train.parquet and test.parquet of MNIST>

Trains four recipes with three seeds on two cores for about an hour and a half, and runs sweeps for about another hour.
Existing runs and results are kept.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.by_command import Place, commanded, parse_place, publish, trained
from benchmarks.report import Result, table, write_json

TITLE = "Guidance: fidelity against diversity"
ABOUT = """The recipes `mnist`, `mnist-conditional`, `mnist-conditional-cfg` and `mnist-classifier` were trained on the
60,000 training digits of MNIST, each for its own number of steps. Each row was measured with 1,000 samples, a tenth of
them of each class, by 50 trailing steps of Algorithm 2 with `fixed_small`, sampling seed 0, against the 10,000 test
digits. The digit network that evaluates the samples is never used for guidance. The values are medians of the training
seeds, with the smallest and the largest. The plots are those of `hf-ddpm sweep` for seed 0:
`results/guidance/<sweep>-seed0.png`."""
RECIPES = {
    "unconditional": ("--recipe", "mnist", "--samples", "0"),
    "conditional": ("--recipe", "mnist-conditional", "--samples", "0"),
    "classifier-free": ("--recipe", "mnist-conditional-cfg", "--samples", "0"),
    "classifier": (
        "--recipe",
        "mnist-classifier",
        "--held_back",
        "0",
        "--samples",
        "10000",
    ),  # measured on the test split
}
WALK = ("--eta", "none", "--steps", "50", "--spacing", "trailing", "--metrics", "fd,prdc,classes")
RESULTS = Path("benchmarks/results/guidance")
FIGURES = ("digit distance", "class accuracy", "precision", "recall")


@dataclass(frozen=True)
class Sweep:
    """One axis of guidance for one of the models.

    Args:
        model: The model, a key of RECIPES.
        axis: The axis as option=values, for `hf-ddpm sweep --over`.
        by_classifier: Whether the classifier with the same seed is used for guidance.
        more: Further options.
    """

    model: str
    axis: str
    by_classifier: bool
    more: tuple[str, ...] = ()


SWEEPS = {
    "ancestral": Sweep("unconditional", "classifier-scale=0,1,2,4,8", True),
    "at-the-mean": Sweep("unconditional", "classifier-scale=1,4", True, ("--classifier-gradient", "mean")),
    "conditional": Sweep("conditional", "classifier-scale=0,1", True),
    "conditional-between": Sweep("conditional", "classifier-scale=0.25,0.5", True),
    "classifier-free": Sweep("classifier-free", "guidance=1,1.25,1.5,2,4", False),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, run missing sweeps, and write the medians."""
    place, names = parse_place("guidance", str(__doc__), argv, list(SWEEPS))
    for seed in place.seeds:
        for name in names:
            sweep(name, seed, place)
        keep_accuracy(seed, place)
    result = {"command": "python -m benchmarks.guidance --data <folder>", **measured()}
    publish(RESULTS.with_suffix(".json"), result)
    print(render(result))


def sweep(name: str, seed: int, place: Place) -> None:
    """Run a sweep, and copy its record and its plot to the results."""
    kept = RESULTS / f"{name}-seed{seed}.json"
    if kept.is_file():
        return
    one, out = SWEEPS[name], place.runs / "sweeps" / f"{name}-seed{seed}"
    words = ["--over", one.axis, "--data", str(place.data), "--num-images", str(place.num_images), *WALK, *one.more]
    if one.by_classifier:
        words += ["--classifier", str(trained("classifier", seed, place, *RECIPES["classifier"]))]
    found = commanded("sweep", trained(one.model, seed, place, *RECIPES[one.model]), out, *words)
    write_json(kept, shortened(found))
    kept.with_suffix(".png").write_bytes((out / "sweep.png").read_bytes())


def keep_accuracy(seed: int, place: Place) -> None:
    """Copy the figures of a classifier that training measured on the test split to the results."""
    found = place.runs / f"classifier-seed{seed}" / "checkpoint" / "evaluation.json"
    if found.is_file():
        record = json.loads(found.read_text())
        num_images = record["conditions"]["num_images"]
        write_json(
            RESULTS / f"classifier-seed{seed}.json",
            {"numbers": record["numbers"], "num_images": num_images, "date": record["date"]},
        )


def shortened(found: dict[str, Any]) -> Result:
    """Return a sweep without entries that are the same in every cell, and without paths of this machine."""
    cells = [
        {"cell": cell["cell"], "numbers": cell["numbers"], "seconds": cell["seconds"], "calls": cell["network_calls"]}
        for cell in found["cells"]
    ]
    num_images = found["cells"][0]["conditions"]["num_images"]
    return {"axes": found["axes"], "cells": cells, "num_images": num_images, "date": found["cells"][0]["date"]}


def measured() -> Result:
    """Return the figures of every seed on disk by sweep and value, and the accuracies of the classifiers."""
    rows: dict[str, dict[str, dict[str, list[float]]]] = {}
    for name in SWEEPS:
        for file in sorted(RESULTS.glob(f"{name}-seed*.json")):
            for cell in json.loads(file.read_text())["cells"]:
                (value,) = cell["cell"].values()
                figures = rows.setdefault(name, {}).setdefault(value, {})
                for number in cell["numbers"]:
                    if number["name"] in FIGURES:
                        figures.setdefault(number["name"], []).append(number["value"])
    accuracies: dict[str, list[float]] = {}
    for file in sorted(RESULTS.glob("classifier-seed*.json")):
        for number in json.loads(file.read_text())["numbers"]:
            if number["name"].startswith("top-1"):
                accuracies.setdefault(number["name"], []).append(number["value"])
    return {"sweeps": rows, "classifier": accuracies}


def render(result: Result) -> str:
    """Return a table for each sweep, with medians and the smallest and the largest value of the seeds."""
    parts = []
    for name, values in result["sweeps"].items():
        (axis, _) = SWEEPS[name].axis.split("=")
        rows = [[value, *(spread(figures[figure]) for figure in FIGURES)] for value, figures in values.items()]
        parts.append(f"{name}, with the {SWEEPS[name].model} model\n\n" + table([axis, *FIGURES], rows))
    rows = [[name, spread(values)] for name, values in result["classifier"].items()]
    return "\n\n".join([*parts, "the classifier\n\n" + table(["on noisy test digits", "accuracy"], rows)])


def spread(values: Sequence[float]) -> str:
    """Format the median, with the smallest and the largest value."""
    digits = 1 if min(values) > 1 else 3
    middle, low, high = (f"{v:.{digits}f}" for v in (statistics.median(values), min(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({low} to {high})"


if __name__ == "__main__":
    main()
