"""A training step of the denoising GAN: that of the trainer, compared with plain PyTorch without Accelerate."""

import copy
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.options import Options
from benchmarks.ours import recipe_with, start
from benchmarks.report import Result, table, verdict
from benchmarks.timing import Rounds
from hf_ddpm.data import Batch
from hf_ddpm.objectives import GENERATOR
from hf_ddpm.training.run import Run

TITLE = "A training step of the denoising GAN"
ABOUT = """`mnist-ddgan` is trained on the embedded digits by `optimizer_step` of training/train.py, with Accelerate,
the gradient norms of the log, and random numbers that depend only on the step. It is compared with a loop in plain
PyTorch with the same networks, losses, Adam, learning rates and averaging, which draws from one generator. Blocks take
turns in one process; times are medians, and the ratio is the median of the ratios of the blocks."""
STEPS = 100_000  # of the schedule, whose end is not reached
TINY = {
    "data": {"image_size": 8},
    "generator": {"preset": "tiny"},
    "discriminator": {"preset": "tiny"},
    "training": {"batch_size": 4},
}


class PlainLoop:
    """The training loop of a run, written in plain PyTorch.

    Args:
        run: The run whose networks are copied, and whose settings are used.
    """

    def __init__(self, run: Run) -> None:
        self.objective, self.step_number = run.objective, 0
        self.models = {name: copy.deepcopy(run.accelerator.unwrap_model(p.model)) for name, p in run.players.items()}
        self.average = copy.deepcopy(self.models[GENERATOR]).requires_grad_(False)
        self.settings = {name: player.optimization for name, player in run.players.items()}
        self.optimizers = {
            name: torch.optim.Adam(model.parameters(), lr=self.settings[name].lr, betas=self.settings[name].betas)
            for name, model in self.models.items()
        }
        self.generator = torch.Generator(run.accelerator.device).manual_seed(0)
        seed, device = run.training.seed, run.accelerator.device
        self.batches: Iterator[Batch] = run.data.batches(batch_size=run.training.batch_size, seed=seed, device=device)

    def step(self) -> None:
        """Update both players once."""
        batch = next(self.batches)
        draws = self.objective.draw(tuple(batch.x_0.shape), self.generator, self.step_number)
        for turn in self.objective.turns:
            for name, model in self.models.items():
                model.requires_grad_(name == turn)
            optimizer = self.optimizers[turn]
            self.settings[turn].set_learning_rate(optimizer, self.step_number, STEPS)
            loss = self.objective.loss(turn, self.models, batch, draws, self.step_number).each.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.step_number += 1
        decay = min(0.9999, 1 - 1 / (1 + self.step_number / 16))
        torch._foreach_lerp_([*self.average.parameters()], [*self.models[GENERATOR].parameters()], 1 - decay)


def measure(options: Options) -> Result:
    rounds, calls = (1, 1) if options.quick else (12, 8)
    overrides: Mapping[str, Any] = {"evaluation": {"samples": 0, "every": None}, **(TINY if options.quick else {})}
    with tempfile.TemporaryDirectory() as folder:
        run, ours = start(recipe_with("mnist-ddgan", overrides), Path(folder) / "run", STEPS)
        plain = PlainLoop(run)
        times = Rounds({"ours": ours, "plain": plain.step}, rounds=rounds, calls=calls)
    found = {name: 1 / times.median(name) for name in ("ours", "plain")}
    return {"steps_per_second": found, "ratio": times.speedup("ours", over="plain"), "target": 0.95}


def render(result: Result) -> str:
    found = result["steps_per_second"]
    row = [found["ours"], found["plain"], result["ratio"], verdict(result["ratio"], result["target"])]
    return table(["hf_ddpm, steps/s", "plain PyTorch, steps/s", "ratio", "target"], [row])
