"""One cell of time_to_quality: train one arm with one seed for a fixed wall-clock time, sample from it and score it.

    python -m benchmarks.quality_cell --arm ours --seed 0 --seconds 300 --out benchmarks

A cell runs in its own process, so that no arm inherits another's process-wide settings. It writes <name>.json and
<name>.png (64 samples) to results/time_to_quality; `benchmarks.run` does not repeat cells with unchanged settings.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from pyarrow.parquet import read_metadata

from benchmarks import diffusers_example
from benchmarks.diffusers_example import DiffusersExample
from benchmarks.ours import recipe_with, start
from benchmarks.report import Result, machine, write_json
from benchmarks.scores import digit_scores, digit_source, reference
from hf_ddpm import HFDDPMPipeline, HFDDPMScheduler
from hf_ddpm.data.sources import open_source
from hf_ddpm.figures.grid import pil_images
from hf_ddpm.objectives import MODEL
from hf_ddpm.sampling import DEFAULT_STEPS, image_grid, use_default_sampler
from hf_ddpm.training.diffusion import build_model
from hf_ddpm.training.recipe import Recipe, blocks_of

ARMS = ("ours", "diffusers", "diffusers-tuned", "diffusers-default-unet")
DEFAULT_UNET = {  # that of diffusers' example without a config: 113,668,609 weights with one channel
    "sample_size": 32,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 2,
    "block_out_channels": (128, 128, 256, 256, 512, 512),
    "down_block_types": ("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
}


@dataclass(frozen=True)
class Cell:
    """The training of a cell, and its evaluation. Two cells with the same settings are the same cell.

    Args:
        arm: The arm, one of `ARMS`.
        seed: The seed of weights, data order and noise.
        seconds: The wall-clock time of the training.
        lr: The learning rate of the arm diffusers-tuned.
        num_samples: The number of samples of the score, 1,000 for figures that can be compared with others.
        sampling_steps: The number of steps of DDIM, eta 0.
        folder: The folder with train.parquet and test.parquet; None uses the embedded digits, 4,500 and 500.
    """

    arm: str
    seed: int
    seconds: float
    lr: float | None = None
    num_samples: int = 1000
    sampling_steps: int = 50
    folder: Path | None = None

    @property
    def name(self) -> str:
        rate = "" if self.lr is None else f"-lr{self.lr:g}"
        return f"{self.arm}{rate}-seed{self.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that the figures depend on, except the machine and the code, as read back from JSON."""
        recipe = shipped_recipe(self)
        told = {"folder": None, "data": about_data(self.folder), "spacing": recipe["scheduler"]["timestep_spacing"]}
        if self.arm == "ours":
            told["recipe"] = _portable(recipe)
        if self.arm != "diffusers-default-unet":
            with torch.device("meta"):
                told["network"] = dict(our_network(self).config)
        return json.loads(json.dumps({**asdict(self), **told}))

    def path(self, out: Path) -> Path:
        return out / "results" / "time_to_quality" / f"{self.name}.json"

    def done(self, out: Path) -> Result | None:
        """Return the result on disk if it was measured with these settings, otherwise None."""
        if not self.path(out).exists():
            return None
        result = json.loads(self.path(out).read_text())
        return result if result["settings"] == self.settings else None


@dataclass(frozen=True)
class Trained:
    """A trained network with averaged weights."""

    model: UNet2DModel
    scheduler: HFDDPMScheduler
    steps: int
    seconds: float
    batch_size: int
    last_loss: float


def run_cell(cell: Cell, out: Path) -> Result:
    """Train, sample and score one cell, and write the result."""
    where = machine()
    torch.manual_seed(cell.seed)
    trained = train_ours(cell) if cell.arm == "ours" else train_example(cell)
    against = reference(cell.folder, trained.model.config["sample_size"])
    started = time.perf_counter()
    ddim = {"num_inference_steps": cell.sampling_steps, "eta": 0.0}  # the same for every arm
    score, _ = digit_scores(pipeline_of(trained), cell.num_samples, against, **ddim)
    taken, pipeline = time.perf_counter() - started, pipeline_of(trained)
    walk = use_default_sampler(pipeline, min(cell.sampling_steps, DEFAULT_STEPS))
    default, first = digit_scores(pipeline, cell.num_samples, against, **walk)
    result = {
        "arm": cell.arm,
        "seed": cell.seed,
        "lr": cell.lr,
        **score,
        **{key: value for key, value in vars(trained).items() if key not in ("model", "scheduler")},
        "weights": sum(p.numel() for p in trained.model.parameters()),
        "sampling_seconds": round(taken, 1),
        "by_default_sampler": default,
        "settings": cell.settings,
        "machine": where,
    }
    path = cell.path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    image_grid(pil_images(first)).save(path.with_suffix(".png"))
    write_json(path, result)
    return result


def train_ours(cell: Cell) -> Trained:
    """Train the shipped recipe with the real training step, as long as the budget allows."""
    recipe = shipped_recipe(cell)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        run, step = start(recipe, Path(folder) / "run", total_steps=100_000)
        decoded = time.perf_counter() - started  # hf_ddpm decodes all images first, the example later: both count

        def replan(total_steps: int) -> None:
            run.training = replace(run.training, total_steps=total_steps)

        losses, seconds = train_for(step, replan, cell.seconds - decoded)
    return Trained(
        run.networks[MODEL],
        run.objective.scheduler,
        len(losses),
        seconds,
        run.training.batch_size,
        statistics.mean(float(loss) for loss in losses[-50:]),
    )


def train_example(cell: Cell) -> Trained:
    """Train with diffusers' settings and loop, on our network or on its own."""
    dataset, lr = open_source(**digit_source(cell.folder, "train")).rows, cell.lr or diffusers_example.LR

    own = cell.arm == "diffusers-default-unet"
    model = UNet2DModel(**DEFAULT_UNET) if own else our_network(cell)
    example = DiffusersExample(model, dataset, total_steps=100_000, lr=lr, pad=own)

    def replan(total_steps: int) -> None:
        example.total_steps = total_steps

    losses, seconds = train_for(example.step, replan, cell.seconds)
    spacing = shipped_recipe(cell)["scheduler"]["timestep_spacing"]
    scheduler = HFDDPMScheduler(timestep_spacing=spacing)  # the example's noise process, with our sampling
    return Trained(
        example.averaged_model(),
        scheduler,
        len(losses),
        seconds,
        diffusers_example.BATCH_SIZE,
        statistics.mean(losses[-50:]),
    )


def train_for(step: Callable[[], Any], replan: Callable[[int], None], seconds: float) -> tuple[list[Any], float]:
    """Do steps until the time is over; return the losses and the seconds taken.

    After each step, `replan` is called with the total number of steps that fit, so that the learning rate reaches 0 at
    the end even if the speed of the machine changes during training.
    """
    losses: list[Any] = []
    started, elapsed = time.perf_counter(), 0.0
    while not losses or elapsed < seconds:
        losses.append(step())
        elapsed = time.perf_counter() - started
        replan(max(len(losses), round(len(losses) * seconds / elapsed)))
    return losses, elapsed


def shipped_recipe(cell: Cell) -> Recipe:
    """Return the `mnist` recipe with the cell's training digits."""
    return recipe_with("mnist", {"data": digit_source(cell.folder, "train"), "training": {"seed": cell.seed}})


def our_network(cell: Cell) -> UNet2DModel:
    """Return the recipe's network with its initial weights."""
    recipe = shipped_recipe(cell)
    with torch.device("cpu"):  # also when `settings` builds the network on the meta device
        scheduler = HFDDPMScheduler(**recipe["scheduler"])
    model = build_model(recipe["model"], scheduler, recipe["data"]["image_size"], recipe["data"]["channels"])
    assert isinstance(model, UNet2DModel)
    return model


def about_data(folder: Path | None) -> str:
    """Describe the number of digits for training and for the test."""
    if folder is None:
        return "4,500 embedded digits for training, 500 for the test"
    train, test = (read_metadata(folder / f"{split}.parquet").num_rows for split in ("train", "test"))
    return f"{train:,} digits for training, {test:,} for the test"


def pipeline_of(trained: Trained) -> HFDDPMPipeline:
    return HFDDPMPipeline(trained.model, trained.scheduler)


def _portable(recipe: Recipe) -> Recipe:
    """Return the recipe without the path of the data."""
    return {**blocks_of(recipe), "data": {**recipe["data"], "source": "the training digits"}}


def parse(argv: Sequence[str] | None = None) -> tuple[Cell, Path]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arm", choices=ARMS, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--num_samples", type=int, default=1000)
    parser.add_argument("--sampling_steps", type=int, default=50)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    given = vars(parser.parse_args(argv))
    out = given.pop("out")
    return Cell(**given), out


if __name__ == "__main__":
    run_cell(*parse())
