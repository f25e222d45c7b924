"""The overhead of the pipeline and the scheduler: a sampling step against the network call alone."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.options import Options
from benchmarks.report import Result, table, verdict
from benchmarks.timing import Rounds
from hf_ddpm import HFDDPMPipeline, HFDDPMScheduler, unet_preset

TITLE = "Overhead of a sampling step"
ABOUT = """HFDDPMPipeline, from x_T to a tensor of images, is compared with a loop of only the network over the same
timesteps, with the same batch. Both take turns in one process; the overhead is the median over the rounds of pipeline /
network - 1."""
NETWORKS: dict[str, dict[str, Any]] = {
    "mnist": {},
    "small ddpm-cifar10, 3x32x32": {"preset": "ddpm-cifar10", "block_out_channels": (64, 128, 128, 128)},
}
ROUNDS = {"mnist": 61}  # others have 9: their rounds take twenty times as long, and so vary less
STEPS, BATCH, TARGET = 20, 16, 0.03


def measure(options: Options) -> Result:
    networks = {"tiny": {"preset": "tiny"}} if options.quick else NETWORKS
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for name, keywords in networks.items():
        pipeline = make_pipeline(**{"preset": "mnist", **keywords}).to(device)
        for label, eta in (("Algorithm 2", None), ("eta 0", 0.0)):
            rounds = 1 if options.quick else ROUNDS.get(name, 9)
            times = Rounds(contestants(pipeline, eta), rounds=rounds)
            pipeline_ms, network_ms = (times.median(who) / STEPS * 1e3 for who in ("pipeline", "network"))
            overhead = times.speedup("network", over="pipeline") - 1
            rows.append([name, label, BATCH, network_ms, pipeline_ms, overhead])
    return {"device": device, "rows": rows}


def make_pipeline(preset: str, **keywords: Any) -> HFDDPMPipeline:
    pipeline = HFDDPMPipeline(unet_preset(preset, **keywords).eval(), HFDDPMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def contestants(pipeline: HFDDPMPipeline, eta: float | None) -> dict[str, Callable[[], object]]:
    size = pipeline.unet.config["sample_size"]
    x_T = torch.randn(BATCH, pipeline.unet.config["in_channels"], size, size, device=pipeline.device)
    timesteps = torch.arange(0, 1000, 1000 // STEPS, device=pipeline.device).flip(0)

    @torch.no_grad()
    def network() -> None:
        for t in timesteps:
            pipeline.unet(x_T, t)

    return {
        "network": network,
        "pipeline": lambda: pipeline(BATCH, STEPS, eta=eta, latents=x_T, output_type="pt"),
    }


def render(result: Result) -> str:
    header = ["network", "sampler", "batch", "network, ms", "pipeline, ms", "overhead, %", "target"]
    rows = [
        [*row[:5], f"{100 * row[5]:.1f}", verdict(100 * row[5], 100 * TARGET, at_most=True)] for row in result["rows"]
    ]
    return f"On {result['device']}, {STEPS} steps:\n\n" + table(header, rows)
