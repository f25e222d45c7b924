"""Guidance on digits: accuracy on the asked class and diversity over the scale, for a classifier and without one.

    python -m benchmarks.guidance --data <folder with train.parquet and test.parquet of MNIST>

Trains three seeds of four recipes on two cores for about an hour and a half, and sweeps for about another one. What is
there already, in the folder of runs and in that of results, is kept.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import Result, machine, table, write_json

TITLE = "Guidance: fidelity against diversity"
ABOUT = """Four recipes, each trained for the steps that it names on the 60,000 training digits of MNIST: `mnist`,
`mnist-conditional`, `mnist-conditional-cfg` and `mnist-classifier`. Each row are 1,000 samples, a tenth of them of each
class, by 50 trailing steps of Algorithm 2 with `fixed_small`, sampling seed 0, against the 10,000 test digits. The
digit network, which judges, never guides. Medians of the training seeds, and the smallest and the largest. The plots
are those of `hf-ddpm sweep` for seed 0: `results/guidance/<sweep>-seed0.png`."""
RECIPES = {
    "unconditional": "mnist",
    "conditional": "mnist-conditional",
    "classifier-free": "mnist-conditional-cfg",
    "classifier": "mnist-classifier",
}
WALK = ("--eta", "none", "--steps", "50", "--spacing", "trailing", "--metrics", "fd,prdc,classes")
RESULTS = Path("benchmarks/results/guidance")
FIGURES = ("digit distance", "class accuracy", "precision", "recall")


@dataclass(frozen=True)
class Sweep:
    """One axis of guidance over one of the models.

    Args:
        model: a key of RECIPES.
        axis: option=values, for `hf-ddpm sweep --over`.
        by_classifier: whether the classifier of the same seed guides.
    """

    model: str
    axis: str
    by_classifier: bool


SWEEPS = {
    "ancestral": Sweep("unconditional", "classifier-scale=0,1,2,4,8", True),
    "at-the-mean": Sweep("unconditional", "classifier-gradient=x_t,mean", True),
    "conditional": Sweep("conditional", "classifier-scale=0,1", True),
    "classifier-free": Sweep("classifier-free", "guidance=1,1.25,1.5,2,4", False),
}


@dataclass(frozen=True)
class Options:
    """Of the command line: where digits are, where checkpoints are kept, which sweeps of which seeds are made."""

    data: Path
    runs: Path
    seeds: tuple[int, ...]
    only: tuple[str, ...]
    num_images: int


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, sweep what is missing, and write the medians."""
    options = parse(sys.argv[1:] if argv is None else argv)
    for seed in options.seeds:
        for name in options.only:
            sweep(name, seed, options)
    result = {"machine": machine(), "command": "python -m benchmarks.guidance --data <folder>", **measured()}
    write_json(RESULTS.with_suffix(".json"), result)
    print(render(result))


def parse(argv: Sequence[str]) -> Options:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guidance", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.parquet and test.parquet of digits")
    parser.add_argument("--runs", type=Path, default=Path("runs/guidance"), help="folder of the trained models")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of training (default: 0 1 2)")
    parser.add_argument("--only", nargs="+", default=list(SWEEPS), choices=list(SWEEPS), help="these sweeps")
    parser.add_argument("--num-images", type=int, default=1000, help="of each cell (default: 1,000)")
    given = parser.parse_args(argv)
    return Options(given.data, given.runs, tuple(given.seeds), tuple(given.only), given.num_images)


def train(model: str, seed: int, options: Options) -> Path:
    """The checkpoint of a model, trained unless it is there."""
    run = options.runs / f"{model}-seed{seed}"
    if not (run / "checkpoint").is_dir():
        words = ["--recipe", RECIPES[model], "--source", str(options.data), "--seed", str(seed)]
        words += ["--output_dir", str(run), "--tracker", "none", "--samples", "0"]
        subprocess.run([sys.executable, "training/train.py", *words], check=True)
    return run / "checkpoint"


def sweep(name: str, seed: int, options: Options) -> None:
    """The cells of a sweep, by the command that a user gives; its record and its plot are copied to the results."""
    kept = RESULTS / f"{name}-seed{seed}.json"
    if kept.is_file():
        return
    one, out = SWEEPS[name], options.runs / "sweeps" / f"{name}-seed{seed}"
    words = ["--over", one.axis, "--data", str(options.data), "--num-images", str(options.num_images), *WALK]
    if one.by_classifier:
        words += ["--classifier", str(train("classifier", seed, options))]
    command = ["hf_ddpm.cli", "sweep", str(train(one.model, seed, options)), *words, "--out", str(out)]
    subprocess.run([sys.executable, "-m", *command], check=True)
    found = json.loads((out / "sweep.json").read_text())
    write_json(kept, shortened(found))
    kept.with_suffix(".png").write_bytes((out / "sweep.png").read_bytes())


def shortened(found: dict[str, Any]) -> Result:
    """A sweep without what is the same in every cell, and without paths of this machine."""
    cells = [
        {"cell": cell["cell"], "numbers": cell["numbers"], "seconds": cell["seconds"], "calls": cell["network_calls"]}
        for cell in found["cells"]
    ]
    num_images = found["cells"][0]["conditions"]["num_images"]
    return {"axes": found["axes"], "cells": cells, "num_images": num_images, "date": found["cells"][0]["date"]}


def measured() -> Result:
    """By sweep and value the figures of every seed that is on disk."""
    rows: dict[str, dict[str, dict[str, list[float]]]] = {}
    for name in SWEEPS:
        for file in sorted(RESULTS.glob(f"{name}-seed*.json")):
            for cell in json.loads(file.read_text())["cells"]:
                (value,) = cell["cell"].values()
                figures = rows.setdefault(name, {}).setdefault(value, {})
                for number in cell["numbers"]:
                    if number["name"] in FIGURES:
                        figures.setdefault(number["name"], []).append(number["value"])
                figures.setdefault("seconds", []).append(cell["seconds"]["images"])
    return {"sweeps": rows}


def render(result: Result) -> str:
    """A table for each sweep: medians, and the smallest and the largest of the seeds."""
    parts = []
    for name, values in result["sweeps"].items():
        (axis, _) = SWEEPS[name].axis.split("=")
        rows = [[value, *(_spread(figures[figure]) for figure in FIGURES)] for value, figures in values.items()]
        parts.append(f"{name}, the {SWEEPS[name].model} model\n\n" + table([axis, *FIGURES], rows))
    return "\n\n".join(parts)


def _spread(values: Sequence[float]) -> str:
    digits = 1 if min(values) > 1 else 3
    middle, low, high = (f"{v:.{digits}f}" for v in (statistics.median(values), min(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({low} to {high})"


if __name__ == "__main__":
    main()
