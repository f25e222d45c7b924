"""Train a diffusion model: `accelerate launch training/train.py --recipe mnist`.

The recipe's data yields x_0; the objective draws t and noise and returns the loss; this loop, and only it, turns the
loss into backward, step, EMA and checkpoints. What is random in step k is a function of (seed, k), drawn for the whole
batch and cut into the processes' parts, so a resumed run, or one on other processes, walks the same path.
"""

import contextlib
import json
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    ProjectConfiguration,
    gather_object,
    is_tensorboard_available,
)
from diffusers.models.unets.unet_2d import UNet2DModel
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_ddpm import HFDDPMPipeline, HFDDPMScheduler, unet_preset
from hf_ddpm.checkpoint import new_folder, save_checkpoint, unfinished, writing
from hf_ddpm.data import Batch, ImageData
from hf_ddpm.errors import UserError
from hf_ddpm.objectives import SimpleObjective
from hf_ddpm.pipelines.doors import stock_samples_the_same
from hf_ddpm.sampling import image_grid, mixed_seed, sample_images
from hf_ddpm.training.ema import EMA
from hf_ddpm.training.recipe import Recipe, parse_command_line
from hf_ddpm.training.run_folder import RunFolder
from hf_ddpm.training.settings import Checkpoints, Optimization, Sampling, Training


@dataclass
class Run:
    """Everything that one training run is made of."""

    recipe: Recipe
    training: Training
    optimization: Optimization
    sampling: Sampling
    checkpoints: Checkpoints
    folder: RunFolder
    accelerator: Accelerator
    data: ImageData
    objective: SimpleObjective
    model: nn.Module
    ema: EMA
    optimizer: torch.optim.Optimizer
    step: int = 0  # optimizer steps done
    seconds: float = 0.0  # time spent on them, without sampling and saving
    losses: list[Tensor] = field(default_factory=list)  # since the last line of the log


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; a user's mistake is one sentence on stderr and exit code 1."""
    try:
        recipe, resume = parse_command_line(sys.argv[1:] if argv is None else argv)
        train(recipe, resume)
    except UserError as error:
        sys.exit(f"error: {error}" if os.environ.get("RANK", "0") == "0" else 1)
    except KeyboardInterrupt:
        sys.exit("stopped")


def train(recipe: Recipe, resume: str | None = None) -> Path:
    """Train what the recipe says and return the folder of the finished checkpoint.

    Raises:
        UserError: anything in the recipe, the data or the folder that the user can mend.
    """
    run = prepare(recipe, resume)
    batches = run.data.batches(
        batch_size=run.training.batch_size,
        seed=run.training.seed,
        start_step=run.step,
        rank=run.accelerator.process_index,
        world_size=run.accelerator.num_processes,
        device=run.accelerator.device,
    )
    total, on_main = run.training.total_steps, run.accelerator.is_main_process
    bar = tqdm(total=total, initial=run.step, disable=not on_main)
    with _stopped_by_hand(run), contextlib.closing(batches), bar as progress:
        while run.step < total:
            started = time.perf_counter()
            run.losses.append(optimizer_step(run, next(batches)))
            run.step += 1
            run.seconds += time.perf_counter() - started
            progress.update()
            if _due(run, run.training.log_every):
                log_losses(run, progress)
            if _due(run, run.sampling.every):
                save_samples(run, f"step_{run.step:08d}.png")
            if _due(run, run.checkpoints.every):
                save_state(run)
    return finish(run)


def optimizer_step(run: Run, batch: Batch) -> Tensor:
    """One update of the weights and their average from one global batch; the mean loss of this process's part."""
    rank, size = run.accelerator.process_index, len(batch.x_0)
    generator = step_generator(run.training.seed, run.step, run.accelerator.device)
    t, noise = run.objective.draw((run.training.batch_size, *batch.x_0.shape[1:]), generator)
    t, noise = t[rank * size : (rank + 1) * size], noise[rank * size : (rank + 1) * size]
    torch.manual_seed(mixed_seed(run.training.seed, run.step, 1 + rank))  # dropout
    run.optimization.set_learning_rate(run.optimizer, run.step, run.training.total_steps)

    part = size // run.training.gradient_accumulation_steps
    losses = []
    for start in range(0, size, part):
        cut = slice(start, start + part)
        labels = None if batch.labels is None else batch.labels[cut]
        with run.accelerator.accumulate(run.model):
            loss = run.objective(run.model, batch.x_0[cut], t[cut], noise[cut], labels)
            run.accelerator.backward(loss)
            if run.accelerator.sync_gradients and run.optimization.max_grad_norm is not None:
                run.accelerator.clip_grad_norm_(run.model.parameters(), run.optimization.max_grad_norm)
            run.optimizer.step()
            run.optimizer.zero_grad()
        losses.append(loss.detach())
    if not run.accelerator.optimizer_step_was_skipped:  # fp16 skips a step whose gradients overflow
        run.ema.update(run.accelerator.unwrap_model(run.model), run.step + 1)
    return torch.stack(losses).mean()


def prepare(recipe: Recipe, resume: str | None) -> Run:
    """Build every part of a run, cheapest first, and load the state to resume from."""
    training, optimization = Training(**recipe["training"]), Optimization(**recipe["optimization"])
    sampling, checkpoints = Sampling(**recipe["sampling"]), Checkpoints(**recipe["checkpoints"])
    folder = RunFolder(training.output_dir)
    state = None
    if resume is None:
        if os.environ.get("RANK", "0") == "0":
            folder.check_new()
    else:
        state = folder.find_state(resume)
        folder.check_same_recipe(recipe)
    scheduler = _built("scheduler", HFDDPMScheduler, **recipe["scheduler"])
    objective = _built("objective", SimpleObjective, scheduler, **recipe["objective"])
    if sampling.num_inference_steps > len(scheduler):
        raise UserError(
            f"sampling.num_inference_steps={sampling.num_inference_steps} must be at most T={len(scheduler)}"
        )
    data = ImageData(**recipe["data"])
    torch.manual_seed(training.seed)
    model = build_model(recipe["model"], data)
    ema = _built("ema", EMA, model, **recipe["ema"])

    accelerator = make_accelerator(training, folder)
    training.local_batch_size(accelerator.num_processes)
    if accelerator.device.type == "cpu":  # `accelerate launch` would leave a process one thread
        cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
        torch.set_num_threads(training.cpu_threads or max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    if accelerator.is_main_process and state is None:
        folder.create(recipe)
    if training.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema.model.to(accelerator.device)
    optimizer = optimization.build(model)
    if training.compile:
        model.compile()
    model, optimizer = accelerator.prepare(model, optimizer)
    run = Run(
        recipe,
        training,
        optimization,
        sampling,
        checkpoints,
        folder,
        accelerator,
        data,
        objective,
        model,
        ema,
        optimizer,
    )
    if state is not None:
        load_state(run, state)
    introduce(run, state)
    return run


def build_model(block: dict[str, Any], data: ImageData) -> nn.Module:
    """The recipe's preset; image size, channels and classes come from the data unless the recipe says otherwise."""
    keywords: dict[str, Any] = {"sample_size": data.image_size, "in_channels": data.channels}
    if data.num_classes is not None:
        keywords["num_class_embeds"] = data.num_classes
    return _built("model", unet_preset, block["preset"], **keywords | {k: v for k, v in block.items() if k != "preset"})


def make_accelerator(training: Training, folder: RunFolder) -> Accelerator:
    tracker = training.tracker
    if tracker == "auto":
        tracker = "tensorboard" if is_tensorboard_available() else "none"
    try:
        return Accelerator(
            mixed_precision=training.mixed_precision,
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            log_with=None if tracker == "none" else tracker,
            project_config=ProjectConfiguration(project_dir=str(folder.path), logging_dir=str(folder.path)),
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        )
    except (ImportError, ValueError) as error:
        raise UserError(f"training: {' '.join(str(error).split())}") from error


def introduce(run: Run, state: Path | None) -> None:
    """Say once what is trained on what, and where it goes."""
    weights = sum(p.numel() for p in run.ema.model.parameters())
    say = run.accelerator.print
    say(f"data: {run.data.description}")
    say(
        f"model: {run.recipe['model']['preset']}, {weights:,} weights, on {run.accelerator.num_processes} process(es), "
        f"{run.accelerator.device}, {run.accelerator.mixed_precision}"
    )
    say(f"run: {run.folder.path}, " + (f"continuing {state} at step {run.step}" if state else "new"))
    if run.accelerator.log_with:
        flat = {f"{b}.{k}": str(v) for b, block in run.recipe.items() for k, v in block.items()}
        in_tensorboard = str(run.accelerator.log_with[0]) == "tensorboard"  # whose folder bears the project's name
        run.accelerator.init_trackers("tensorboard" if in_tensorboard else "hf_ddpm", config=flat)
    elif run.training.tracker == "auto":
        say("curves: log.jsonl only; pip install 'hf_ddpm[train]' adds tensorboard")


def log_losses(run: Run, progress: tqdm) -> None:
    """Write the mean loss since the last line, over all processes, and stop a run that has diverged."""
    loss = run.accelerator.reduce(torch.stack(run.losses).mean(), reduction="mean").item()
    run.losses.clear()
    if not math.isfinite(loss):
        raise UserError(
            f"the loss is {loss} at step {run.step}: lower lr, or turn mixed_precision off; "
            "the last saved state is untouched"
        )
    speed = run.step * run.training.batch_size / run.seconds
    line = {
        "step": run.step,
        "loss": loss,
        "lr": run.optimizer.param_groups[-1]["lr"],
        "images_per_second": round(speed, 2),
    }
    run.accelerator.log({k: v for k, v in line.items() if k != "step"}, step=run.step)
    if run.accelerator.is_main_process:
        progress.set_postfix(loss=f"{loss:.4f}", images_per_s=f"{speed:.0f}")
        run.folder.append_log(line | {"seconds": round(run.seconds, 3)})


def sample(run: Run) -> list[Image.Image]:
    """The grid's images from the averaged weights, each process drawing its share."""
    pipeline = HFDDPMPipeline(run.ema.model, run.objective.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    settings = run.sampling
    with run.accelerator.split_between_processes(list(range(settings.num_images))) as mine:
        images = sample_images(
            pipeline, mine, seed=run.training.seed, num_inference_steps=settings.num_inference_steps, eta=settings.eta
        )
    return gather_object(images)


def save_samples(run: Run, name: str) -> None:
    images = sample(run)
    if run.accelerator.is_main_process:
        with writing(run.folder.samples):
            image_grid(images).save(run.folder.samples / name)


def save_state(run: Run) -> None:
    """Everything a resumed run needs, in a folder that appears when it is complete."""
    final = run.folder.states / f"step_{run.step:08d}"
    on_main = run.accelerator.is_main_process
    with writing(final), contextlib.ExitStack() as stack:
        if on_main:
            stack.enter_context(new_folder(final))
        run.accelerator.wait_for_everyone()
        run.accelerator.save_state(str(unfinished(final)))
        if on_main:
            run.ema.model.save_pretrained(unfinished(final) / "ema")
            counters = {"step": run.step, "seconds": run.seconds}
            (unfinished(final) / "counters.json").write_text(json.dumps(counters) + "\n")
        run.accelerator.wait_for_everyone()
    if on_main:
        run.folder.remove_old_states(run.checkpoints.keep)


def load_state(run: Run, state: Path) -> None:
    """Continue from a saved state: weights, optimizer, average and counters. Everything else follows from the step."""
    try:
        run.accelerator.load_state(str(state))
        run.ema.model.load_state_dict(UNet2DModel.from_pretrained(state / "ema").state_dict())
        counters = json.loads((state / "counters.json").read_text())
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"the state {state} cannot be read ({reason}): resume from an older one in {state.parent}"
        ) from error
    run.step, run.seconds = counters["step"], counters["seconds"]
    if run.step > run.training.total_steps:
        raise UserError(
            f"{state} is at step {run.step}, beyond total_steps={run.training.total_steps}: give more steps"
        )
    if run.accelerator.is_main_process:
        run.folder.cut_log(run.step)


def finish(run: Run) -> Path:
    """Save the last state, the last grid and the checkpoint with its card; say where they are and what to run next."""
    if run.folder.states / f"step_{run.step:08d}" not in run.folder.saved_states():
        save_state(run)
    images = sample(run)
    checkpoint = run.folder.checkpoint
    if run.accelerator.is_main_process:
        samples = image_grid(images)
        with writing(run.folder.samples):
            samples.save(run.folder.samples / "final.png")
        pipeline = HFDDPMPipeline(run.ema.model, run.objective.scheduler)
        save_checkpoint(pipeline, checkpoint, facts(run), samples)
    if run.data.skipped:
        run.accelerator.print(f"data: {run.data.description}")
    run.accelerator.print(
        f"\nsamples:    {run.folder.samples / 'final.png'}\n"
        f"checkpoint: {checkpoint}\n"
        f"next:       {_console_script()} sample {checkpoint} -n 64 --steps 50 --out grid.png\n"
        f"or:         HFDDPMPipeline.from_pretrained({str(checkpoint)!r})"
    )
    run.accelerator.end_training()
    return checkpoint


def facts(run: Run) -> dict[str, Any]:
    """What the model card may say: only what this run knows of itself."""
    lines = run.folder.log.read_text().splitlines() if run.folder.log.exists() else []
    return {
        "name": run.folder.path.resolve().name,
        "recipe": run.recipe,
        "data": run.data.description,
        "num_images": run.data.num_images,
        "weights": sum(p.numel() for p in run.ema.model.parameters()),
        "steps": run.step,
        "images_seen": run.step * run.training.batch_size,
        "seconds": round(run.seconds, 1),
        "last_loss": json.loads(lines[-1])["loss"] if lines else None,
        "device": _device_name(run.accelerator.device),
        "processes": run.accelerator.num_processes,
        "mixed_precision": run.accelerator.mixed_precision,
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "stock": stock_samples_the_same(run.objective.scheduler.config, run.ema.model.config, None),
        "sampling": {"num_inference_steps": run.sampling.num_inference_steps, "eta": run.sampling.eta},
        "metrics": [],
    }


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The generator of t and noise in `step`, the same in every process."""
    return torch.Generator(device).manual_seed(mixed_seed(seed, step, 0))


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} CPU cores ({platform.machine()})"


def _console_script() -> str:
    """How to call `hf-ddpm` from here: by its name, or by its path in an environment that is not active."""
    return "hf-ddpm" if shutil.which("hf-ddpm") else str(Path(sys.executable).with_name("hf-ddpm"))


@contextlib.contextmanager
def _stopped_by_hand(run: Run) -> Iterator[None]:
    """After Ctrl-C, say where the run stands and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        states = run.folder.saved_states()
        on = f"continue after {states[-1].name} with --resume latest" if states else "no state was saved yet"
        sys.exit(f"stopped at step {run.step}: {on}")


def _due(run: Run, every: int | None) -> bool:
    return every is not None and run.step % every == 0


def _built(block: str, constructor: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a constructor with a recipe's keywords; what it refuses becomes the user's sentence."""
    try:
        return constructor(*args, **kwargs)
    except ValueError as error:
        raise UserError(f"{block}: {error}") from error


if __name__ == "__main__":
    main()
