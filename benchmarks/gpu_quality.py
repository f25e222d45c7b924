"""Train the recipe for a given time, and measure its Fréchet distance during training, with a grid of samples."""

import json
import shutil
import time
from collections.abc import Generator
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks.gpu_job import Job
from benchmarks.gpu_speed import COMPILED, OURS
from hf_ddpm.data import Batch
from hf_ddpm.training.evaluation import Evaluator
from hf_ddpm.training.recipe import Recipe
from hf_ddpm.training.run import Run
from hf_ddpm.training.saving import measure, save_samples, select_best
from hf_ddpm.training.train import log_losses, optimizer_step, prepare

PART = "quality"
STEPS = 10_000_000  # more than fit: time ends the training, and the recipe's learning rate is constant
UNKNOWN_SPEED = 1_000  # images per second, if the part `training` measured none
SPARE = 5.0  # seconds for the last grid and the end of the process


def measure_quality(job: Job) -> None:
    """Train until the time is over; every figure is written as soon as it is measured."""
    run = prepare(our_recipe(job), resume=None)
    run.folder.create(run.recipe)
    device, training = run.accelerator.device, run.training
    batches = run.data.batches(batch_size=training.batch_size, seed=training.seed, device=device)
    evaluator = run.evaluator
    assert evaluator is not None  # the recipe requests samples
    every, extractor = evaluator.every, run.recipe["evaluation"]["extractor"]
    about = {"batch_size": training.batch_size, "samples": job.scale.samples, "compiled": training.compile}
    job.note(PART, **about, every=every, extractor=extractor, warmup_steps=warmup(run))
    points: list[dict[str, Any]] = []
    with tqdm(disable=True) as progress:
        took = look(job, run, evaluator, points)
        while job.left() > 1.2 * took + SPARE:
            advance(run, batches, progress)
            if run.step == 1:
                job.note(PART, first_step_seconds=run.seconds)
            if run.step % (every or 1) == 0:
                took = look(job, run, evaluator, points)
    draw_grid(job, run)
    job.note(PART, steps=run.step, seconds=run.seconds, final=final_figures(run))


def our_recipe(job: Job) -> Recipe:
    """Return the shipped recipe with another precision, evaluation and, for `cifar10`, sampler and warm-up."""
    speed, compiled = known_speed(job)
    batch_size = job.recipe({})["training"]["batch_size"]
    _, _, test_split = job.source()
    every = steps_between(speed / batch_size, job.scale.seconds_between, job.scale.log_every)
    evaluation = {"every": every, "samples": job.scale.samples, "extractor": "efficientnet-lite0"}
    training = {"total_steps": STEPS, "output_dir": str(job.work / "quality"), "tracker": "none"}
    changed: dict[str, dict[str, Any]] = {
        "evaluation": evaluation | {"test_split": test_split, "sampling_seed": job.seed + 1},
        "sampling": {"every": None},
        "checkpoints": {"every": None},
        "training": training | {"compile": compiled},
    }
    if job.subject.walks:  # another sampler, and a shorter warm-up, which would take half of the time
        changed["sampling"] |= {"num_inference_steps": job.scale.num_inference_steps, "eta": None}
        changed["optimization"] = {"warmup_steps": job.scale.warmup_steps}
    return job.recipe(changed)


def known_speed(job: Job) -> tuple[float, bool]:
    """Return the images per second of hf_ddpm in the part `training`, and whether the network was compiled."""
    stages = job.noted("training").get("stages", [])
    found = stages[-1]["images_per_second"] if stages else {}
    if COMPILED in found:
        return found[COMPILED], True
    return found.get(OURS, UNKNOWN_SPEED), False


def steps_between(steps_per_second: float, seconds: float, log_every: int) -> int:
    """Return the number of steps that take about `seconds`, as a multiple of `log_every`."""
    return log_every * max(1, round(steps_per_second * seconds / log_every))


def advance(run: Run, batches: Generator[Batch, None, None], progress: tqdm) -> None:
    """Do one step like `hf_ddpm.training.train.train`; its seconds do not include pending work of a GPU."""
    started = time.perf_counter()
    run.said.append(optimizer_step(run, next(batches)))
    run.step += 1
    due = run.step == 1 or run.step % run.training.log_every == 0
    if due and torch.cuda.is_available():
        torch.cuda.synchronize()
    run.seconds += time.perf_counter() - started
    if run.step % run.training.log_every == 0:
        log_losses(run, progress)


def look(job: Job, run: Run, evaluator: Evaluator, points: list[dict[str, Any]]) -> float:
    """Evaluate like training, which writes a line of the log, note the figure and draw a grid; return the seconds."""
    started = time.perf_counter()
    select_best(run, evaluator)
    line = json.loads(run.folder.log.read_text().splitlines()[-1])
    (name, value), *_ = ((key, value) for key, value in line.items() if key != "step")
    points.append({"step": line["step"], "images": line["step"] * run.training.batch_size, "seconds": run.seconds})
    points[-1] |= {"name": name.removeprefix("evaluation/"), "value": value}
    took = time.perf_counter() - started
    job.note(PART, points=points, evaluation_seconds=took)
    draw_grid(job, run)
    print(f"quality: step {run.step}, {run.seconds:.1f} s, {points[-1]['name']} {value:.4g}", flush=True)
    return took


def draw_grid(job: Job, run: Run) -> None:
    """Draw a grid of samples, which replaces the previous one."""
    save_samples(run, "grid.png")
    picture = job.result.with_suffix(".png")
    shutil.copy2(run.folder.samples / "grid.png", picture)
    job.note(PART, grid=picture.name, grid_step=run.step)


def final_figures(run: Run) -> dict[str, Any]:
    """Return the figures of a model card, measured on images that the network was not trained on."""
    measured = measure(run, run.networks)
    assert measured is not None  # the recipe requests samples
    first = measured["numbers"][0]
    drawing = measured["seconds"]["images"] * 100 / measured["conditions"]["num_images"]
    about = {"measured_on": measured["measured_on"], "step": run.step, "seconds_for_100": drawing}
    return {"name": first["name"], "value": first["value"], **about}


def warmup(run: Run) -> int:
    """Return the number of warm-up steps of the learning rate."""
    return max(player.optimization.warmup_steps for player in run.players.values())
