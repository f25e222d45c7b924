"""The program that benchmarks.before_after runs with the packages of each checkout, without imports from the other one.

It is passed to `python -c`, so that no module beside it is imported by mistake.
"""

import json
import multiprocessing
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors.torch import save_file

from hf_ddpm import HFDDPMPipeline, HFVAEPipeline
from hf_ddpm.cli import main as hf_ddpm
from hf_ddpm.training import train as _train  # noqa: F401  # imported here, so that every training has it in memory

STEPS, BATCH = 10, 16  # for a timed call


def opened(checkpoint: Path) -> tuple[DiffusionPipeline, dict[str, Any]]:
    """Open a checkpoint's pipeline, with the keyword arguments of a call if it draws in several steps."""
    name = json.loads((checkpoint / "model_index.json").read_text())["_class_name"]
    of_vae = name == "HFVAEPipeline"
    pipeline = (HFVAEPipeline if of_vae else HFDDPMPipeline).from_pretrained(checkpoint)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, {} if of_vae else {"num_inference_steps": 3}


def measure(checkpoint: Path, likelihood: list[str] | None) -> None:
    """Sample with the command and with the pipeline, and measure the likelihood, into the run's folder."""
    run = checkpoint.parent
    pipeline, steps = opened(checkpoint)
    words = ["--steps", "3"] if steps else []
    hf_ddpm(["sample", str(checkpoint), "-n", "4", *words, "--device", "cpu", "--out", str(run / "grid.png")])
    images = {}
    for eta in (None, 0.0) if steps else (None,):
        more = {**steps, **({"eta": eta} if steps else {})}
        drawn = pipeline(4, generator=torch.Generator().manual_seed(0), output_type="pt", **more).images
        images[f"eta {eta}"] = drawn.contiguous()
    save_file(images, run / "images.safetensors")
    if likelihood is not None:
        hf_ddpm(["likelihood", str(checkpoint), *likelihood, "--out", str(run / "likelihood.json")])


def sample(checkpoint: Path) -> None:
    """Print the seconds per step of a call for each line of input."""
    pipeline, _ = opened(checkpoint)
    for _ in sys.stdin:
        started = time.perf_counter()
        pipeline(BATCH, num_inference_steps=STEPS, eta=0.0, output_type="pt")
        print((time.perf_counter() - started) / STEPS, flush=True)


def train(words: list[str]) -> None:
    """Run `python training/train.py` with these arguments."""
    sys.argv = ["training/train.py", *words]
    runpy.run_path(sys.argv[0], run_name="__main__")


def apart(task: Callable[..., None], *arguments: Any) -> None:
    """Run a task in a new process, which has imported everything already."""
    process = multiprocessing.get_context("fork").Process(target=task, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"{task.__name__} failed with {arguments}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "sample":
        sample(Path(sys.argv[2]))
    else:
        for call in json.loads(sys.argv[2]):
            apart(train, call["train"])
            apart(measure, Path(call["checkpoint"]), call["likelihood"])
