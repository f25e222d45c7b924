"""What a run saves in addition to its states: grids of samples, and the finished checkpoint with its card."""

import contextlib
import json
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from PIL import Image
from torch import Tensor
from torch.distributed.tensor import DTensor

from hf_ddpm.checkpoint import (
    FACTS_FILE,
    add_evaluation,
    load_checkpoint,
    read_object,
    save_checkpoint,
)
from hf_ddpm.errors import UserError, quoted
from hf_ddpm.kinds import FAMILY, kind_of
from hf_ddpm.model_card_metrics import entries_of
from hf_ddpm.sampling import image_grid
from hf_ddpm.training.evaluation import Evaluator, Networks
from hf_ddpm.training.run import Run, not_essential
from hf_ddpm.training.states import check_finite, save_state, stop_if_asked
from hf_ddpm.training.stopping import Agreement

_LOOKED_AT = 10  # the number of last lines of the log, which include evaluations


def sample(run: Run) -> list[Image.Image]:
    """Draw the grid's images with the averaged weights, a part in each process; none for a family that draws none.

    Raises:
        UserError: If the images cannot be drawn in one of the processes, in every process: none waits for another.
    """
    if run.family.sampling is None:
        return []
    pipeline = run.family.pipeline(run.networks)
    pipeline.set_progress_bar_config(disable=True)
    indices = list(range(run.family.sampling.num_images))
    images: list[Image.Image] = []
    failed: str | None = None
    with run.accelerator.split_between_processes(indices) as mine:
        try:
            with _drawn_at(run, "grid"):
                images = run.family.sample(pipeline, mine, run.training.seed)
        except (ValueError, RuntimeError, OSError) as error:
            failed = quoted(error)
    failures = [one for one in gather_object([failed]) if one is not None]
    if failures:
        raise UserError(failures[0])
    return gather_object(images)


def save_samples(run: Run, name: str) -> None:
    """Save a grid of samples in the run's folder."""
    with not_essential(run, "a grid of samples"):
        images = sample(run)
        if run.accelerator.is_main_process:
            run.folder.samples.mkdir(exist_ok=True)
            num_classes = run.family.pipeline(run.networks).num_classes
            image_grid(images, num_classes).save(run.folder.samples / name)


def finish(run: Run, agreement: Agreement) -> Path:
    """Save the last state, the last grid and the checkpoint with its card; print where they are and what to run next.

    Raises:
        RunStopped: If a stop was requested between these steps, after the last state.
    """
    if run.folder.state_of(run.step) not in run.folder.saved_states():
        save_state(run)
    checkpoint, pictured = run.folder.checkpoint, run.family.sampling is not None
    stop_if_asked(run, agreement)
    run.family.measure(run.networks, run.data, run.training.seed)
    measured = measure(run, run.networks)
    stop_if_asked(run, agreement)
    write_checkpoint(run, checkpoint, measured)
    stop_if_asked(run, agreement)
    measure_best(run)
    drawn = (checkpoint / "samples.png").is_file()
    if run.accelerator.is_main_process and drawn:
        with not_essential(run, "the last grid"):
            run.folder.samples.mkdir(exist_ok=True)
            shutil.copy2(checkpoint / "samples.png", run.folder.samples / "final.png")
    if run.data.skipped:
        run.accelerator.print(f"data: {run.data.description}")
    told: dict[str, Any] = {"checkpoint:": checkpoint}
    if pictured:
        sample_it = f"sample {shlex.quote(str(checkpoint))} -n 64 {run.family.sample_options}--out grid.png"
        shown = {"samples:": run.folder.samples / "final.png"} if drawn else {}
        told = {**shown, **told, "next:": f"{_console_script()} {sample_it}"}
    if measured is not None and run.evaluator is not None:
        told["measured:"] = said(measured, run.evaluator)
    told["or:"] = f"{type(run.family.pipeline(run.networks)).__name__}.from_pretrained({str(checkpoint)!r})"
    run.accelerator.print("\n" + "\n".join(f"{word:<12}{what}" for word, what in told.items()))
    if run.pusher is not None:
        run.pusher.start(checkpoint, tag=None)
        run.pusher.wait()
        shutil.rmtree(run.folder.pushed, ignore_errors=True)
    _end(run)
    return checkpoint


def write_checkpoint(run: Run, folder: Path, measured: dict[str, Any] | None = None, **more: Any) -> None:
    """Save what the run has learned as a pipeline that anybody can open; every process must call this, one writes.

    Args:
        run: The run, whose networks are saved, after `Family.measure`.
        folder: A new folder, or a checkpoint that is replaced.
        measured: The record of an evaluation, for the card.
        more: Further facts.
    """
    check_finite(run)
    averaged = run.players[run.family.artefact].ema is not None
    images: list[Image.Image] = []
    with not_essential(run, "the grid of a checkpoint"):
        images = sample(run)
    raw = raw_weights(run) if averaged else None
    if run.accelerator.is_main_process:
        pipeline, logs = run.family.pipeline(run.networks), (run.folder.recipe, run.folder.log)
        grid = image_grid(images, pipeline.num_classes) if images else None
        found = facts(run) | {"metrics": [] if measured is None else entries_of(measured)} | more
        save_checkpoint(pipeline, folder, found, grid, raw=raw, files=logs, evaluation=measured)


def measure(run: Run, networks: Networks) -> dict[str, Any] | None:
    """Return the record of the finished model's evaluation, by all processes; None if the run measures nothing."""
    if run.evaluator is None:
        return None
    with _drawn_at(run, "evaluation"):
        return run.evaluator.measure(networks)


def select_best(run: Run, evaluator: Evaluator) -> None:
    """Evaluate the model at this step, log the figures, and save the checkpoint if it is the best so far."""
    run.family.measure(run.networks, run.data, run.training.seed)
    with _drawn_at(run, "evaluation"):
        numbers = evaluator.select(run.networks)
    figures = {f"evaluation/{number['name']}": number["value"] for number in numbers}
    with not_essential(run, "the tracker"):
        run.accelerator.log(figures, step=run.step)
    if run.accelerator.is_main_process:
        with not_essential(run, "the log"):
            run.folder.append_log({"step": run.step, **figures, "seconds": round(run.seconds, 3)})
    first, best = numbers[0], run.folder.best / FACTS_FILE
    is_best = (
        not best.is_file() or first["value"] < read_object(best, f"delete {run.folder.best}")["selection"]["value"]
    )
    if broadcast_object_list([is_best])[0]:
        chosen = {"step": run.step, "name": first["name"], "value": first["value"]}
        with not_essential(run, "saving the best checkpoint"):
            write_checkpoint(run, run.folder.best, selection=chosen)
    run.accelerator.wait_for_everyone()


def measure_best(run: Run) -> None:
    """Evaluate the best checkpoint like the last one, and add the figures to its card."""
    best = run.folder.best
    if not best.is_dir() or run.evaluator is None:
        return
    pipeline: Any = load_checkpoint(str(best)).to(run.accelerator.device)
    kind = kind_of(pipeline)
    measured = measure(run, {run.family.artefact: getattr(pipeline, kind.network)})
    if run.accelerator.is_main_process and measured is not None:
        found = read_object(best / FACTS_FILE) | {"metrics": entries_of(measured)}
        add_evaluation(best, found, kind, measured)
        run.accelerator.print(f"best:       {best}, step {found['selection']['step']}: {said(measured, run.evaluator)}")


@contextlib.contextmanager
def _drawn_at(run: Run, what: str) -> Iterator[None]:
    """Turn the error of a pipeline into one with the step, the use of the images and, if they diverged, the remedy."""
    try:
        yield
    except ValueError as error:
        remedy = f": {run.how_to_mend()}" if "diverged" in str(error) else ""
        raise UserError(f"the {what} at step {run.step} failed ({error}){remedy}") from error


def said(measured: dict[str, Any], evaluator: Evaluator) -> str:
    """Return the figures of a record on one line, and what they were measured on."""
    shown = ", ".join(f"{number['name']} {number['value']:.4g}" for number in measured["numbers"])
    return f"{shown} ({evaluator.plan})"


def raw_weights(run: Run) -> dict[str, Tensor]:
    """Return the complete weights that were not averaged, on every process; untrained values are the average's."""
    player = run.players[run.family.artefact]
    trained = run.accelerator.unwrap_model(player.model).named_parameters()
    weights = player.network(run.accelerator).state_dict() | {
        name: w.detach() for name, w in trained if w.requires_grad
    }
    return {name: w.full_tensor() if isinstance(w, DTensor) else w for name, w in weights.items()}  # of FSDP2


def push_on_the_way(run: Run) -> None:
    """Save a checkpoint and start its upload, or print that the previous upload is still in progress."""
    (busy,) = broadcast_object_list([run.pusher is not None and run.pusher.busy])
    if busy:
        run.accelerator.print(f"not pushed: step {run.step}, because the previous push is still in progress")
        return
    with not_essential(run, "a push"):
        run.family.measure(run.networks, run.data, run.training.seed)
        write_checkpoint(run, run.folder.pushed)
        if run.pusher is not None:
            run.pusher.start(run.folder.pushed, tag=f"step-{run.step}")


def _end(run: Run) -> None:
    """Leave the other processes, after taking every network out of its wrapper.

    Otherwise the C++ side of the wrapper would be the last owner of the process group. If it is destroyed while the GIL
    is held, it waits for a gloo thread that may be waiting for the GIL, and the process never ends (PyTorch 2.13).
    """
    for player in run.players.values():
        player.model = run.accelerator.unwrap_model(player.model)
    run.accelerator.free_memory()
    run.accelerator.end_training()


def facts(run: Run) -> dict[str, Any]:
    """Return what the model card may state: only what this run knows about itself."""
    lines = run.folder.log.read_text().splitlines() if run.folder.log.is_file() else []
    logged: dict[str, float] = {}
    for line in lines[-_LOOKED_AT:]:
        logged |= json.loads(line)
    networks = run.networks
    return {
        "name": run.folder.path.resolve().name,
        "family": run.recipe[FAMILY],
        "recipe": run.recipe,
        "data": run.data.facts.to_dict(),
        "num_images": run.data.num_images,
        "weights": sum(p.numel() for p in networks[run.family.artefact].parameters()),
        "steps": run.step,
        "images_seen": run.step * run.training.batch_size,
        "seconds": round(run.seconds, 1),
        "last_loss": logged.get("loss"),
        "last_logged": logged,
        "device": _device_name(run.accelerator.device),
        "processes": run.accelerator.num_processes,
        "mixed_precision": run.accelerator.mixed_precision,
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "metrics": [],
        **run.family.facts(networks),
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} CPU cores ({platform.machine()})"


def _console_script() -> str:
    """Return how to call `hf-ddpm`: by its name, or by its path if its environment is not active."""
    return "hf-ddpm" if shutil.which("hf-ddpm") else shlex.quote(str(Path(sys.executable).with_name("hf-ddpm")))
