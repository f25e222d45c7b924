"""HFDDPMScheduler against DDPMScheduler and DDIMScheduler: microseconds per call, without a network."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from benchmarks.options import Options
from benchmarks.report import Result, table, verdict
from benchmarks.timing import Rounds
from hf_ddpm import HFDDPMScheduler

TITLE = "Scheduler: one call, 3x32x32"
ABOUT = """`step` is averaged over the 50 timesteps of a sampling run with default settings (epsilon prediction, linear
betas, clipped), and both sides draw the same noise from a generator; "new run" also includes the call of set_timesteps
before it. The contestants take turns; times are medians in microseconds, and the speed-up is the median of the ratios
of the rounds. With eta=1, the time of `step` includes drawing the noise on both sides; the time for the noise alone has
its own column."""
BATCH_SIZES = (1, 16, 64)
SAMPLING_STEPS = 50
TARGETS = {"step, eta=1": (5.0, 1.8, 1.7), "step, eta=0": (3.0, 3.0, 3.0), "add_noise": (2.5, 1.7, 1.2)}
STOCK = {
    "step, eta=1": "DDPMScheduler",
    "step, eta=0": "DDIMScheduler",
    "step, eta=1, new run": "DDPMScheduler",
    "step, eta=0, new run": "DDIMScheduler",
    "add_noise": "DDPMScheduler",
}


def measure(options: Options) -> Result:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rounds = 2 if options.quick else 30
    rows = [row for batch_size in BATCH_SIZES for row in compare(batch_size, device, rounds)]
    return {"device": device, "rows": rows}


def compare(batch_size: int, device: str, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each call: the times of hf_ddpm and diffusers, their ratio, and the time to draw the noise."""
    sample, output = torch.randn(2, batch_size, 3, 32, 32, device=device)
    generator = torch.Generator(device).manual_seed(0)
    t = torch.randint(1000, (batch_size,), device=device)
    schedulers = HFDDPMScheduler(), DDPMScheduler(), DDIMScheduler()
    for scheduler in schedulers:
        scheduler.set_timesteps(SAMPLING_STEPS)
    ours, ddpm, ddim = schedulers

    def walk(scheduler: Any, new_run: bool, **keywords: Any) -> Callable[[], None]:
        def all_steps() -> None:
            if new_run:
                scheduler.set_timesteps(SAMPLING_STEPS)
            for timestep in scheduler.timesteps:  # like pipelines, with one 0-dim tensor at a time
                scheduler.step(output, timestep, sample, generator=generator, **keywords)

        return all_steps

    def noising(scheduler: Any) -> Callable[[], Tensor]:
        return lambda: scheduler.add_noise(sample, output, t)

    def race(ours: Callable[[], object], stock: Callable[[], object], calls: int = 1) -> Rounds:
        return Rounds({"ours": ours, "stock": stock}, rounds=rounds, calls=calls)

    noise = Rounds({"noise": lambda: randn_tensor(sample.shape, generator, sample.device)}, rounds=rounds, calls=50)
    races = {"add_noise": race(noising(ours), noising(ddpm), calls=50)}
    for new_run, suffix in ((False, ""), (True, ", new run")):
        races[f"step, eta=1{suffix}"] = race(walk(ours, new_run, eta=1.0), walk(ddpm, new_run))
        races[f"step, eta=0{suffix}"] = race(walk(ours, new_run, eta=0.0), walk(ddim, new_run))
    return [row(call, batch_size, races[call], noise.median("noise")) for call in STOCK]


def row(call: str, batch_size: int, times: Rounds, noise: float) -> dict[str, Any]:
    calls = 1 if call == "add_noise" else SAMPLING_STEPS
    return {
        "call": call,
        "batch_size": batch_size,
        "ours_us": times.median("ours") / calls * 1e6,
        "stock_us": times.median("stock") / calls * 1e6,
        "noise_us": noise * 1e6 if "eta=1" in call else None,
        "speedup": times.speedup("ours", over="stock"),
        "target": TARGETS[call][BATCH_SIZES.index(batch_size)] if call in TARGETS else None,
    }


def render(result: Result) -> str:
    header = ["call", "against", "batch", "hf_ddpm, us", "diffusers, us", "noise, us", "times faster", "target"]
    rows = [
        [
            row["call"],
            STOCK[row["call"]],
            row["batch_size"],
            row["ours_us"],
            row["stock_us"],
            "-" if row["noise_us"] is None else row["noise_us"],
            row["speedup"],
            "-" if row["target"] is None else verdict(row["speedup"], row["target"]),
        ]
        for row in sorted(result["rows"], key=lambda row: list(STOCK).index(row["call"]))
    ]
    return f"On {result['device']}:\n\n" + table(header, rows)
