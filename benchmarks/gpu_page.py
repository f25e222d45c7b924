"""What the GPU benchmark found, as sections of the page."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu_job import RECIPE
from benchmarks.report import Result, section, table

TITLE = "One GPU, ten minutes"
ABOUT = """`make bench-gpu`, the `cifar10` recipe's network. Training: a step of training/train.py as the recipe has it,
with bf16, against the loop of diffusers' example (benchmarks/diffusers_example.py) with bf16 by Accelerate, without
and with `torch.compile` on both sides, each fed by its own data path, the example's with and without workers that
decode its images. Sampling: HFDDPMPipeline with its default sampler (UniPC) against DDIMPipeline and against the same
solver in a plain loop of diffusers' parts, with as many network calls, under bf16 autocast, to PIL images. Contestants
take turns in one process; figures are medians of the rounds, "times faster" is the median of the rounds' ratios. Then
the recipe is trained by the clock in what is left of ten minutes, with a shorter warm-up than its own. Its Fréchet
distance (EfficientNet-Lite0, no FID) on the way is against the training images, the last one against test images."""
ABOUT_THE_CLOCK = """`make bench-gpu ARGS="--recipe <name>"`: the recipe as it ships, with bf16, trained by the clock
for ten minutes, so that its learning rate stays at its peak. Its Fréchet distance (EfficientNet-Lite0, no FID) on the
way is against the training images, the last one against test images."""
FOLDER, REHEARSAL = "gpu", "rehearsal"
NO_GPU = """**A rehearsal on a CPU, with a tiny network, few images and fp32: it shows that the script runs. No figure
below was taken on a GPU, and none means anything.**"""
HOW_ENDED = {
    "at its limit": "This part was ended at its limit of {limit_seconds:g} s; what it had measured stands here.",
    "with an error": "This part failed after {took_seconds:g} s: {error}",
}


def sections(results: Path) -> list[str]:
    """A section for each device that was measured; the rehearsal's, as long as there is none."""
    files = sorted((results / FOLDER).glob("*.json"))
    measured = [file for file in files if not file.stem.startswith(REHEARSAL)] or files
    return [page_of(file) for file in measured]


def page_of(file: Path) -> str:
    """The section of one file of results."""
    result = json.loads(file.read_text())
    about = ABOUT if result["recipe"] == RECIPE else ABOUT_THE_CLOCK
    return section(title(result), about, result, render(result))


def title(result: Result) -> str:
    """What was measured; a rehearsal says that it is one."""
    of = "" if result["recipe"] == RECIPE else f", {result['recipe']}"
    return f"{TITLE}{of}: {'a rehearsal without a GPU' if result['rehearsal'] else result['device']}"


def render(result: Result) -> str:
    """The parts that have begun, in their order."""
    parts = result["parts"]
    shown = [" ".join(NO_GPU.split())] if result["rehearsal"] else []
    shown.append(f"Recipe `{result['recipe']}`, data: {result['data']}, seed {result['seed']}.")
    for name, rendered in (("training", speed), ("sampling", speed), ("quality", quality)):
        if name in parts:
            shown += [f"### {name.capitalize()}", *rendered(name, parts[name]), *how_ended(parts[name])]
    return "\n\n".join(shown)


def speed(name: str, part: Mapping[str, Any]) -> list[str]:
    """Images a second of the latest stage that has been measured."""
    if not part.get("stages"):
        return []
    stage, first = part["stages"][-1], part.get("first_call_seconds", {})
    rows = [
        [who, f"{images:,.0f}" if images >= 100 else images, part["batch_size"] / images * 1e3, first.get(who, "-")]
        for who, images in stage["images_per_second"].items()
    ]
    one = "step" if name == "training" else "call"
    header = ["", "images/s", f"ms a {one}", "s of the first call"]
    ratios = [[row["of"], row["over"], row["ratio"]] for row in stage["times_faster"]]
    more = f"{part['workers']} workers" if name == "training" else f"{part['network_calls']} network calls"
    about = f"Batches of {part['batch_size']}, {more}, mixed precision: {part['mixed_precision']}."
    about += f" {stage['rounds']} rounds."
    return [about, table(header, rows), table(["", "against", "times faster"], ratios)]


def quality(name: str, part: Mapping[str, Any]) -> list[str]:
    """The Fréchet distance on the way and at the end."""
    points = part.get("points", [])
    if not points:
        return []
    rows = [[point["step"], f"{point['images']:,}", point["seconds"], point["value"]] for point in points]
    header = ["steps", "images seen", "s of training", f"{points[0]['name']}, against training images"]
    compiled = "compiled" if part["compiled"] else "not compiled"
    about = f"Batches of {part['batch_size']}, {compiled}, {part['warmup_steps']} steps of warm-up, "
    about += f"{part['samples']:,} samples an evaluation."
    if "first_step_seconds" in part:
        about += f" The first step took {part['first_step_seconds']:.1f} s."
    shown = [about, table(header, rows)]
    if "final" in part:
        final = part["final"]
        shown.append(
            f"At the end, after {part['steps']:,} steps and {part['seconds']:.0f} s of training: {final['name']} "
            f"{final['value']:.4g} against the {final['measured_on']}; 100 images took "
            f"{final['seconds_for_100']:.3g} s."
        )
    if "grid" in part:
        shown.append(f"![Samples after {part['grid_step']:,} steps](results/{FOLDER}/{part['grid']})")
    return shown


def how_ended(part: Mapping[str, Any]) -> list[str]:
    """A sentence on a part that did not end in time."""
    sentence = HOW_ENDED.get(part.get("ended", ""))
    return [] if sentence is None else [sentence.format_map(part)]
