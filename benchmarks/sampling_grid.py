"""One checkpoint under every sampler: steps, eta, spacing and diffusers' solvers against 1,000-step DDPM.

    python -m benchmarks.run --only sampling_grid --checkpoint runs/mnist/checkpoint --data <folder>

Cells are kept in results/sampling_grid/cells.json as they are finished: a run that was cut goes on where it stopped,
and begins anew when the checkpoint, the data or the number of samples are others.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch

from benchmarks.options import Options
from benchmarks.quality_cell import about_data, digit_pixels, reference
from benchmarks.report import Result, table, verdict, write_json
from hf_ddpm import HFDDPMPipeline, HFDDPMScheduler, unet_preset
from hf_ddpm.checkpoint import load_pipeline
from hf_ddpm.metrics import digit_score
from hf_ddpm.sampling import count_calls, sample_images, use_algorithm_2
from hf_ddpm.weights import weights_sha256

TITLE = "Samplers: steps, eta and spacing (DDIM, Table 1 in small)"
ABOUT = """One checkpoint of the `mnist` recipe (`make train`: 5,000 embedded digits), sampled in every way; digit
distance of 1,000 samples to the test digits (smaller is better; it is no FID), image i from the same x_T in every cell.
eta as in DDIM, eq. 16; sigma-hat is DDPM's `fixed_large` on the sub-sequence. DDIM's paper has the same table for
CIFAR-10, linear schedule, epsilon prediction; this checkpoint has a cosine schedule and predicts v."""
STEPS, ETAS, SEED, BATCH = (5, 10, 20, 50, 100), (0.0, 0.2, 0.5, 1.0, "sigma-hat"), 0, 100
SOLVERS = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "HeunDiscreteScheduler", "EulerDiscreteScheduler")


@dataclass(frozen=True)
class Cell:
    """One sampler.

    Args:
        steps: S.
        eta: in [0, 1], `sigma-hat`, or None for Algorithm 2 with the checkpoint's variance (and for solvers).
        spacing: of the timesteps.
        solver: a diffusers scheduler instead of ours.
    """

    steps: int
    eta: float | str | None
    spacing: str
    solver: str | None = None

    @property
    def name(self) -> str:
        return f"{self.solver or f'eta {self.eta}'}, {self.spacing}, S {self.steps}"


def all_cells(quick: bool) -> list[Cell]:
    steps = STEPS[:1] if quick else STEPS
    cells = [Cell(s, eta, "leading") for s in steps for eta in ETAS]
    cells += [Cell(s, eta, spacing) for spacing in ("trailing", "quadratic") for s in steps for eta in (0.0, 1.0)]
    cells += [Cell(s, None, "trailing", solver) for solver in SOLVERS for s in (5, 10, 20)[: len(steps)]]
    return cells if quick else [*cells, Cell(1000, None, "leading"), Cell(1000, "sigma-hat", "leading")]


def measure(options: Options) -> Result:
    num_samples = 16 if options.quick else 1000
    checkpoint = untrained_checkpoint(options.out) if options.quick else options.checkpoint
    settings = {
        "checkpoint_sha256": weights_sha256(load_pipeline(str(checkpoint)).unet),
        "data": about_data(options.data),
        "num_samples": num_samples,
        "seed": SEED,
    }
    path = options.out / "results" / "sampling_grid" / "cells.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    results = known["cells"] if known.get("settings") == settings else {}
    against = reference(options.data)
    for cell in all_cells(options.quick):
        if cell.name not in results and not options.kept:
            started = time.perf_counter()
            pixels, calls = draw(checkpoint, cell, num_samples)
            score = digit_score(pixels, against)
            seconds = round(time.perf_counter() - started, 1)
            results[cell.name] = {**vars(cell), "network_calls": calls, **score._asdict(), "seconds": seconds}
            write_json(path, {"settings": settings, "cells": results})
            print(f"{cell.name}: {score.distance:.1f}, share {score.share:.2f}, {calls} calls", flush=True)
    return {**settings, "cells": [results[c.name] for c in all_cells(options.quick) if c.name in results]}


def untrained_checkpoint(out: Path) -> Path:
    """A network that saw nothing, 20 steps long."""
    folder = out / "untrained"
    torch.manual_seed(SEED)
    HFDDPMPipeline(unet_preset("mnist"), HFDDPMScheduler(20)).save_pretrained(folder)
    return folder


def draw(checkpoint: Path, cell: Cell, num_samples: int) -> tuple[torch.Tensor, int]:
    """uint8 samples (N, 1, 28, 28), and the network calls that each took."""
    pipeline = load_pipeline(str(checkpoint))
    pipeline.set_progress_bar_config(disable=True)
    sizes = count_calls(pipeline.unet)
    config: dict[str, Any] = {**pipeline.scheduler.config}
    if cell.solver is not None:
        pipeline.scheduler = getattr(diffusers, cell.solver).from_config(config, timestep_spacing=cell.spacing)
    elif cell.eta == "sigma-hat":
        use_algorithm_2(pipeline, "fixed_large")
    eta = cell.eta if isinstance(cell.eta, float) else None
    images = sample_images(
        pipeline,
        range(num_samples),
        seed=SEED,
        batch_size=BATCH,
        num_inference_steps=cell.steps,
        timestep_spacing=None if cell.solver else cell.spacing,
        eta=eta,
    )
    return digit_pixels(list(images)), sum(sizes) // num_samples


def render(result: Result) -> str:
    cells = result["cells"]
    ddpm = next((c for c in cells if c["steps"] == 1000 and c["eta"] is None), None)
    steps = sorted({c["steps"] for c in cells if c["solver"] is None and c["steps"] < 1000})
    rows = []
    for label, pick in lines(cells):
        by_steps = {c["steps"]: c for c in cells if pick(c)}
        rows.append([label, *(by_steps.get(s, {}).get("distance", "") for s in [*steps, 1000])])
    parts = [
        f"{result['num_samples']:,} samples a cell, seed {result['seed']}, {result['data']}; weights "
        f"sha256 {result['checkpoint_sha256'][:12]}.",
        table(["", *(f"S = {s}" for s in [*steps, 1000])], rows),
        calls_note(cells),
    ]
    missing = len(all_cells(quick=False)) - len(cells)
    parts += [f"{missing} cells are not measured yet."] if missing else []
    return "\n\n".join([*parts, *([targets(cells, ddpm["distance"])] if ddpm else [])])


def lines(cells: list[Result]) -> list[tuple[str, Any]]:
    """The rows of the table: a label and which cells are on it."""

    def on(**wanted: Any) -> Any:
        return lambda c: all(c[key] == value for key, value in wanted.items())

    rows = [
        (f"eta {eta}, leading" if eta != "sigma-hat" else "sigma-hat, leading", on(eta=eta, spacing="leading"))
        for eta in ETAS
    ]
    rows += [
        (f"eta {eta}, {spacing}", on(eta=eta, spacing=spacing))
        for spacing in ("trailing", "quadratic")
        for eta in (0.0, 1.0)
    ]
    rows += [("Algorithm 2 (fixed_small)", on(eta=None, solver=None))]
    return rows + [(f"{solver.removesuffix('Scheduler')}, trailing", on(solver=solver)) for solver in SOLVERS]


def calls_note(cells: list[Result]) -> str:
    others = [c for c in cells if c["network_calls"] != c["steps"]]
    told = ", ".join(f"{c['solver'] or c['spacing']} S = {c['steps']}: {c['network_calls']}" for c in others)
    return f"Network calls are S but for {told}." if others else "Network calls are S everywhere."


def targets(cells: list[Result], ddpm: float) -> str:
    """What the project wants, against 1,000-step DDPM."""
    ddim = min(c["distance"] for c in cells if c["steps"] == 20 and c["eta"] == 0.0)
    solver = next(c["distance"] for c in cells if c["steps"] == 10 and c["solver"] == SOLVERS[0])
    rows = [
        ("20 DDIM steps (best spacing) over 1,000-step DDPM", ddim / ddpm, verdict(ddim / ddpm, 1.15, at_most=True)),
        ("10 DPM-Solver++ steps over it", solver / ddpm, verdict(solver / ddpm, 1.15, at_most=True)),
    ]
    return table(["", "value", "target"], rows)
