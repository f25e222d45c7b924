"""Images per second of training and sampling: hf_ddpm and diffusers take turns in one process, with one network."""

import copy
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate.state import AcceleratorState
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, UNet2DModel
from torch import nn

from benchmarks.diffusers_example import DiffusersExample
from benchmarks.gpu_job import Job, device
from benchmarks.ours import start
from benchmarks.timing import seconds_per_call
from hf_ddpm import HFDDPMPipeline, HFDDPMScheduler
from hf_ddpm.data.sources import open_source
from hf_ddpm.objectives import MODEL
from hf_ddpm.sampling import use_default_sampler
from hf_ddpm.training.diffusion import build_model

Call = Callable[[], object]
Seconds = dict[str, list[float]]  # the seconds of a call in each round, by contestant

OURS, COMPILED = "hf_ddpm", "hf_ddpm, compiled"
EXAMPLE, EXAMPLE_COMPILED = "diffusers' example", "diffusers' example, compiled"
EXAMPLE_ALONE = "diffusers' example, no workers"
DDIM, SOLVER, SOLVER_COMPILED = "diffusers' DDIMPipeline", "diffusers' UniPC loop", "diffusers' UniPC loop, compiled"
TRAINING_PAIRS = ((OURS, EXAMPLE), (OURS, EXAMPLE_ALONE), (COMPILED, EXAMPLE_COMPILED), (COMPILED, EXAMPLE))
SAMPLING_PAIRS = ((OURS, SOLVER), (OURS, DDIM), (COMPILED, SOLVER_COMPILED), (COMPILED, DDIM))
STEPS = 100_000  # of the schedule, whose end is not reached
IMAGES = 12_800  # training images that are kept in memory for hf_ddpm: the cost of a step does not depend on the number


def measure_training(job: Job) -> None:
    """Compare a training step of the recipe with one of diffusers' example, first uncompiled, then also compiled.

    Compiled contestants are added one after another: if the part is stopped, the previous ones have been measured.
    """
    torch.manual_seed(job.seed)
    step, network, batch_size = our_step(job, compile=False)
    workers = min(job.scale.num_workers, os.cpu_count() or 1)
    job.note("training", batch_size=batch_size, mixed_precision=job.scale.mixed_precision, workers=workers)
    contestants: dict[str, Call] = {
        OURS: step,
        EXAMPLE: example_step(job, network, batch_size, workers),
        EXAMPLE_ALONE: example_step(job, network, batch_size, 0),
    }
    race(job, "training", contestants, {}, batch_size, job.scale.calls, TRAINING_PAIRS)
    if job.scale.compile:
        more = {COMPILED: our_step(job, compile=True)[0]}
        race(job, "training", more, contestants, batch_size, job.scale.calls, TRAINING_PAIRS)
        last = {EXAMPLE_COMPILED: example_step(job, network, batch_size, workers, compile=True)}
        race(job, "training", last, contestants | more, batch_size, job.scale.calls, TRAINING_PAIRS)


def our_step(job: Job, *, compile: bool) -> tuple[Call, UNet2DModel, int]:
    """Return the trainer's own step, a copy of the initial network, and the batch size."""
    AcceleratorState._reset_state()  # one process, several trainers
    blocks = {"training": {"compile": compile}, "data": {"max_images": IMAGES}, "evaluation": {"samples": 0}}
    recipe = job.recipe(blocks)
    run, step = start(recipe, job.work / f"speed-{compile}", STEPS)
    network: UNet2DModel = copy.deepcopy(run.networks[MODEL])
    return step, network, run.training.batch_size


def example_step(job: Job, network: UNet2DModel, batch_size: int, workers: int, *, compile: bool = False) -> Call:
    """Return a step of diffusers' example with a copy of our network, in the same precision."""
    AcceleratorState._reset_state()
    source, split, _ = job.source()
    model = copy.deepcopy(network).train().requires_grad_(True)
    settings: dict[str, Any] = {"mixed_precision": job.scale.mixed_precision, "num_workers": workers}
    data = open_source(source, split=split).rows
    example = DiffusersExample(model, data, total_steps=STEPS, batch_size=batch_size, compile=compile, **settings)
    return example.step


def measure_sampling(job: Job) -> None:
    """Compare our pipeline and its default sampler with diffusers' own loops, with equally many network calls."""
    torch.manual_seed(job.seed)
    recipe, steps, batch_size = job.recipe({}), job.scale.num_inference_steps, job.scale.sampling_batch
    scheduler = HFDDPMScheduler(**recipe["scheduler"])
    built: Any = build_model(recipe["model"], scheduler, recipe["data"]["image_size"], recipe["data"]["channels"])
    network = built.to(device()).eval()
    job.note("sampling", batch_size=batch_size, network_calls=steps, mixed_precision=job.scale.mixed_precision)

    def mixed(draw: Call) -> Call:
        """Wrap a call in `torch.autocast`; diffusers' pipelines cannot convert bf16 tensors to images."""
        enabled = job.scale.mixed_precision == "bf16"
        return torch.autocast(device().type, dtype=torch.bfloat16, enabled=enabled)(draw)

    contestants: dict[str, Call] = {
        OURS: mixed(our_sampler(network, scheduler, batch_size, steps, compile=False)),
        SOLVER: mixed(solver_loop(network, scheduler, batch_size, steps, compile=False)),
        DDIM: mixed(ddim_pipeline(network, batch_size, steps)),
    }
    race(job, "sampling", contestants, {}, batch_size, 1, SAMPLING_PAIRS)
    if job.scale.compile:
        more = {COMPILED: mixed(our_sampler(network, scheduler, batch_size, steps, compile=True))}
        race(job, "sampling", more, contestants, batch_size, 1, SAMPLING_PAIRS)
        last = {SOLVER_COMPILED: mixed(solver_loop(network, scheduler, batch_size, steps, compile=True))}
        race(job, "sampling", last, contestants | more, batch_size, 1, SAMPLING_PAIRS)


def our_sampler(network: nn.Module, scheduler: HFDDPMScheduler, batch_size: int, steps: int, *, compile: bool) -> Call:
    """Return a call of our pipeline like that of `hf-ddpm sample`, with channels_last, as in the recipe."""
    own: Any = copy.deepcopy(network).to(memory_format=torch.channels_last)
    if compile:
        own.compile()
    pipeline = HFDDPMPipeline(own, copy.deepcopy(scheduler))
    pipeline.set_progress_bar_config(disable=True)
    keywords = use_default_sampler(pipeline, steps)
    return lambda: pipeline(batch_size, **keywords)


def solver_loop(network: nn.Module, scheduler: HFDDPMScheduler, batch_size: int, steps: int, *, compile: bool) -> Call:
    """Return the same solver in the loop of diffusers' tutorial, with a network and a scheduler but no pipeline."""
    own: Any = copy.deepcopy(network)
    pipeline = HFDDPMPipeline(own, copy.deepcopy(scheduler))
    use_default_sampler(pipeline, steps)
    solver, size = pipeline.scheduler, own.config["sample_size"]
    shape = (batch_size, own.config["in_channels"], *((size, size) if isinstance(size, int) else size))
    if compile:
        own.compile()

    @torch.no_grad()
    def draw() -> object:
        x = torch.randn(shape, device=own.device, dtype=own.dtype)
        solver.set_timesteps(steps)
        for t in solver.timesteps:
            x = solver.step(own(x, t).sample, t, x).prev_sample
        images = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
        return DDPMPipeline.numpy_to_pil(images)

    return draw


def ddim_pipeline(network: nn.Module, batch_size: int, steps: int) -> Call:
    """Return a call of diffusers' own pipeline with its own scheduler."""
    pipeline = DDIMPipeline(copy.deepcopy(network), DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return lambda: pipeline(batch_size, num_inference_steps=steps)


def race(
    job: Job,
    part: str,
    new: Mapping[str, Call],
    known: Mapping[str, Call],
    batch_size: int,
    calls: int,
    pairs: Sequence[tuple[str, str]],
) -> None:
    """Let contestants take turns and write the results after each round; new contestants are warmed up first."""
    first = dict(job.noted(part).get("first_call_seconds", {}))
    for name, call in new.items():
        first[name] = seconds_per_call(call)
        job.note(part, first_call_seconds=first)
        print(f"{part}: the first call of {name} took {first[name]:.1f} s", flush=True)
        seconds_per_call(call, calls)
    stages = list(job.noted(part).get("stages", []))
    found: dict[str, Any] = {}
    for seconds in take_turns({**known, **new}, calls, min(job.scale.stage_seconds, job.left())):
        found = speeds(seconds, batch_size, pairs)
        job.note(part, stages=[*stages, found])
    print(f"{part}: {found['rounds']} rounds, images/s: {found['images_per_second']}", flush=True)


def take_turns(contestants: Mapping[str, Call], calls: int, seconds: float) -> Iterator[Seconds]:
    """Yield the seconds of a call of each contestant in all rounds so far, after every round; at least one round."""
    found: Seconds = {name: [] for name in contestants}
    started = time.perf_counter()
    while not next(iter(found.values())) or time.perf_counter() - started < seconds:
        for name, call in contestants.items():
            found[name].append(seconds_per_call(call, calls))
        yield found


def speeds(seconds: Seconds, batch_size: int, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return medians over the rounds, and how many times faster the first of each pair is: the median of ratios."""
    present = [(one, other) for one, other in pairs if one in seconds and other in seconds]
    ratios = {pair: [b / a for a, b in zip(*(seconds[name] for name in pair), strict=True)] for pair in present}
    return {
        "rounds": len(next(iter(seconds.values()))),
        "images_per_second": {name: batch_size / statistics.median(times) for name, times in seconds.items()},
        "times_faster": [{"of": a, "over": b, "ratio": statistics.median(found)} for (a, b), found in ratios.items()],
    }
