"""What a run leaves on disk: sample grids, states to resume from, and the finished checkpoint with its card."""

import contextlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from hf_ddpm.checkpoint import (
    FACTS_FILE,
    GO_ON,
    add_evaluation,
    load_checkpoint,
    new_folder,
    read_object,
    save_checkpoint,
    unfinished,
    writing,
)
from hf_ddpm.errors import UserError, quoted
from hf_ddpm.kinds import FAMILY, kind_of
from hf_ddpm.model_card_metrics import entries_of
from hf_ddpm.sampling import image_grid
from hf_ddpm.training.evaluation import Evaluator, Networks
from hf_ddpm.training.run import Run, mean_said

COUNTERS, OBJECTIVE = "counters.json", "objective.safetensors"  # of a saved state
_LOOKED_AT = 10  # last lines of the log, among which are those of evaluations
OLDER_OBJECTIVE = "loss_history.safetensors"  # its name in states of version 0.1


def sample(run: Run) -> list[Image.Image]:
    """The grid's images from the averaged weights, each process drawing its share; none of a family that draws none.

    Raises:
        UserError: the weights have diverged.
    """
    if run.family.sampling is None:
        return []
    pipeline = run.family.pipeline(run.networks)
    pipeline.set_progress_bar_config(disable=True)
    indices = list(range(run.family.sampling.num_images))
    with run.accelerator.split_between_processes(indices) as mine, _drawn_at(run, "grid"):
        images = run.family.sample(pipeline, mine, run.training.seed)
    return gather_object(images)


def save_samples(run: Run, name: str) -> None:
    """Write a grid into the run's folder."""
    images = sample(run)
    if run.accelerator.is_main_process:
        with writing(run.folder.samples, remedy=GO_ON):
            num_classes = run.family.pipeline(run.networks).num_classes
            image_grid(images, num_classes).save(run.folder.samples / name)


def save_state(run: Run) -> None:
    """Everything a resumed run needs, in a folder that appears when it is complete."""
    if run.said:
        mean_said(run)
    final = run.folder.states / f"step_{run.step:08d}"
    on_main = run.accelerator.is_main_process
    with writing(final, remedy=GO_ON), contextlib.ExitStack() as stack:
        if on_main:
            stack.enter_context(new_folder(final))
        run.accelerator.wait_for_everyone()
        run.accelerator.save_state(str(unfinished(final)))
        if on_main:
            for name, ema in averages(run).items():
                ema.save_pretrained(unfinished(final) / name)
            if learned := run.objective.state():
                save_file(learned, unfinished(final) / OBJECTIVE)
            counters = {"step": run.step, "seconds": run.seconds}
            (unfinished(final) / COUNTERS).write_text(json.dumps(counters) + "\n")
        run.accelerator.wait_for_everyone()
    if on_main:
        run.folder.remove_old_states(run.checkpoints.keep)
    run.accelerator.wait_for_everyone()  # the state is in place for every process


def averages(run: Run) -> dict[str, Any]:
    """The players' averaged networks, by their folders in a saved state."""
    averaged = {name: player.ema.model for name, player in run.players.items() if player.ema is not None}
    return {"ema" if len(run.players) == 1 else f"ema_{name}": network for name, network in averaged.items()}


def load_state(run: Run, state: Path) -> None:
    """Continue from a saved state: weights, optimizers, averages, what the objective has learned, and counters.

    Everything else follows from the step.
    """
    _require_weights(run, state)
    try:
        run.accelerator.load_state(str(state))
        for name, ema in averages(run).items():
            ema.load_state_dict(type(ema).from_pretrained(state / name).state_dict())
        run.objective.load(_learned(state))
        counters = json.loads((state / COUNTERS).read_text())
    except UserError:  # an optimizer that says itself what is wrong with its state
        raise
    except (OSError, SafetensorError, ValueError, RuntimeError, EOFError, UnpicklingError) as error:
        raise UserError(
            f"the state {state} cannot be read ({quoted(error)}): resume from an older one in {state.parent}"
        ) from error
    run.resumed, run.step, run.seconds = state, counters["step"], counters["seconds"]
    if run.step > run.training.total_steps:
        raise UserError(
            f"{state} is at step {run.step}, beyond total_steps={run.training.total_steps}: give more steps"
        )
    if run.accelerator.is_main_process:
        run.folder.forget_after(run.step)
    run.accelerator.wait_for_everyone()


def _require_weights(run: Run, state: Path) -> None:
    """Say which network a state has lost; what is sharded lies in other files."""
    if run.accelerator.distributed_type == DistributedType.FSDP:
        return
    wanted = {f"model_{i}.safetensors" if i else "model.safetensors": name for i, name in enumerate(run.players)}
    wanted |= dict.fromkeys(averages(run), "average")
    for file, name in wanted.items():
        if not (state / file).exists():
            raise UserError(
                f"the state {state} lacks {file}, the weights of the {name}: resume from an older one in {state.parent}"
            )


def _learned(state: Path) -> dict[str, Tensor]:
    """What the objective had learned; empty, if nothing was saved."""
    file = next((state / name for name in (OBJECTIVE, OLDER_OBJECTIVE) if (state / name).is_file()), None)
    return {} if file is None else load_file(file)


def finish(run: Run) -> Path:
    """Save the last state, the last grid and the checkpoint with its card; say where they are and what to run next."""
    if run.folder.states / f"step_{run.step:08d}" not in run.folder.saved_states():
        save_state(run)
    checkpoint, pictured = run.folder.checkpoint, run.family.sampling is not None
    run.family.measure(run.networks, run.data, run.training.seed)
    measured = measure(run, run.networks)
    write_checkpoint(run, checkpoint, measured)
    measure_best(run)
    if run.accelerator.is_main_process and pictured:
        with writing(run.folder.samples, remedy=GO_ON):
            shutil.copy2(checkpoint / "samples.png", run.folder.samples / "final.png")
    if run.data.skipped:
        run.accelerator.print(f"data: {run.data.description}")
    told: dict[str, Any] = {"checkpoint:": checkpoint}
    if pictured:
        sample_it = f"sample {checkpoint} -n 64 {run.family.sample_options}--out grid.png"
        told = {"samples:": run.folder.samples / "final.png", **told, "next:": f"{_console_script()} {sample_it}"}
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
    """What the run has learned, as a pipeline that anybody can open; every process takes part, the main one writes.

    Args:
        run: Whose networks are saved, after `Family.measure`.
        folder: A new one, or one that is replaced.
        measured: The record of an evaluation, for the card.
        more: Further facts.
    """
    averaged = run.players[run.family.artefact].ema is not None
    images, raw = sample(run), raw_weights(run) if averaged else None
    if run.accelerator.is_main_process:
        pipeline, logs = run.family.pipeline(run.networks), (run.folder.recipe, run.folder.log)
        grid = image_grid(images, pipeline.num_classes) if images else None
        found = facts(run) | {"metrics": [] if measured is None else entries_of(measured)} | more
        save_checkpoint(pipeline, folder, found, grid, raw=raw, files=logs, evaluation=measured)


def measure(run: Run, networks: Networks) -> dict[str, Any] | None:
    """The record of the finished model's samples, by all processes; None of a run that measures none."""
    if run.evaluator is None:
        return None
    with _drawn_at(run, "evaluation"):
        return run.evaluator.measure(networks)


def select_best(run: Run, evaluator: Evaluator) -> None:
    """Measure the samples of this step, write the figures into the log, and keep the checkpoint if it is the best."""
    run.family.measure(run.networks, run.data, run.training.seed)
    with _drawn_at(run, "evaluation"):
        numbers = evaluator.select(run.networks)
    figures = {f"evaluation/{number['name']}": number["value"] for number in numbers}
    run.accelerator.log(figures, step=run.step)
    if run.accelerator.is_main_process:
        run.folder.append_log({"step": run.step, **figures, "seconds": round(run.seconds, 3)})
    first, best = numbers[0], run.folder.best / FACTS_FILE
    is_best = not best.is_file() or first["value"] < read_object(best, "delete the folder")["selection"]["value"]
    if broadcast_object_list([is_best])[0]:
        chosen = {"step": run.step, "name": first["name"], "value": first["value"]}
        write_checkpoint(run, run.folder.best, selection=chosen)
    run.accelerator.wait_for_everyone()


def measure_best(run: Run) -> None:
    """Measure the best checkpoint as the last one was, and write it into its card."""
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
    """Images of weights that have diverged, said with the step and what was to be made of them."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"no {what} at step {run.step}: {error}; the last saved state is untouched") from error


def said(measured: dict[str, Any], evaluator: Evaluator) -> str:
    """The figures of a record on one line, and what they were measured on."""
    shown = ", ".join(f"{number['name']} {number['value']:.4g}" for number in measured["numbers"])
    return f"{shown} ({evaluator.plan})"


def raw_weights(run: Run) -> dict[str, Tensor]:
    """The weights that were not averaged, whole on every process; what is measured and not trained is the average's."""
    player = run.players[run.family.artefact]
    trained = run.accelerator.unwrap_model(player.model).named_parameters()
    weights = player.network(run.accelerator).state_dict() | {
        name: w.detach() for name, w in trained if w.requires_grad
    }
    return {name: w.full_tensor() if isinstance(w, DTensor) else w for name, w in weights.items()}  # of FSDP2


def push_on_the_way(run: Run) -> None:
    """Write a checkpoint and hand it to the upload's thread, or say that the one before is still on its way."""
    (busy,) = broadcast_object_list([run.pusher is not None and run.pusher.busy])
    if busy:
        run.accelerator.print(f"not pushed: step {run.step}, the push before is still under way")
        return
    run.family.measure(run.networks, run.data, run.training.seed)
    write_checkpoint(run, run.folder.pushed)
    if run.pusher is not None:
        run.pusher.start(run.folder.pushed, tag=f"step-{run.step}")


def _end(run: Run) -> None:
    """Leave the other processes, every network out of its wrapper first.

    The wrapper's C++ side would be the last owner of the process group and, destroyed with Python's lock in hand, wait
    for a gloo thread that may be waiting for this lock: the process would never end (PyTorch 2.13).
    """
    for player in run.players.values():
        player.model = run.accelerator.unwrap_model(player.model)
    run.accelerator.free_memory()
    run.accelerator.end_training()


def facts(run: Run) -> dict[str, Any]:
    """What the model card may say: only what this run knows of itself."""
    lines = run.folder.log.read_text().splitlines() if run.folder.log.exists() else []
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
    """How to call `hf-ddpm` from here: by its name, or by its path in an environment that is not active."""
    return "hf-ddpm" if shutil.which("hf-ddpm") else str(Path(sys.executable).with_name("hf-ddpm"))
