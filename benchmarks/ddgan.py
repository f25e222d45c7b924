"""The denoising GAN on digits, compared with other models of equal training time, and the effect of each of its parts.

    python -m benchmarks.ddgan --data <folder with train.parquet and test.parquet of MNIST>

Trains each arm with three seeds on one thread, five minutes each. Existing results are kept.
"""

import json
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.by_command import UNSEEN, Place, evaluated, figures_of, measure_arms, trained
from benchmarks.guidance import spread
from benchmarks.report import Result, table

TITLE = "The denoising GAN on digits"
ABOUT = """`mnist-ddgan` is trained on the 60,000 training digits with one change at a time, and compared with a
class-conditional DDPM (`mnist-conditional`) that is trained for about the same time and sampled with several samplers,
and with the VAE of MLPs (`mnist-vae`). All GANs are trained for the same number of steps, on one of two busy threads.
Each row was measured with 1,000 samples of the last checkpoint with averaged weights, a tenth of each class where there
are classes, seed 0, against the 10,000 test digits. The last column shows the effect of z: the standard deviation over
z of a pixel of x_0 in [-1, 1], for each t, beginning with the step next to the image. The values are medians of three
training seeds, with the smallest and the largest."""
FIGURES = ("digit distance", "share of sure digits", "class accuracy", "precision", "recall", "coverage")
GAN = ("--recipe", "mnist-ddgan")
PLAIN = ("--recipe", "mnist-ddgan-unconditional")
WITHOUT_CLASSES = {"mnist-ddgan-unconditional", "mnist-vae"}


class Arm(NamedTuple):
    """The options of a training, and those of its samples."""

    train: tuple[str, ...]
    draw: tuple[str, ...] = ()
    of: str | None = None  # the arm whose checkpoint it draws from


ARMS = {
    "mnist-ddgan, T = 4": Arm(GAN),
    **{f"T = {steps}": Arm((*GAN, "--num_train_timesteps", str(steps))) for steps in (1, 2, 8)},
    "without z": Arm((*GAN, "--latent_dim", "0")),
    "without R1": Arm((*GAN, "--r1_gamma", "0")),
    "without the L2 term": Arm((*GAN, "--l2_weight", "0")),
    "without the L2 term, a slower generator": Arm((*GAN, "--l2_weight", "0", "--generator_optimization.lr", "4e-4")),
    "hardly more than the L2 term": Arm((*GAN, "--l2_weight", "1000")),
    "without classes": Arm(PLAIN),
    "without classes, without the L2 term": Arm((*PLAIN, "--l2_weight", "0")),
    "DDPM, 4 steps": Arm(("--recipe", "mnist-conditional", "--total_steps", "1300"), ("--steps", "4", "--eta", "1")),
    "DDPM, 1 step": Arm((), ("--steps", "1", "--eta", "1"), "DDPM, 4 steps"),
    **{f"DDPM, {n} steps": Arm((), ("--steps", str(n), "--eta", "1"), "DDPM, 4 steps") for n in (2, 10, 50, 1000)},
    **{f"DDIM, {n} steps": Arm((), ("--steps", str(n), "--eta", "0"), "DDPM, 4 steps") for n in (2, 4, 10, 50)},
    **{f"UniPC, {n} steps": Arm((), ("--steps", str(n)), "DDPM, 4 steps") for n in (4, 10)},
    "VAE": Arm(("--recipe", "mnist-vae", "--total_steps", "8000")),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Train and measure what is missing, and write the medians."""
    print(render(measure_arms("ddgan", str(__doc__), argv, list(ARMS), measure)))


def measure(place: Place, name: str, seed: int) -> Result:
    """Train one arm with one seed, and return its figures."""
    arm = ARMS[name]
    of, words = arm.of or name, ARMS[arm.of].train if arm.of else arm.train
    checkpoint = trained(of, seed, place, *UNSEEN, *words)
    metrics = "fd,prdc" if words[1] in WITHOUT_CLASSES else "fd,prdc,classes"
    found = evaluated(name, seed, place, checkpoint, "--metrics", metrics, *arm.draw)
    facts = json.loads((checkpoint / "training.json").read_text())
    about = {"training seconds": facts["seconds"], "logged": of_z(facts)}
    return {"arm": name, "steps": facts["steps"], **about, **figures_of(found, FIGURES)}


def of_z(facts: dict[str, Any]) -> dict[str, float]:
    """Return the standard deviation over z at the end of a training, and the gap of the logits, for each t."""
    logged = facts.get("last_logged") or {}
    found = {f"z_sd{name[-3:]}": value**0.5 for name, value in logged.items() if "z_variance" in name}
    return found | {name.partition("/")[2]: value for name, value in logged.items() if "/gap_t" in name}


def render(result: Result) -> str:
    """Return a table with a row for each arm."""
    rows = []
    for name, row in result["arms"].items():
        figures = [spread(row[figure]) if figure in row else "" for figure in FIGURES]
        seconds = f"{statistics.median(row['training seconds']):.0f}"
        spreads = sorted(figure for figure in row if figure.startswith("z_sd"))
        over_z = [f"{statistics.median(row[figure]):.3f}" for figure in spreads]
        rows.append([name, *figures, seconds, " ".join(over_z)])
    head = ["model", *FIGURES, "training, s", "sd over z, from t = 0"]
    return table(head, rows)


if __name__ == "__main__":
    main()
