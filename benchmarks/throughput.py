"""Training steps and sampling of the same network: hf_ddpm against diffusers' example and diffusers' pipelines."""

import copy
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

from benchmarks.diffusers_example import DiffusersExample
from benchmarks.options import Options
from benchmarks.ours import recipe_with, start
from benchmarks.report import Result, table, verdict
from benchmarks.timing import Rounds
from hf_ddpm import HFDDPMPipeline, HFDDPMScheduler
from hf_ddpm.data.sources import open_source
from hf_ddpm.objectives import MODEL

TITLE = "Throughput of the same network"
ABOUT = """Training: `optimizer_step` of training/train.py with AdamW against the loop of diffusers' example
(benchmarks/diffusers_example.py), both fed by their own data path from the embedded digits, with the same network and
batch. Sampling: HFDDPMPipeline against DDPMPipeline and DDIMPipeline, 10 steps, PIL images. Blocks take turns in one
process; times are medians, and the speed-up is the median of the ratios of the blocks. On a GPU, hf_ddpm also runs with
bf16, channels_last and torch.compile, against the unchanged example (fp32)."""
NETWORKS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "mnist": {},
    "small ddpm-cifar10, 3x32x32": {
        "data": {"image_size": 32, "channels": 3, "resize": "stretch"},
        "model": {"preset": "ddpm-cifar10", "block_out_channels": (64, 128, 128, 128)},
        "training": {"batch_size": 8},
    },
}
FAST_ON_GPU = {"training": {"mixed_precision": "bf16", "channels_last": True, "compile": True}}
ADAMW = {"optimizer": "adamw"}  # that of the example; the recipe's own optimizer is another algorithm
TINY = {"model": {"preset": "tiny"}, "training": {"batch_size": 2}}
SAMPLING_STEPS = 10


def measure(options: Options) -> Result:
    on_gpu = torch.cuda.is_available()
    networks = {"tiny": TINY} if options.quick else NETWORKS
    rows = []
    for name, overrides in networks.items():
        variants = {"as it comes": overrides}
        if on_gpu:
            faster = {**overrides.get("training", {}), **FAST_ON_GPU["training"]}
            variants["bf16, channels_last, compile"] = {**overrides, "training": faster}
        for variant, keywords in variants.items():
            rows += compare(name, variant, keywords, options.quick)
    return {"device": "cuda" if on_gpu else "cpu", "rows": rows}


def compare(name: str, variant: str, overrides: Mapping[str, Any], quick: bool) -> list[dict[str, Any]]:
    """Measure the rows of one network: a training step, and a sampling step with and without noise."""
    recipe = recipe_with("mnist", {**overrides, "optimization": ADAMW})
    rounds, calls = (1, 1) if quick else (8, 6)
    batch_size = recipe["training"]["batch_size"]
    with tempfile.TemporaryDirectory() as folder:
        if variant != "as it comes":
            AcceleratorState._reset_state()  # two precisions in one process
        run, our_step = start(recipe, Path(folder) / "run", total_steps=100_000)
        network: UNet2DModel = copy.deepcopy(run.networks[MODEL])
        if variant != "as it comes":
            AcceleratorState._reset_state()
        theirs = copy.deepcopy(network).train().requires_grad_(True)
        example = DiffusersExample(theirs, open_source("digits").rows, total_steps=100_000, batch_size=batch_size)
        times = Rounds({"ours": our_step, "stock": example.step}, rounds=rounds, calls=calls)
    rows = [_row(name, variant, "training step", batch_size, times, per_call=1)]
    for batch_size in (1,) if quick else (1, 16):
        for call, pipelines in samplers(network, recipe["training"], batch_size).items():
            times = Rounds(pipelines, rounds=1 if quick else 6)
            rows.append(_row(name, variant, f"sampling step, {call}", batch_size, times, SAMPLING_STEPS))
    return rows


def samplers(
    network: UNet2DModel, training: Mapping[str, Any], batch_size: int
) -> dict[str, dict[str, Callable[[], Any]]]:
    """Return functions that sample a batch with hf_ddpm and with diffusers, by kind of sampling."""
    ours = copy.deepcopy(network)
    if training.get("mixed_precision") == "bf16":
        ours = ours.to(torch.bfloat16)
    if training.get("channels_last"):
        ours = ours.to(memory_format=torch.channels_last)
    if training.get("compile"):
        ours.compile()
    pipeline = HFDDPMPipeline(ours, HFDDPMScheduler())
    stock = {"eta=1": DDPMPipeline(network, DDPMScheduler()), "eta=0": DDIMPipeline(network, DDIMScheduler())}
    for one in (pipeline, *stock.values()):
        one.set_progress_bar_config(disable=True)
    return {
        call: {
            "ours": lambda eta=eta: pipeline(batch_size, SAMPLING_STEPS, eta=eta),
            "stock": lambda call=call: stock[call](batch_size, num_inference_steps=SAMPLING_STEPS),
        }
        for call, eta in (("eta=1", 1.0), ("eta=0", 0.0))
    }


def _row(name: str, variant: str, call: str, batch_size: int, times: Rounds, per_call: int) -> dict[str, Any]:
    return {
        "network": name,
        "variant": variant,
        "call": call,
        "batch_size": batch_size,
        "ours_ms": times.median("ours") / per_call * 1e3,
        "stock_ms": times.median("stock") / per_call * 1e3,
        "speedup": times.speedup("ours", over="stock"),
        "target": 1.0 if variant == "as it comes" else 2.0,
    }


def render(result: Result) -> str:
    header = ["network", "ours", "call", "batch", "hf_ddpm, ms", "diffusers, ms", "times faster", "target"]
    rows = [
        [
            *(row[key] for key in ("network", "variant", "call", "batch_size", "ours_ms", "stock_ms", "speedup")),
            verdict(row["speedup"], row["target"]),
        ]
        for row in result["rows"]
    ]
    return f"On {result['device']}:\n\n" + table(header, rows)
