"""L_simple, L_hybrid and L_vlb with equal training, compared by bits/dim (Improved DDPM, Table 1, at a small scale)."""

import statistics
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.options import Options
from benchmarks.quality_cell import about_data
from benchmarks.report import Result, table
from benchmarks.scores import digit_source
from benchmarks.trained_cells import Trained, bits, complete, test_images, train
from hf_ddpm import HFDDPMScheduler

TITLE = "Bits/dim of L_simple, L_hybrid and L_vlb"
ABOUT = """The `mnist` recipe (cosine schedule, T = 1000), with v-prediction and uniform t, was trained for the same
number of steps with each objective and three seeds. The bound is measured on the same 256 test digits, with every t and
clipped x_0, and is given with its standard error over the images. Every arm has the variance `learned_range`. L_simple
does not train the variance: its output remains at the initial value, 0, which is the geometric mean of beta and
beta-tilde. The ranking in the paper after 500,000 steps on CIFAR-10 is L_vlb (2.94, with importance-sampled t) <
L_hybrid (3.17) < L_simple (3.26)."""
ARMS: dict[str, dict[str, Any]] = {
    "L_simple": {"loss": "simple", "timestep_sampling": "uniform"},
    "L_hybrid": {"loss": "hybrid", "timestep_sampling": "uniform"},
    "L_vlb": {"loss": "vlb", "timestep_sampling": "uniform"},
    "L_vlb, t by importance": {"loss": "vlb", "timestep_sampling": "loss_second_moment"},
}
STEPS, IMAGES = 800, 256


class WithVariance(nn.Module):
    """A network with C output channels, extended to 2C with a variance output of 0."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.config = {**network.config, "out_channels": 2 * network.config["out_channels"]}

    def forward(self, x_t: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Any:
        output = self.network(x_t, t, class_labels=class_labels)
        output.sample = torch.cat([output.sample, torch.zeros_like(output.sample)], dim=1)
        return output


def measure(options: Options) -> Result:
    steps = 2 if options.quick else STEPS
    source = digit_source(options.data, "train")
    images = test_images(options.data, IMAGES)
    # as few network calls as possible, because the figures of a quick run are meaningless
    short = {"scheduler": {"num_train_timesteps": 4}, "sampling": {"num_inference_steps": 1}} if options.quick else {}
    cells = []
    for seed in options.seeds[:1] if options.quick else options.seeds:
        for arm, objective in list(ARMS.items())[:: 3 if options.quick else 1]:

            def run(objective: dict[str, Any] = objective, seed: int = seed) -> Result:
                trained = train_arm(objective, {"data": source, "training": {"seed": seed}, **short}, steps)
                return {"last_loss": trained.last_loss, "seconds": trained.seconds, **bits(trained, images, seed)}

            settings = {"objective": objective, "steps": steps, "seed": seed, "data": about_data(options.data)}
            name = f"{arm.replace(', t by ', '-').replace(' ', '-')}-seed{seed}"
            cell = complete(options.out / "results" / "bits_per_dim", name, settings, run, options.kept)
            if cell is not None:
                cells.append({**{k: v for k, v in cell.items() if k != "settings"}, "arm": arm, "seed": seed})
    return {"steps": steps, "data": about_data(options.data), "cells": cells}


def train_arm(objective: dict[str, Any], overrides: dict[str, dict[str, Any]], steps: int) -> Trained:
    """Train a network with 2C output channels, and a scheduler that reads them."""
    learns = objective["loss"] != "simple"
    scheduler = {"prediction_type": "v_prediction"} | dict(overrides.get("scheduler", {}))
    scheduler |= {"variance_type": "learned_range"} if learns else {}
    trained = train({**overrides, "objective": objective, "scheduler": scheduler}, steps)
    if learns:
        return trained
    reads = HFDDPMScheduler.from_config(trained.scheduler.config, variance_type="learned_range")
    return Trained(WithVariance(trained.model).eval(), reads, trained.last_loss, trained.seconds)


def render(result: Result) -> str:
    rows = []
    for arm in ARMS:
        cells = [cell for cell in result["cells"] if cell["arm"] == arm]
        if not cells:
            continue
        figures = ", ".join(f"{cell['bits']:.3f} ± {cell['standard_error']:.3f}" for cell in cells)
        parts = [statistics.mean(cell[key] for cell in cells) for key in ("prior", "rate", "decoder")]
        rows.append([arm, len(cells), statistics.mean(cell["bits"] for cell in cells), figures, *parts])
    header = ["objective", "seeds", "bits/dim, mean", "each ± standard error", "prior", "L_t, t > 0", "decoder"]
    return f"{result['steps']:,} steps, {result['data']}.\n\n" + table(header, rows)
