"""The quality after five minutes of training on two cores: our recipe against diffusers' settings in equal time.

Cells (arm, learning rate, seed) are trained one after another, each in a fresh process, and kept: an interrupted run
continues where it stopped, and a cell whose settings have changed (such as the recipe) is trained again.
"""

import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.diffusers_example import LR
from benchmarks.options import Options
from benchmarks.quality_cell import Cell
from benchmarks.report import Result, table, verdict
from benchmarks.scores import digits, reference
from hf_ddpm.metrics import digit_score

TITLE = "Time to quality on 28x28 digits"
ABOUT = """All arms are trained for the same wall-clock time and sampled in the same way (DDIM, eta 0). The learning
rate follows the clock and reaches 0 at the end of the budget. The score consists of the digit distance of 1,000 samples
(see src/hf_ddpm/metrics/digit_features.md; smaller is better, and it is not an FID) and the share of samples with a
sure class. `ours` is the `mnist` recipe as shipped; `diffusers` is the loop, the settings and the data path of
diffusers' example with our network and our initial weights; `diffusers-tuned` is the same with the best of four
learning rates; `diffusers-default-unet` is the default network of the example, at 32 px. Its few dozen steps stay
within the warm-up, and it is sampled in 2 steps, because 50 would take hours: it is only reported. Finished cells are
kept, so arms may have been measured on different machines, as shown in the last column; their ratio is then not the
ratio of a single run."""
TUNED_LRS = (3e-4, 1e-3, 2e-3, 4e-3)
DEFAULT_UNET_STEPS = 2  # 50 would take hours, and this arm trains on a few dozen batches in five minutes
REAL_DRAWS = 4
ROOT = Path(__file__).resolve().parent.parent


def measure(options: Options) -> Result:
    def result_of(arm: str, seed: int, lr: float | None = None, sampling_steps: int = 50) -> Result:
        return complete(cell_of(options, arm, seed, lr, sampling_steps), options.out)

    first, lrs = options.seeds[0], TUNED_LRS[:2] if options.quick else TUNED_LRS
    trials = [result_of("diffusers-tuned", first, lr) for lr in lrs]
    best_lr = min(trials, key=lambda trial: trial["distance"])["lr"]
    cells = [*trials]
    for seed in options.seeds:
        cells += [result_of("ours", seed), result_of("diffusers", seed)]
        cells += [] if seed == first else [result_of("diffusers-tuned", seed, best_lr)]
    if not options.quick:
        cells.append(result_of("diffusers-default-unet", first, sampling_steps=DEFAULT_UNET_STEPS))
    num_samples = cells[0]["settings"]["num_samples"]
    return {
        "seconds": options.seconds,
        "num_samples": num_samples,
        "data": cells[0]["settings"]["data"],
        "best_lr": best_lr,
        "real": real_digits(options, num_samples),
        "cells": [{k: v for k, v in cell.items() if k != "settings"} for cell in cells],
    }


def cell_of(options: Options, arm: str, seed: int, lr: float | None = None, sampling_steps: int = 50) -> Cell:
    folder = None if options.data is None else options.data.resolve()
    num_samples, steps = (64, 2) if options.quick else (1000, sampling_steps)
    return Cell(arm, seed, options.seconds, lr, num_samples, steps, folder)


def complete(cell: Cell, out: Path) -> Result:
    """Return the cell's result, from disk or from a fresh process."""
    done = cell.done(out)
    if done is None:
        print(f"{cell.name}: training for {cell.seconds:g} s", flush=True)
        words = {k: v for k, v in vars(cell).items() if v is not None} | {"out": out.resolve()}
        arguments = [word for key, value in words.items() for word in (f"--{key}", str(value))]
        subprocess.run([sys.executable, "-m", "benchmarks.quality_cell", *arguments], cwd=ROOT, check=True)
        done = cell.done(out)
    if done is None:
        raise RuntimeError(f"{cell.path(out)} was not written with the settings of {cell}")
    print(f"{cell.name}: distance {done['distance']:.1f}, share {done['share']:.2f}", flush=True)
    return done


def real_digits(options: Options, num_samples: int) -> Result:
    """Return the score of equally many real training digits, as the mean of a few draws."""
    against = reference(options.data).pool
    draws = digits(options.data, "train", REAL_DRAWS * num_samples).split(num_samples)
    scores = [digit_score(draw, against) for draw in draws]
    return {key: statistics.mean(getattr(score, key) for score in scores) for key in ("distance", "share")}


def render(result: Result) -> str:
    arms = chosen(result)
    header = [
        "arm",
        "seeds",
        "distance, median",
        "all",
        "share, median",
        "ratio of ours",
        "steps",
        "batch",
        "lr",
        "weights",
        "measured",
    ]
    ours = median(arms["ours"], "distance")
    rows = [["real training digits", "", result["real"]["distance"], "", result["real"]["share"], *[""] * 6]]
    for arm, cells in arms.items():
        distances = ", ".join(f"{cell['distance']:.0f}" for cell in cells)
        distance, share, steps = (median(cells, key) for key in ("distance", "share", "steps"))
        lr = "the recipe's" if arm == "ours" else f"{cells[0]['lr'] or LR:g}"
        size = (f"{cells[0]['batch_size']}", lr, f"{cells[0]['weights']:,}", measured(cells))
        rows.append([arm, len(cells), distance, distances, share, ours / distance, f"{steps:,.0f}", *size])
    trials = [cell for cell in result["cells"] if cell["arm"] == "diffusers-tuned"]
    seed = trials[0]["seed"]
    tried = [[f"{c['lr']:g}", c["distance"], c["share"], c["last_loss"]] for c in trials if c["seed"] == seed]
    return "\n\n".join(
        [
            f"{result['seconds']:g} s of training, {result['num_samples']:,} samples, data: {result['data']}.",
            table(header, rows),
            targets(result, arms),
            by_default_sampler(arms["ours"]),
            f"Learning rates tried for `diffusers-tuned` (seed {seed}):",
            table(["lr", "distance", "share", "last loss"], tried),
            "Grids of 64 samples of every cell are in `results/time_to_quality/`.",
        ]
    )


def by_default_sampler(cells: list[Result]) -> str:
    """Return the scores of our weights with the default sampler of `hf-ddpm sample`, as text."""
    scores = [cell["by_default_sampler"] for cell in cells if "by_default_sampler" in cell]
    if not scores:
        return "The default sampler was not measured."
    distance, share = (statistics.median(score[key] for score in scores) for key in ("distance", "share"))
    every = ", ".join(f"{score['distance']:.1f}" for score in scores)
    verdicts = f"{verdict(distance, 20, at_most=True)}; stretch: {verdict(distance, 12, at_most=True)}"
    return (
        f"`ours` with the default sampler (UniPC, 20 network calls): distance {distance:.1f} ({every}), share "
        f"{share:.2f}; target: {verdicts}."
    )


def targets(result: Result, arms: dict[str, list[Result]]) -> str:
    """Return a table of the project's targets for five minutes, and whether they are reached."""
    distance, share = median(arms["ours"], "distance"), median(arms["ours"], "share")
    times = distance / result["real"]["distance"]
    lines = [
        ("ratio of distance to that of real digits", times, verdict(times, 8, at_most=True)),
        ("distance", distance, verdict(distance, 30, at_most=True)),
        ("share", share, verdict(share, 0.70)),
    ]
    for arm, target in (("diffusers", 0.25), ("diffusers-tuned", 0.6)):
        ratio = distance / median(arms[arm], "distance")
        lines.append((f"ratio of distance to that of `{arm}`", ratio, verdict(ratio, target, at_most=True)))
    return table(["ours", "value", "target"], lines)


def measured(cells: list[Result]) -> str:
    """Return where and when cells were measured."""
    machines = [cell["machine"] for cell in cells if "machine" in cell]
    return ", ".join(sorted({f"{machine['cpu']} {machine['date']}" for machine in machines}))


def chosen(result: Result) -> dict[str, list[Result]]:
    """Return the cells by arm; for diffusers-tuned, only those with the chosen learning rate."""
    cells = [cell for cell in result["cells"] if cell["lr"] in (None, result["best_lr"])]
    names = ("ours", "diffusers-tuned", "diffusers", "diffusers-default-unet")
    arms = {name: [cell for cell in cells if cell["arm"] == name] for name in names}
    return {name: cells for name, cells in arms.items() if cells}


def median(cells: list[Result], key: str) -> float:
    return statistics.median(cell[key] for cell in cells)
