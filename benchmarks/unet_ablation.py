"""What the skips and the time embedding are worth: the `mnist` UNet trained whole, without skips, and without t.

    python benchmarks/unet_ablation.py --steps 2000 --seed 0 --out benchmarks/results/unet_ablation

trains on the embedded digits (4,500 for training, 500 held out), or with `--data FOLDER` on its train split, held out
against its test split. The three arms share initial weights, batches, times and noise; what is off becomes zeros,
so the number of weights stays the same. Writes `unet_ablation.json` (losses, settings, machine) and `unet_ablation.png`
(samples of the three arms side by side, from the same x_T) into `--out`.

The loss is L_simple of the v-prediction on held-out digits, in thirds of the T noise levels. See docs/unet.md.
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import UNet2DModel
from PIL import Image
from torch import Tensor, nn

from hf_ddpm import HFDDPMPipeline, HFDDPMScheduler, unet_preset
from hf_ddpm.data import ImageData, to_uint8
from hf_ddpm.objectives import SimpleObjective

LR, BETAS, WARMUP, BATCH_SIZE = 2e-3, (0.9, 0.99), 50, 32
HELD_OUT, REPEATS, GRID, SAMPLING_STEPS = 500, 4, 6, 50
THIRDS = ("low noise", "middle", "high noise")


def full(model: UNet2DModel) -> None:
    """The network as it is."""


def skips_off(model: UNet2DModel) -> None:
    """Zeros in place of every skip that an up block reads; it is called with (h, skips, temb)."""

    def zero(block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        h, skips, *rest = inputs
        return (h, tuple(torch.zeros_like(skip) for skip in skips), *rest)

    for block in model.up_blocks:
        block.register_forward_pre_hook(zero)


def time_off(model: UNet2DModel) -> None:
    """Zeros in place of temb: a residual block is left with the bias of its own projection, the same for every t."""
    model.time_embedding.register_forward_hook(lambda module, inputs, temb: torch.zeros_like(temb))


ARMS: dict[str, Callable[[UNet2DModel], None]] = {"full": full, "skips off": skips_off, "time embedding off": time_off}


def digits(data: ImageData, batch_size: int, seed: int) -> Iterator[Tensor]:
    """x_0 (B, 1, 28, 28) in [-1, 1], without end."""
    return (batch.x_0 for batch in data.batches(batch_size=batch_size, seed=seed))


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine to zero, as a factor of LR."""
    warmup = min(WARMUP, steps // 4)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(steps - warmup, 1))


def train(model: UNet2DModel, objective: SimpleObjective, data: ImageData, steps: int, seed: int) -> None:
    """AdamW on L_simple; batches, t and noise depend on the seed and the step only."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, weight_decay=0.0)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps))
    generator = torch.Generator().manual_seed(seed)
    for step, x_0 in zip(range(1, steps + 1), digits(data, BATCH_SIZE, seed), strict=False):
        loss = objective(model, x_0, *objective.draw(x_0.shape, generator))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rates.step()
        if step % max(steps // 20, 1) == 0:
            print(f"  step {step}/{steps}  loss {loss.item():.4f}", flush=True)


@torch.no_grad()
def evaluate(model: UNet2DModel, objective: SimpleObjective, x_0: Tensor) -> dict[str, float]:
    """Held-out L_simple in thirds of the levels: t uniform in each, the same draws for every arm."""
    generator = torch.Generator().manual_seed(2_024)
    third = len(objective.scheduler) / len(THIRDS)
    result = {}
    for i, name in enumerate(THIRDS):
        total = 0.0
        for _ in range(REPEATS):
            t = (third * (i + torch.rand(len(x_0), generator=generator))).long()
            total += objective(model, x_0, t, torch.randn(x_0.shape, generator=generator)).item()
        result[name] = total / REPEATS
    return {**result, "all": sum(result.values()) / len(THIRDS)}


def sample(model: UNet2DModel, scheduler: HFDDPMScheduler) -> Tensor:
    """DDIM from one fixed x_T: a grid (GRID * 28, GRID * 28) uint8."""
    x_T = torch.randn(GRID**2, 1, 28, 28, generator=torch.Generator().manual_seed(7))
    pipeline = HFDDPMPipeline(model, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(GRID**2, SAMPLING_STEPS, eta=0.0, latents=x_T, output_type="pt", return_dict=False)[0]
    tiles = to_uint8(images * 2 - 1).view(GRID, GRID, 28, 28)
    return tiles.permute(0, 2, 1, 3).reshape(GRID * 28, GRID * 28)


def run_arm(name: str, data: ImageData, held_out: Tensor, steps: int, seed: int) -> tuple[dict[str, Any], Tensor]:
    """Train one arm from the seed; its losses and its grid."""
    print(name, flush=True)
    torch.manual_seed(seed)
    model = unet_preset("mnist")
    ARMS[name](model)
    scheduler = HFDDPMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", timestep_spacing="trailing"
    )
    objective = SimpleObjective(scheduler)
    start = time.perf_counter()
    train(model, objective, data, steps, seed)
    seconds = time.perf_counter() - start
    model.eval()
    row = {"loss": evaluate(model, objective, held_out), "seconds": round(seconds, 1)}
    print(f"  held out: {row['loss']}", flush=True)
    return row, sample(model, scheduler)


def machine() -> dict[str, Any]:
    return {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {platform.system()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }


def save(folder: Path, report: dict[str, Any], grids: list[Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "unet_ablation.json").write_text(json.dumps(report, indent=2) + "\n")
    gap = torch.full((grids[0].shape[0], 14), 255, dtype=torch.uint8)
    strip = torch.cat([part for picture in grids for part in (picture, gap)][:-1], dim=1)
    Image.fromarray(strip.numpy()).save(folder / "unet_ablation.png")
    print(f"wrote {folder / 'unet_ablation.json'} and {folder / 'unet_ablation.png'}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="folder with the splits train and test; default: the embedded digits")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/unet_ablation"))
    return parser.parse_args()


def main(data: str | None, steps: int, seed: int, out: Path) -> None:
    if data is None:
        training, held = ImageData("digits", split="train[:4500]"), ImageData("digits", split="train[4500:]")
    else:
        training, held = ImageData(data, split="train"), ImageData(data, split="test")
    held_out = next(digits(held, HELD_OUT, seed=0))
    results = {name: run_arm(name, training, held_out, steps, seed) for name in ARMS}
    settings = {"data": "given" if data else "digits", "steps": steps, "seed": seed, "batch_size": BATCH_SIZE, "lr": LR}
    report = {**machine(), **settings, "arms": {name: row for name, (row, _) in results.items()}}
    save(out, report, [picture for _, picture in results.values()])


if __name__ == "__main__":
    options = parse()
    main(options.data, options.steps, options.seed, options.out)
