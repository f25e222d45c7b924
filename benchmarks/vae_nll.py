"""-log p(x) of binarised MNIST: the VAE with 2 x 200 units, the same with IWAE's bound, and AEVB's one-layer network.

Every arm is a shipped recipe, trained with the real loop on the 60,000 training digits, binarised anew each time, and
measured on all 10,000 test digits, each binarised once (seed 0), with 200 importance samples (seed 0). An interrupted
run continues from its last state in runs/vae_nll.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch

from benchmarks.options import Options
from benchmarks.ours import recipe_with
from benchmarks.quality_cell import about_data
from benchmarks.report import Result, table, verdict
from benchmarks.trained_cells import complete
from hf_ddpm import HFVAEPipeline
from hf_ddpm.checkpoint import FACTS_FILE
from hf_ddpm.data import ImageData
from hf_ddpm.likelihood import draw_images, evaluate_vae
from hf_ddpm.likelihood.report import mean_and_error
from hf_ddpm.training.recipe import blocks_of
from hf_ddpm.training.run_folder import RunFolder
from hf_ddpm.training.train import train

TITLE = "Likelihood of binarised MNIST"
ABOUT = """Recipes of VAEs were trained on MNIST's 60,000 digits (dynamic binarisation) and measured on the 10,000 test
digits, each binarised once with seed 0: -log p(x) in nats from K = 200 importance samples, its standard error over the
digits, and the ELBO with its parts. The settings were chosen on 10,000 held-out training digits (RECIPE_TRIALS.md).
pythae publishes 89.78 (K = 200) on the fixed Binary MNIST split; Burda et al. 2016 report 86.76 after about 3,000
epochs (K = 5,000)."""
TARGET = 89.8
RUNS = Path("runs/vae_nll")
ARMS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "VAE, 2 x 200": ("mnist-vae-binary", {}),
    "VAE, 2 x 200, short": ("mnist-vae-binary", {"training": {"total_steps": 30_000}}),
    "IWAE, k = 5, 2 x 200, short": (
        "mnist-vae-binary",
        {"training": {"total_steps": 30_000}, "elbo": {"bound": "iwae", "num_samples": 5}},
    ),
    "AEVB's network, 500, short": ("mnist-vae-aevb", {"training": {"total_steps": 30_000}}),
}


def measure(options: Options) -> Result:
    digits, samples = (256, 5) if options.quick else (10_000, 200)
    cells = []
    for arm, (name, overrides) in ARMS.items():
        recipe = recipe_of(name, arm, overrides, options)

        def run(recipe: dict[str, dict[str, Any]] = recipe) -> Result:
            return measured(recipe, options.data, digits, samples)

        settings = {"recipe": about(recipe), "data": about_data(options.data), "digits": digits, "K": samples}
        cell = complete(options.out / "results" / "vae_nll", slug(arm), settings, run, options.kept)
        if cell is not None:
            cells.append({**{k: v for k, v in cell.items() if k != "settings"}, "arm": arm})
    return {"data": about_data(options.data), "digits": digits, "K": samples, "cells": cells}


def recipe_of(name: str, arm: str, overrides: dict[str, dict[str, Any]], options: Options) -> dict[str, dict[str, Any]]:
    """Return the arm's recipe for these data, in its own folder."""
    source = {"source": "digits", "max_images": 500} if options.data is None else {"source": str(options.data)}
    folder = options.out / "runs" if options.quick else RUNS
    training = {**overrides.get("training", {}), "output_dir": str(folder / slug(arm)), "tracker": "none"}
    training |= {"total_steps": 2} if options.quick else {}
    training["cpu_threads"] = torch.get_num_threads()  # set by OMP_NUM_THREADS
    return recipe_with(name, {**overrides, "data": source, "training": training})


def measured(recipe: dict[str, dict[str, Any]], data: Path | None, digits: int, samples: int) -> Result:
    """Train or continue a training, and measure."""
    folder = RunFolder(recipe["training"]["output_dir"])
    if not folder.checkpoint.is_dir():
        train(recipe, "latest" if folder.saved_states() else None)
    vae = HFVAEPipeline.from_pretrained(folder.checkpoint).vae
    where = {"source": "digits"} if data is None else {"source": str(data), "split": "test"}
    images = draw_images(ImageData(**where, binarize="static"), digits, seed=0)
    found = evaluate_vae(vae, images, num_samples=samples, seed=0)
    nats = {"nll": -found.terms.log_p_x, "elbo": -found.terms.elbo, "rate": found.terms.rate}
    return {
        **{key: mean_and_error(values) for key, values in nats.items()},
        "active": found.terms.active_units,
        "seconds": json.loads((folder.checkpoint / FACTS_FILE).read_text())["seconds"],
        "measuring_seconds": round(found.seconds, 1),
    }


def about(recipe: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the recipe without paths and threads of this machine, and without its Hub settings."""
    of_machine = {"training": {"output_dir", "cpu_threads", "tracker"}, "data": {"source"}}
    return {
        block: {key: value for key, value in values.items() if key not in of_machine.get(block, set())}
        for block, values in blocks_of(recipe).items()
        if block != "hub"
    }


def slug(arm: str) -> str:
    """Convert the name of an arm to a file name."""
    return re.sub("[^a-z0-9]+", "-", arm.lower())


def render(result: Result) -> str:
    rows = []
    for cell in result["cells"]:
        nll, elbo, rate = (cell[key] for key in ("nll", "elbo", "rate"))
        reached = verdict(nll["mean"], TARGET, at_most=True) if cell["arm"] == "VAE, 2 x 200" else ""
        figures = [f"{nll['mean']:.2f} ± {nll['standard_error']:.2f}", f"{elbo['mean']:.2f}", f"{rate['mean']:.2f}"]
        rows.append([cell["arm"], *figures, cell["active"], f"{cell['seconds'] / 60:.0f} min", reached])
    header = ["recipe", f"-log p(x), K = {result['K']}", "-ELBO", "rate", "active units", "training", "target"]
    return f"{result['digits']:,} digits, {result['data']}.\n\n" + table(header, rows)
