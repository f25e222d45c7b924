"""States to resume from. A state is complete or does not exist; its manifest shows whether it is damaged.

A state consists of what Accelerate saves (weights, optimizers, random numbers), the averages, what the objective has
learned, and state.json: the step, the number of processes, the versions, the data, and a checksum of every file. The
manifest state.json is written last, and checked before anything is loaded.
"""

import contextlib
import json
import shutil
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate.utils import DistributedType, broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from hf_ddpm.checkpoint import GO_ON, new_folder, unfinished, writing
from hf_ddpm.errors import UserError, quoted
from hf_ddpm.training.run import Run, mean_said
from hf_ddpm.training.run_folder import START_ANEW
from hf_ddpm.training.stopping import Agreement, RunStopped
from hf_ddpm.weights import file_sha256

MANIFEST = "state.json"
OBJECTIVE = "objective.safetensors"
OLDER_COUNTERS, OLDER_OBJECTIVE = "counters.json", "loss_history.safetensors"  # in states of version 0.1
WRITTEN_BY = ("hf_ddpm", "torch", "accelerate", "diffusers")


def save_state(run: Run) -> None:
    """Save everything that a resumed run needs, in a folder that appears when it is complete.

    Raises:
        UserError: If losses or numbers are not finite, which would make the state useless, or the disk is full.
    """
    if run.said:
        mean_said(run)
    check_finite(run)
    final = run.folder.state_of(run.step)
    on_main = run.accelerator.is_main_process
    with writing(final, remedy=GO_ON), new_folder(final) if on_main else contextlib.nullcontext():
        run.accelerator.wait_for_everyone()
        run.accelerator.save_state(str(unfinished(final)))
        if on_main:
            for name, ema in averages(run).items():
                ema.save_pretrained(unfinished(final) / name)
            if learned := run.objective.state():
                save_file(learned, unfinished(final) / OBJECTIVE)
        run.accelerator.wait_for_everyone()
        if on_main:
            write_manifest(unfinished(final), _facts(run))
    if on_main:
        remove_old_states(run.folder.saved_states(), run.checkpoints.keep)
    run.accelerator.wait_for_everyone()  # until the state is in place


def stop_if_asked(run: Run, agreement: Agreement) -> None:
    """Save the state of this step and stop the run, if a stop was requested; step 0 has no state.

    Raises:
        RunStopped: If a stop was requested.
    """
    if (reason := agreement.reason()) is None:
        return
    state = run.folder.state_of(run.step) if run.step else None
    if state is not None and state not in run.folder.saved_states():
        save_state(run)
    raise RunStopped(reason, run.step, state)


def write_manifest(state: Path, facts: dict[str, Any]) -> None:
    """Write the facts of a state, with the size and the SHA-256 of each of its files."""
    files = {
        path.relative_to(state).as_posix(): {"size": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(state.rglob("*"))
        if path.is_file()
    }
    (state / MANIFEST).write_text(json.dumps({**facts, "files": files}, indent=2) + "\n")


def read_manifest(state: Path) -> dict[str, Any]:
    """Read the facts of a state; in version 0.1 they are only the step and the seconds.

    Raises:
        ValueError: If they cannot be read.
    """
    for name in (MANIFEST, OLDER_COUNTERS):
        if (state / name).is_file():
            found = json.loads((state / name).read_bytes())
            if not isinstance(found, dict) or not isinstance(found.get("step"), int):
                raise ValueError(f"{name} does not contain the step")
            return found
    raise ValueError(f"{MANIFEST} is missing")


def damage_of(state: Path, *, thorough: bool = True) -> str | None:
    """Return what is wrong with a state; None if it is complete and undamaged.

    Args:
        state: The folder of the state.
        thorough: Whether to compare the checksums too, and not only the sizes.
    """
    try:
        files = read_manifest(state).get("files", {})
        for name, told in files.items():
            path = state / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != told["size"]:
                return f"{name} has {path.stat().st_size:,} bytes but was saved with {told['size']:,}"
            if thorough and file_sha256(path) != told["sha256"]:
                return f"{name} has another checksum than when it was saved"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return quoted(error)
    return None


def remove_old_states(states: list[Path], keep: int) -> None:
    """Delete states, oldest first, until `keep` states are left that are complete according to their file sizes."""
    whole = [state for state in states if damage_of(state, thorough=False) is None]
    for state in states[: states.index(whole[-keep])] if len(whole) > keep else []:
        shutil.rmtree(state, ignore_errors=True)


def choose_state(run: Run, resume: str) -> Path | None:
    """Return the state that `--resume` names, checked by the main process; None if there is none to resume from.

    For `latest` and `auto` it is the newest undamaged state. A damaged state is reported, and the previous one is used.

    Raises:
        UserError: If the named state is damaged, or all states are.
    """
    chosen: Path | None = None
    complaint: str | None = None
    if run.accelerator.is_main_process:
        named = run.folder.find_state(resume)
        candidates = run.folder.saved_states()[::-1] if named is None else [named]
        damaged = []
        for state in candidates:
            if (damage := damage_of(state)) is None:
                chosen = state
                break
            damaged.append(f"the state {state} is damaged ({damage})")
        if chosen is None and damaged:
            complaint = f"{damaged[0]}: {_instead_of(run, named)}"
        elif damaged:
            run.accelerator.print("\n".join(f"WARNING: {said}: using {chosen} instead" for said in damaged))
    chosen, complaint = broadcast_object_list([chosen, complaint])
    if complaint is not None:
        raise UserError(complaint)
    return chosen


def _instead_of(run: Run, named: Path | None) -> str:
    """Return what to do if no state is left to resume from: the one that `--resume` names, or any, is damaged."""
    if named is not None and len(run.folder.saved_states()) > 1:
        return "use --resume latest, which takes the newest undamaged state"
    return f"there is no other one, {START_ANEW}"


def load_state(run: Run, state: Path) -> None:
    """Continue from a saved state: weights, optimizers, averages, what the objective has learned, and counters.

    Everything else follows from the step.
    """
    _require_weights(run, state)
    try:
        manifest = read_manifest(state)
        run.accelerator.load_state(str(state))
        for name, ema in averages(run).items():
            ema.load_state_dict(type(ema).from_pretrained(state / name).state_dict())
        run.objective.load(_learned(state))
    except UserError:  # of an optimizer, about its state
        raise
    except (OSError, SafetensorError, ValueError, RuntimeError, EOFError, UnpicklingError) as error:
        raise UserError(
            f"the state {state} cannot be read ({quoted(error)}): resume from an older one in {state.parent}"
        ) from error
    run.resumed, run.step, run.seconds = state, manifest["step"], manifest["seconds"]
    run.seconds_logged = run.seconds
    if run.step > run.training.total_steps:
        raise UserError(
            f"{state} is at step {run.step}, beyond total_steps={run.training.total_steps}: set a larger --total_steps"
        )
    if (data := manifest.get("data")) is not None and data != data_facts(run):
        before, now = (f"{one['num_images'] or 0:,} images" for one in (data, data_facts(run)))
        run.accelerator.print(
            f"WARNING: the dataset has changed since step {run.step} of this run ({before} then, {now} now): the run "
            "continues with the current data"
        )
    if run.accelerator.is_main_process:
        run.folder.forget_after(run.step)
    run.accelerator.wait_for_everyone()


def averages(run: Run) -> dict[str, Any]:
    """Return the players' averaged networks, by the names of their folders in a saved state."""
    averaged = {name: player.ema.model for name, player in run.players.items() if player.ema is not None}
    return {"ema" if len(run.players) == 1 else f"ema_{name}": network for name, network in averaged.items()}


def check_finite(run: Run) -> None:
    """Reject weights, averages and optimizer states that are not finite, before they are saved.

    Raises:
        UserError: If some are not finite; the message names them and what to do. Every process raises it.
    """
    found = [name for name, tensors in _numbers_of(run).items() if not _all_finite(tensors)]
    any_of_them = run.accelerator.reduce(torch.tensor(float(bool(found)), device=run.accelerator.device), "sum")
    if any_of_them:
        what = " and ".join(found) or "the state of another process"
        raise UserError(f"there are non-finite values in {what} at step {run.step}: {run.how_to_mend()}")


def _numbers_of(run: Run) -> dict[str, list[Tensor]]:
    """Return the trained numbers of a state, by their names in messages; other numbers may have no value yet."""
    found: dict[str, list[Tensor]] = {}
    for name, player in run.players.items():
        of = "the" if len(run.players) == 1 else f"the {name}'s"
        network = run.accelerator.unwrap_model(player.model)
        weights = {key: weight for key, weight in network.named_parameters() if weight.requires_grad}
        states = [value for state in player.optimizer.state.values() for value in state.values()]
        found[f"{of} weights"] = [*weights.values()]
        found[f"{of} optimizer state"] = [value for value in states if isinstance(value, Tensor)]
        if player.ema is not None:
            averaged = dict(player.ema.model.named_parameters())
            found[f"{of} averaged weights"] = [averaged[key] for key in weights]
    return found


def _all_finite(tensors: list[Tensor]) -> bool:
    """Check all tensors at once: a sum in float64 is finite if and only if every term is finite."""
    floating = [t.to_local() if isinstance(t, DTensor) else t for t in tensors if t.is_floating_point()]
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in floating:
        by_device.setdefault(tensor.device, []).append(tensor.detach().sum(dtype=torch.float64))
    return all(bool(torch.stack(sums).isfinite().all()) for sums in by_device.values())


def data_facts(run: Run) -> dict[str, Any]:
    """Return the facts by which a changed dataset is recognised."""
    return {"num_images": run.data.num_images, "num_classes": run.data.num_classes, "contents": run.data.contents}


def _facts(run: Run) -> dict[str, Any]:
    return {
        "format": 1,
        "step": run.step,
        "seconds": run.seconds,
        "processes": run.accelerator.num_processes,
        "versions": {name: version(name) for name in WRITTEN_BY},
        "data": data_facts(run),
    }


def _require_weights(run: Run, state: Path) -> None:
    """Raise an error if the weights of a network are missing; sharded weights are in other files."""
    if run.accelerator.distributed_type == DistributedType.FSDP:
        return
    wanted = {f"model_{i}.safetensors" if i else "model.safetensors": name for i, name in enumerate(run.players)}
    wanted |= dict.fromkeys(averages(run), "average")
    for file, name in wanted.items():
        if not (state / file).exists():
            raise UserError(
                f"the state {state} does not contain {file}, the weights of the {name}: resume from an older one in "
                f"{state.parent}"
            )


def _learned(state: Path) -> dict[str, Tensor]:
    """Load what the objective had learned; empty if nothing was saved."""
    file = next((state / name for name in (OBJECTIVE, OLDER_OBJECTIVE) if (state / name).is_file()), None)
    return {} if file is None else load_file(file)
