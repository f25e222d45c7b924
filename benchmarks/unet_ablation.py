"""The effect of the skips and the time embedding: the `mnist` UNet trained unchanged, without skips, and without t.

See docs/unet.md.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from PIL import Image
from torch import Tensor, nn

from benchmarks.options import Options
from benchmarks.ours import recipe_with
from benchmarks.report import Result, table
from benchmarks.scores import digit_source, digits
from hf_ddpm import HFDDPMPipeline, HFDDPMScheduler, unet_preset
from hf_ddpm.data import Batch, ImageData
from hf_ddpm.objectives import MODEL, Draws, make_objective
from hf_ddpm.objectives.diffusion import DiffusionObjective
from hf_ddpm.sampling import image_grid, sample_images
from hf_ddpm.training.recipe import Recipe
from hf_ddpm.training.settings import Optimization

TITLE = "The UNet without skip connections and without t"
ABOUT = """The `mnist` recipe, with v-prediction and without averaging of the weights, was trained three times from the
same weights on the same batches, t and noise: unchanged; with zeros in place of every skip connection; and with zeros
in place of the time embedding. The number of weights remains the same. The table shows L_simple of the v-prediction on
held-out digits, with the same draws of t and noise for every arm, in thirds of the 1,000 noise levels. A grid from each
of them, from the same x_T, is in `results/unet_ablation.png`."""
PREDICTS_V = {"scheduler": {"prediction_type": "v_prediction"}, "objective": {"logit_mean": 0.8}}
STEPS = 2000
HELD_OUT, REPEATS, GRID, SAMPLING_STEPS = 500, 4, 36, 50
THIRDS = ("low noise", "middle", "high noise")


def measure(options: Options) -> Result:
    steps, held_out = (2, 8) if options.quick else (STEPS, HELD_OUT)
    source = digit_source(options.data, "train")
    recipe = recipe_with("mnist", {"data": source, "training": {"seed": options.seeds[0]}, **PREDICTS_V})
    x_0 = digits(options.data, "test", held_out)
    arms = {name: run_arm(name, recipe, x_0, steps) for name in ARMS}
    save_strip(options.out / "results" / "unet_ablation.png", [grid for _, grid in arms.values()])
    return {"steps": steps, "seed": options.seeds[0], "arms": {name: row for name, (row, _) in arms.items()}}


def full(model: UNet2DModel) -> None:
    """Leave the network unchanged."""


def skips_off(model: UNet2DModel) -> None:
    """Replace every skip of the up blocks by zeros; the blocks are called with (h, skips, temb)."""

    def zero(block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        h, skips, *rest = inputs
        return (h, tuple(torch.zeros_like(skip) for skip in skips), *rest)

    for block in model.up_blocks:
        block.register_forward_pre_hook(zero)


def time_off(model: UNet2DModel) -> None:
    """Replace temb by zeros: residual blocks then only have the bias of their projection, the same for every t."""
    model.time_embedding.register_forward_hook(lambda module, inputs, temb: torch.zeros_like(temb))


ARMS: dict[str, Callable[[UNet2DModel], None]] = {"full": full, "skips off": skips_off, "time embedding off": time_off}


def train(model: UNet2DModel, recipe: Recipe, steps: int) -> None:
    """Train like the recipe, without averaging; batches, t and noise depend only on the seed and the step."""
    objective = make_objective(HFDDPMScheduler(**recipe["scheduler"]), **recipe["objective"])
    optimization = Optimization(**recipe["optimization"])
    optimizer = optimization.build(model)
    batch_size, seed = recipe["training"]["batch_size"], recipe["training"]["seed"]
    generator = torch.Generator().manual_seed(seed)
    batches = ImageData(**recipe["data"]).batches(batch_size=batch_size, seed=seed)
    for step, batch in zip(range(steps), batches, strict=False):
        optimization.set_learning_rate(optimizer, step, steps)
        draws = objective.draw(batch.x_0.shape, generator, step)
        (draws.weight * objective.loss(MODEL, {MODEL: model}, batch, draws, step).each).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), optimization.max_grad_norm or math.inf)
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def evaluate(model: UNet2DModel, objective: DiffusionObjective, x_0: Tensor) -> dict[str, float]:
    """Measure L_simple on held-out digits by thirds of the levels, with uniform t and the same draws for every arm."""
    generator = torch.Generator().manual_seed(2_024)
    third = len(objective.scheduler) / len(THIRDS)
    batch, result = Batch(x_0, None, torch.arange(len(x_0))), {}
    for i, name in enumerate(THIRDS):
        total = 0.0
        for _ in range(REPEATS):
            t = (third * (i + torch.rand(len(x_0), generator=generator))).long()
            draws = Draws({"t": t, "noise": torch.randn(x_0.shape, generator=generator)}, torch.ones(len(x_0)))
            total += objective.loss(MODEL, {MODEL: model}, batch, draws, step=0).each.mean().item()
        result[name] = total / REPEATS
    return {**result, "all": sum(result.values()) / len(THIRDS)}


def sample(model: UNet2DModel, scheduler: HFDDPMScheduler, steps: int) -> Image.Image:
    """Draw a grid with DDIM; image i starts from the same x_T in every arm."""
    pipeline = HFDDPMPipeline(model, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    images = sample_images(pipeline, range(GRID), seed=7, batch_size=GRID, num_inference_steps=steps, eta=0.0)
    return image_grid(images)


def run_arm(name: str, recipe: Recipe, held_out: Tensor, steps: int) -> tuple[dict[str, Any], Image.Image]:
    """Train one arm, and return its losses and its grid."""
    torch.manual_seed(recipe["training"]["seed"])
    model = unet_preset("mnist")
    ARMS[name](model)
    started = time.perf_counter()
    train(model, recipe, steps)
    seconds = time.perf_counter() - started
    model.eval()
    scheduler = HFDDPMScheduler(**recipe["scheduler"])
    losses = evaluate(model, make_objective(scheduler), held_out)
    return {"loss": losses, "seconds": round(seconds, 1)}, sample(model, scheduler, min(steps, SAMPLING_STEPS))


def save_strip(path: Path, grids: list[Image.Image]) -> None:
    """Save the grids side by side."""
    gap = 14
    strip = Image.new("L", (len(grids) * (grids[0].width + gap) - gap, grids[0].height), "white")
    for i, grid in enumerate(grids):
        strip.paste(grid, (i * (grid.width + gap), 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    strip.save(path)


def render(result: Result) -> str:
    losses = {name: row["loss"] for name, row in result["arms"].items()}
    rows = [[name, *loss.values(), loss["all"] / losses["full"]["all"]] for name, loss in losses.items()]
    header = ["L_simple, held out", *THIRDS, "all", "ratio to full"]
    settings = f"{result['steps']:,} steps, seed {result['seed']}."
    return settings + "\n\n" + table(header, rows)
