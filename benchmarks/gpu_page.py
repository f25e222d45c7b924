"""The results of the GPU benchmark, as sections of the page."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu_job import RECIPE
from benchmarks.report import Result, section, table

TITLE = "One GPU, ten minutes"
ABOUT = """This section compares hf_ddpm with diffusers on the network of the `cifar10` recipe; it is written by `make
bench-gpu`. Training: a step of training/train.py with the settings of the recipe and bf16, against the loop of
diffusers' example (benchmarks/diffusers_example.py) with bf16 by Accelerate, with and without `torch.compile` on both
sides. Each side is fed by its own data path, the example's with and without workers that decode its images. Sampling:
HFDDPMPipeline with its default sampler (UniPC) against DDIMPipeline and against the same solver in a plain loop of
diffusers' components, with the same number of network calls, under bf16 autocast, to PIL images. The contestants take
turns in one process; times are medians of the rounds, and "times faster" is the median of the ratios of the rounds. The
recipe is then trained for the rest of the ten minutes, with a shorter warm-up than its own. During training, its
Fréchet distance (EfficientNet-Lite0, not an FID) is measured against the training images, and the last one against test
images."""
ABOUT_THE_CLOCK = """`make bench-gpu ARGS="--recipe <name>"`: the recipe as it ships, with bf16, trained for ten
minutes, so that its learning rate stays at its peak. Its Fréchet distance (EfficientNet-Lite0, not FID) during training
is against the training images, the last one against test images."""
FOLDER, REHEARSAL = "gpu", "rehearsal"
NO_GPU = """**This is a rehearsal on a CPU, with a tiny network, few images and fp32, which shows that the script runs.
None of the numbers below was measured on a GPU, and none of them is meaningful.**"""
HOW_ENDED = {
    "at its limit": "This part was stopped at its limit of {limit_seconds:g} s; figures up to then are shown.",
    "with an error": "This part failed after {took_seconds:g} s: {error}",
}


def sections(results: Path) -> list[str]:
    """Return a section for each measured device, or those of rehearsals if there is none."""
    files = sorted((results / FOLDER).glob("*.json"))
    measured = [file for file in files if not file.stem.startswith(REHEARSAL)] or files
    return [page_of(file) for file in measured]


def page_of(file: Path) -> str:
    """Return the section of one file of results."""
    result = json.loads(file.read_text())
    about = ABOUT if result["recipe"] == RECIPE else ABOUT_THE_CLOCK
    return section(title(result), about, result, render(result))


def title(result: Result) -> str:
    """Return the title of a section, which names the device or says that it is a rehearsal."""
    of = "" if result["recipe"] == RECIPE else f", {result['recipe']}"
    return f"{TITLE}{of}: {'a rehearsal without a GPU' if result['rehearsal'] else result['device']}"


def render(result: Result) -> str:
    """Render the parts that have started, in order."""
    parts = result["parts"]
    shown = [" ".join(NO_GPU.split())] if result["rehearsal"] else []
    shown.append(f"Recipe `{result['recipe']}`, data: {result['data']}, seed {result['seed']}.")
    for name, rendered in (("training", speed), ("sampling", speed), ("quality", quality)):
        if name in parts:
            shown += [f"### {name.capitalize()}", *rendered(name, parts[name]), *how_ended(parts[name])]
    return "\n\n".join(shown)


def speed(name: str, part: Mapping[str, Any]) -> list[str]:
    """Render the images per second of the last measured stage."""
    if not part.get("stages"):
        return []
    stage, first = part["stages"][-1], part.get("first_call_seconds", {})
    rows = [
        [who, f"{images:,.0f}" if images >= 100 else images, part["batch_size"] / images * 1e3, first.get(who, "-")]
        for who, images in stage["images_per_second"].items()
    ]
    one = "step" if name == "training" else "call"
    header = ["", "images/s", f"ms per {one}", "first call, s"]
    ratios = [[row["of"], row["over"], row["ratio"]] for row in stage["times_faster"]]
    more = f"{part['workers']} workers" if name == "training" else f"{part['network_calls']} network calls"
    about = f"Batches of {part['batch_size']}, {more}, mixed precision: {part['mixed_precision']}."
    about += f" {stage['rounds']} rounds."
    return [about, table(header, rows), table(["", "against", "times faster"], ratios)]


def quality(name: str, part: Mapping[str, Any]) -> list[str]:
    """Render the Fréchet distance during training and at the end."""
    points = part.get("points", [])
    if not points:
        return []
    rows = [[point["step"], f"{point['images']:,}", point["seconds"], point["value"]] for point in points]
    header = ["steps", "images seen", "training, s", f"{points[0]['name']}, against training images"]
    compiled = "compiled" if part["compiled"] else "not compiled"
    about = f"Batches of {part['batch_size']}, {compiled}, {part['warmup_steps']} steps of warm-up, "
    about += f"{part['samples']:,} samples per evaluation."
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
    """Return a sentence about a part that did not end in time."""
    sentence = HOW_ENDED.get(part.get("ended", ""))
    return [] if sentence is None else [sentence.format_map(part)]
