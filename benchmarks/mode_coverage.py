"""Mode coverage of a denoising GAN over training time, on Stacked MNIST.

    python -m benchmarks.mode_coverage --data <folder with train.parquet and test.parquet of MNIST>

Each length is a separate training, whose learning rates decay to their minimum. Existing results are kept.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.by_command import UNSEEN, Place, evaluated, figures_of, measure_arms, trained
from benchmarks.guidance import spread
from benchmarks.report import Result, table
from benchmarks.stacked_mnist import stack

TITLE = "Stacked MNIST: modes over training time"
ABOUT = """`stacked-mnist-ddgan` was trained separately for each number of steps, on one of two busy threads. Each image
has three of the 60,000 training digits in its channels; the digit network of the package classifies them in 25,600
samples (seed 0). The paper finds 1,000 modes and a KL of 0.071 (arXiv 2112.07804) with its own network. The values are
medians of the training seeds, with the smallest and the largest."""
NUM_IMAGES = 25_600  # the paper's
ARMS = {f"{steps} steps": steps for steps in (500, 1000, 2000, 4000)}
FIGURES = ("modes found", "KL of the classes to uniform", "stacked digit distance")


def main(argv: Sequence[str] | None = None) -> None:
    """Train and measure what is missing, and write the medians."""
    print(render(measure_arms("mode_coverage", str(__doc__), argv, list(ARMS), measure, NUM_IMAGES)))


def measure(place: Place, name: str, seed: int) -> Result:
    """Train for one number of steps with one seed, and return the figures."""
    place = stacked(place)
    words = ("--recipe", "stacked-mnist-ddgan", "--total_steps", str(ARMS[name]))
    checkpoint = trained(name, seed, place, *UNSEEN, *words)
    how = ("--extractor", "stacked-digits", "--metrics", "fd,modes")
    found = evaluated(name, seed, place, checkpoint, *how)
    facts = json.loads((checkpoint / "training.json").read_text())
    return {"arm": name, "training seconds": facts["seconds"], **figures_of(found, FIGURES)}


def stacked(place: Place) -> Place:
    """Return `place` with the stacked digits, which are created if they do not exist yet."""
    folder = place.runs / "stacked-mnist"
    if not folder.is_dir():
        stack(str(place.data), folder, seed=0)
    return replace(place, data=folder)


def render(result: Result) -> str:
    """Return a table with a row for each length of training."""
    rows = [
        [name, f"{statistics.median(row['training seconds']):.0f}", *(spread(row[figure]) for figure in FIGURES)]
        for name, row in result["arms"].items()
    ]
    return table(["training", "seconds", *FIGURES], rows)


if __name__ == "__main__":
    main()
