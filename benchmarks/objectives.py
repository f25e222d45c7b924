"""Predictions, objectives and variances: DDPM's Table 2 at a small scale, including failures."""

import itertools
import math
from typing import Any

from benchmarks.options import Options
from benchmarks.quality_cell import about_data
from benchmarks.report import Result, table
from benchmarks.scores import digit_source, reference
from benchmarks.trained_cells import Overrides, bits, complete, distance, test_images, train

TITLE = "Predictions, objectives and variances (DDPM's Table 2 on a small scale)"
ABOUT = """The `mnist` network and optimizer are used with DDPM's linear schedule shortened to T = 100 (betas times 10),
uniform t, the same number of steps for every cell, and one seed. Distance: the digit distance of 500 samples by
Algorithm 2 with all 100 steps (500 samples have a larger distance than 1,000, so the values are only comparable within
this table). Bits/dim: the bound on 256 test digits, with every t and clipped x_0. L_simple has no gradient for a
learned variance; in these cells, L_hybrid is used instead. `failed`: the loss or the samples were not finite."""
PREDICTIONS = ("mean", "sample", "epsilon", "v_prediction")
VARIANCES = ("fixed_large", "learned", "learned_range")
LOSSES = ("vlb", "simple")
STEPS, SAMPLES, IMAGES, SEED = 600, 500, 256, 0
SCHEDULER = {"beta_schedule": "linear_rescaled", "timestep_spacing": "leading"}


def measure(options: Options) -> Result:
    steps, samples = (2, 16) if options.quick else (STEPS, SAMPLES)
    source = digit_source(options.data, "train")
    images, against = test_images(options.data, IMAGES), reference(options.data)
    cells = []
    table_cells = list(itertools.product(PREDICTIONS, LOSSES, VARIANCES))
    for prediction, loss, variance in table_cells[-2:] if options.quick else table_cells:
        overrides = recipe_keys(prediction, loss, variance, num_train_timesteps=4 if options.quick else 100)

        def run(overrides: Overrides = overrides) -> Result:
            trained = train({**overrides, "data": source, "training": {"seed": SEED}}, steps)
            result = {"last_loss": trained.last_loss, "seconds": trained.seconds}
            if not math.isfinite(trained.last_loss):
                return {**result, "distance": None, "share": None, "bits": None, "standard_error": None}
            return {**result, **distance(trained, samples, against), **bits(trained, images, SEED)}

        settings = {**overrides, "steps": steps, "samples": samples, "seed": SEED, "data": about_data(options.data)}
        name = f"{prediction}-{loss}-{variance}"
        cell = complete(options.out / "results" / "objectives", name, settings, run, options.kept)
        if cell is not None:
            labels = {"prediction": prediction, "loss": overrides["objective"]["loss"], "variance": variance}
            cells.append({**{k: v for k, v in cell.items() if k != "settings"}, **labels})
    return {"steps": steps, "data": about_data(options.data), "cells": cells}


def recipe_keys(prediction: str, loss: str, variance: str, num_train_timesteps: int) -> dict[str, dict[str, Any]]:
    """Return the keys of the recipe that a cell changes."""
    learned = variance != "fixed_large"
    objective = {"loss": "hybrid" if learned and loss == "simple" else loss, "timestep_sampling": "uniform"}
    return {
        "scheduler": {
            **SCHEDULER,
            "num_train_timesteps": num_train_timesteps,
            "prediction_type": prediction,
            "variance_type": variance,
        },
        "objective": objective,
        "sampling": {"num_inference_steps": 1},  # no grids are drawn, and 50 steps would not fit a short chain
    }


def render(result: Result) -> str:
    header = ["prediction", "loss", "variance", "distance", "share", "bits/dim", "standard error", "last loss"]
    rows = [
        [
            *(cell[key] for key in ("prediction", "loss", "variance")),
            *("failed" if cell[key] is None else cell[key] for key in ("distance", "share", "bits", "standard_error")),
            cell["last_loss"],
        ]
        for cell in result["cells"]
    ]
    missing = len(PREDICTIONS) * len(LOSSES) * len(VARIANCES) - len(rows)
    note = f" Cells not measured yet: {missing}." if missing else ""
    return f"{result['steps']:,} steps per cell, {result['data']}.{note}\n\n" + table(header, rows)
