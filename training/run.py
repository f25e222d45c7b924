"""A training run and how it is built from a recipe."""

import contextlib
import ctypes
import math
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration, is_tensorboard_available
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_ddpm.commands.options import require_all_processes
from hf_ddpm.data import ImageData
from hf_ddpm.errors import UserError, quoted
from hf_ddpm.kinds import kind_of_recipe, resolve
from hf_ddpm.latent_data import LatentData
from hf_ddpm.objectives import Objective
from hf_ddpm.objectives.objective import as_pair
from hf_ddpm.training.evaluation import Evaluator
from hf_ddpm.training.family import Family, make_family
from hf_ddpm.training.initial import take_weights
from hf_ddpm.training.players import Player, check_turns
from hf_ddpm.training.pushing import Pusher, make_pusher
from hf_ddpm.training.recipe import Recipe, blocks_of
from hf_ddpm.training.run_folder import START_ANEW, RunFolder
from hf_ddpm.training.settings import Checkpoints, Hub, Training

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h


@dataclass
class Run:
    """Everything that a training run consists of."""

    recipe: Recipe
    family: Family
    training: Training
    checkpoints: Checkpoints
    folder: RunFolder
    accelerator: Accelerator
    data: ImageData | LatentData
    players: dict[str, Player]
    evaluator: Evaluator | None
    hub: Hub
    pusher: Pusher | None  # only in the main process
    resumed: Path | None = None  # the state from which the run continues
    notes: list[str] = field(default_factory=list)  # to be printed when the run starts
    changes: dict[str, list[Any]] = field(default_factory=dict)  # [before, now] of what has changed since that state
    step: int = 0  # completed optimizer steps
    seconds: float = 0.0  # the time of these steps, without sampling and saving
    seconds_logged: float = 0.0  # `seconds` at the last line of the log
    seconds_per_step: list[float] = field(default_factory=list)  # between lines of the log, since this process started
    said: list[dict[str, Tensor]] = field(default_factory=list)  # the figures of each step since the last log line
    remarks: set[str] = field(default_factory=set)  # what is printed only once and has been printed

    @property
    def objective(self) -> Objective:
        """The objective of the family, which training minimises."""
        return self.family.objective

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The players' networks as they sample and are saved, with averaged weights if they are averaged."""
        return {name: player.network(self.accelerator) for name, player in self.players.items()}

    def how_to_mend(self) -> str:
        """Return the end of a message: what to do if numbers of the run are not finite."""
        rates: list[str] = []
        for name, player in self.players.items():
            option = "--" if len(self.players) == 1 else f"--{name}_optimization."
            rates += [f"{option}muon_lr", f"{option}lr"] if player.optimization.optimizer == "muon" else [f"{option}lr"]
        lower = f"a lower {' and '.join(rates)}"
        if self.accelerator.mixed_precision != "no":
            lower += ", or with --mixed_precision no"
        states = self.folder.saved_states()
        last = self.folder.state_of(self.training.total_steps)
        if last in states:  # from which no step would follow
            return f"{START_ANEW}, and with {lower}"
        if states:
            return f"continue from the last state, {states[-1]}, with --resume latest and {lower}"
        return f"start again with --resume auto and {lower}"

    def log_name(self, player: str, name: str) -> str:
        """Return the name of a player's figure in the log: the name alone if there is only one player."""
        return name if len(self.players) == 1 else f"{player}/{name}"


def open_folder(recipe: Recipe, resume: str | None) -> RunFolder:
    """Return the run's folder, after checking that it is free, or that the run in it can be continued with this recipe.

    Raises:
        UserError: If the folder contains another run, the state does not exist, or the run began with another recipe.
    """
    folder = RunFolder(Training(**recipe["training"]).output_dir)
    if resume is None:
        if os.environ.get("RANK", "0") == "0":
            folder.check_new()
        return folder
    folder.find_state(resume)
    folder.check_resumable(resume)
    folder.changes(recipe)
    return folder


def build_run(recipe: Recipe, *, begins: bool = True) -> Run:
    """Build every part of a run, the cheapest first, so that errors show before data are read. Nothing is written.

    Args:
        recipe: The recipe from `check_recipe`.
        begins: Whether no state is loaded afterwards, so that the weights of `init_from` are used.
    """
    training, checkpoints = Training(**recipe["training"]), Checkpoints(**recipe["checkpoints"])
    folder, hub = RunFolder(training.output_dir), Hub(**recipe["hub"])
    family = make_family(recipe)
    accelerator = make_accelerator(training, folder)
    pusher = make_pusher(hub, folder.path.resolve().name, accelerator) if hub.push_to_hub else None
    with accelerator.main_process_first():  # it may have to download or encode the data
        data = family.open_data(training.seed, accelerator.device)
    evaluator: Evaluator | None = resolve(kind_of_recipe(recipe).evaluator)(recipe, family, accelerator)
    torch.manual_seed(training.seed)
    players = family.build_players(data)
    check_turns(family.objective.turns, players)
    said: list[str] = []
    if begins:
        said = take_weights(players, training, kind_of_recipe(recipe), getattr(family, "scheduler", None))
    for player in players.values():
        player.prepare(accelerator, training)
    return Run(
        recipe=recipe,
        family=family,
        training=training,
        checkpoints=checkpoints,
        folder=folder,
        accelerator=accelerator,
        data=data,
        players=players,
        evaluator=evaluator,
        hub=hub,
        pusher=pusher,
        notes=said,
    )


def make_accelerator(training: Training, folder: RunFolder) -> Accelerator:
    """Create the Accelerator with the processes, the precision, the accumulation and the tracker of the settings."""
    tracker = training.tracker
    if tracker == "auto":
        tracker = "tensorboard" if is_tensorboard_available() else "none"
    try:
        accelerator = Accelerator(
            mixed_precision=training.mixed_precision,
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            log_with=None if tracker == "none" else tracker,
            project_config=ProjectConfiguration(project_dir=str(folder.path), logging_dir=str(folder.path)),
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        )
    except (ImportError, ValueError) as error:
        raise UserError(f"training: {quoted(error)}") from error
    if tracker != "none" and not accelerator.log_with:
        raise UserError(f"tracker={tracker!r} is not installed: run pip install {tracker}, or set --tracker none")
    require_all_processes(accelerator)
    training.local_batch_size(accelerator.num_processes)
    if accelerator.device.type == "cpu":
        use_cpu_well(training.cpu_threads)
    return accelerator


def use_cpu_well(threads: int | None) -> None:
    """Share the cores between processes, to which `accelerate launch` gives one each, and let glibc keep freed memory.

    A step frees its buffers and allocates them again; returning them to the system in between costs thousands of page
    faults per step.
    """
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    torch.set_num_threads(threads or max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)


def introduce(run: Run) -> None:
    """Print once what is trained on which data, and where it is saved."""
    counts = {name: sum(p.numel() for p in network.parameters()) for name, network in run.networks.items()}
    own = len(counts) > 1
    weights = ", ".join(f"{count:,} weights{f' of the {name}' if own else ''}" for name, count in counts.items())
    say = run.accelerator.print
    say(f"data: {run.data.description}")
    say(
        f"model: {run.family.title}, {weights}, on {run.accelerator.num_processes} process(es), "
        f"{run.accelerator.device}, {run.accelerator.mixed_precision}"
    )
    say(f"run: {run.folder.path}, " + (f"continuing {run.resumed} at step {run.step}" if run.resumed else "new"))
    for note in run.notes:
        say(note)
    for key, (before, now) in run.changes.items():
        say(f"changed: {key} is {now!r}, and was {before!r} until step {run.step}")
    if run.evaluator is not None:
        say(f"evaluation: {run.evaluator.plan}, at the end")
    if run.training.tracker == "auto" and not run.accelerator.log_with:
        say("curves: only in log.jsonl; pip install 'hf_ddpm[train]' adds tensorboard")


def start_trackers(run: Run) -> None:
    """Start the trackers that receive the scalars in addition to log.jsonl."""
    if run.accelerator.log_with:
        flat = {f"{b}.{k}": str(v) for b, block in blocks_of(run.recipe).items() for k, v in block.items()}
        in_tensorboard = str(run.accelerator.log_with[0]) == "tensorboard"  # its folder has the project's name
        purge = {"purge_step": run.step + 1} if run.resumed else {}  # what follows the state is written again
        with not_essential(run, "the tracker"):
            run.accelerator.init_trackers(
                "tensorboard" if in_tensorboard else "hf_ddpm", config=flat, init_kwargs={"tensorboard": purge}
            )


@contextlib.contextmanager
def not_essential(run: Run, what: str) -> Iterator[None]:
    """Run a block that the run can do without: its first failure is printed, and the run continues."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
        if what not in run.remarks and run.accelerator.is_main_process:
            run.remarks.add(what)
            tqdm.write(
                f"WARNING: {what} failed at step {run.step} ({quoted(error)}); the run continues", file=sys.stderr
            )


def mean_said(run: Run) -> dict[str, float]:
    """Return the mean of every figure of the players since the last line of the log, over all processes.

    A pair [sum, count] whose count is 0 has no mean, and is left out.

    Raises:
        UserError: If a mean is not finite. Every save checks this first, so that a diverged run replaces no good state.
    """
    names = list(dict.fromkeys(name for said in run.said for name in said))  # some are not reported in every step
    columns = [torch.stack([as_pair(said[name]) for said in run.said if name in said]).sum(dim=0) for name in names]
    pairs = run.accelerator.reduce(torch.stack(columns), reduction="sum").tolist()  # the same in every process
    means = {name: total / count for name, (total, count) in zip(names, pairs, strict=True) if count}
    for name, mean in means.items():
        if not math.isfinite(mean):
            raise UserError(f"the {name} is {mean} at step {run.step}: {run.how_to_mend()}")
    return means
