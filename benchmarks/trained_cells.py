"""Cells of tables whose entries are trainings: each cell is trained once, measured, and kept as JSON."""

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.ours import recipe_with, start
from benchmarks.report import Result, write_json
from benchmarks.scores import digit_data, digit_scores
from hf_ddpm import HFDDPMPipeline, HFDDPMScheduler
from hf_ddpm.errors import UserError
from hf_ddpm.likelihood import GridImages, draw_images, evaluate
from hf_ddpm.likelihood.report import mean_and_error
from hf_ddpm.metrics.reference import Reference
from hf_ddpm.objectives import MODEL

Overrides = Mapping[str, Mapping[str, Any]]
LIKELIHOOD_BATCH = 128


@dataclass(frozen=True)
class Trained:
    """A trained network with averaged weights; `last_loss` is the mean of the last 50 losses."""

    model: nn.Module
    scheduler: HFDDPMScheduler
    last_loss: float
    seconds: float


def complete(folder: Path, name: str, settings: Result, measure: Callable[[], Result], kept: bool) -> Result | None:
    """Return the result of a cell from disk if the settings agree, else None if `kept`, else measure and write it."""
    path = folder / f"{name}.json"
    settings = json.loads(json.dumps(settings))
    if path.exists():
        result = json.loads(path.read_text())
        if result["settings"] == settings:
            return result
    if kept:
        return None
    result = {"name": name, **measure(), "settings": settings}
    write_json(path, result)
    print(name, {key: value for key, value in result.items() if key not in ("name", "settings")}, flush=True)
    return result


def train(overrides: Overrides, steps: int) -> Trained:
    """Train the `mnist` recipe with some keys replaced, with the real training step, until a loss is not finite."""
    training = {"cpu_threads": torch.get_num_threads(), **overrides.get("training", {})}  # set by OMP_NUM_THREADS
    recipe = recipe_with("mnist", {**overrides, "training": training})
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        run, step = start(recipe, Path(folder) / "run", steps)
        losses: list[Tensor] = []
        while len(losses) < steps and (not losses or losses[-1].isfinite()):
            losses.append(step())
        seconds = time.perf_counter() - started
    return Trained(
        run.networks[MODEL], run.objective.scheduler, torch.stack(losses[-50:]).mean().item(), round(seconds, 1)
    )


def distance(trained: Trained, num_samples: int, against: Reference) -> Result:
    """Measure the digit distance and the share of samples by Algorithm 2 with all steps; None if any sample is NaN."""
    try:
        score, _ = digit_scores(HFDDPMPipeline(trained.model, trained.scheduler), num_samples, against)
    except UserError:
        return {"distance": None, "share": None}
    return {"distance": score["distance"], "share": score["share"]}


def test_images(folder: Path | None, count: int) -> GridImages:
    """Return the digits whose likelihood is measured, which are always the same."""
    return draw_images(digit_data(folder, "test"), count, seed=0)


def bits(trained: Trained, images: GridImages, seed: int) -> Result:
    """Measure bits/dim by the bound, with its standard error over the images, and its parts."""
    found = evaluate(
        trained.model, trained.scheduler, images, seed=seed, method="bound", batch_size=LIKELIHOOD_BATCH
    ).bound
    assert found is not None
    if not found.total.isfinite().all():
        return {"bits": None, "standard_error": None}
    total = mean_and_error(found.total)
    parts = {key: getattr(found, key).mean().item() for key in ("prior", "rate", "decoder")}
    return {"bits": total["mean"], "standard_error": total["standard_error"], **parts}
