"""A training run and how it is built from a recipe."""

import ctypes
import math
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration, is_tensorboard_available
from torch import Tensor, nn

from hf_ddpm.data import ImageData
from hf_ddpm.errors import UserError, quoted
from hf_ddpm.kinds import kind_of_recipe, resolve
from hf_ddpm.latent_data import LatentData
from hf_ddpm.objectives import Objective
from hf_ddpm.objectives.objective import as_pair
from hf_ddpm.training.evaluation import Evaluator
from hf_ddpm.training.family import Family, make_family
from hf_ddpm.training.players import Player, check_turns
from hf_ddpm.training.pushing import Pusher, make_pusher
from hf_ddpm.training.recipe import Recipe, blocks_of
from hf_ddpm.training.run_folder import RunFolder
from hf_ddpm.training.settings import Checkpoints, Hub, Training

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


@dataclass
class Run:
    """Everything that one training run is made of."""

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
    pusher: Pusher | None  # of the main process
    resumed: Path | None = None  # the state that it continues
    step: int = 0  # optimizer steps done
    seconds: float = 0.0  # time spent on them, without sampling and saving
    said: list[dict[str, Tensor]] = field(default_factory=list)  # by each step since the last line of the log
    remarks: set[str] = field(default_factory=set)  # that were made, each of them once

    @property
    def objective(self) -> Objective:
        """What the family minimises."""
        return self.family.objective

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The players' networks as they sample and are saved: averaged, where there is an average."""
        return {name: player.network(self.accelerator) for name, player in self.players.items()}

    def log_name(self, player: str, name: str) -> str:
        """How the log calls a figure of a player: by its name alone, if there is one player."""
        return name if len(self.players) == 1 else f"{player}/{name}"


def open_folder(recipe: Recipe, resume: str | None) -> Path | None:
    """The state to resume from, or None after making sure that the run's folder is free.

    Raises:
        UserError: a folder that holds another run, no such state, or a recipe that the resumed run did not begin with.
    """
    folder = RunFolder(Training(**recipe["training"]).output_dir)
    if resume is not None:
        state = folder.find_state(resume)
        folder.check_same_recipe(recipe)
        return state
    if os.environ.get("RANK", "0") == "0":
        folder.check_new()
    return None


def build_run(recipe: Recipe) -> Run:
    """Every part of a run, cheapest first, so that a mistake shows before data are read. Nothing is written."""
    training, checkpoints = Training(**recipe["training"]), Checkpoints(**recipe["checkpoints"])
    folder, hub = RunFolder(training.output_dir), Hub(**recipe["hub"])
    family = make_family(recipe)
    accelerator = make_accelerator(training, folder)
    pusher = make_pusher(hub, folder.path.resolve().name, accelerator) if hub.push_to_hub else None
    with accelerator.main_process_first():  # which may have to download, or to encode
        data = family.open_data(training.seed, accelerator.device)
    evaluator: Evaluator | None = resolve(kind_of_recipe(recipe).evaluator)(recipe, family, accelerator)
    torch.manual_seed(training.seed)
    players = family.build_players(data)
    check_turns(family.objective.turns, players)
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
    )


def make_accelerator(training: Training, folder: RunFolder) -> Accelerator:
    """The engine: processes, precision, accumulation and the tracker that the settings ask for."""
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
        raise UserError(f"tracker={tracker!r} is not installed: pip install {tracker}, or take tensorboard or none")
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:  # each would believe to be alone and write into the same folder
        raise UserError(
            f"the launcher started {started} processes and Accelerate joins {accelerator.num_processes}: its config "
            "asks for a kind of parallelism that this device does not have"
        )
    training.local_batch_size(accelerator.num_processes)
    if accelerator.device.type == "cpu":
        use_cpu_well(training.cpu_threads)
    return accelerator


def use_cpu_well(threads: int | None) -> None:
    """Share the cores out, of which `accelerate launch` leaves a process one, and let glibc keep freed memory.

    A step frees its buffers and asks for them again; giving them back to the system in between costs thousands of page
    faults a step.
    """
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    torch.set_num_threads(threads or max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)


def introduce(run: Run) -> None:
    """Say once what is trained on what, and where it goes."""
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
    if run.evaluator is not None:
        say(f"evaluation: {run.evaluator.plan}, at the end")
    if run.training.tracker == "auto" and not run.accelerator.log_with:
        say("curves: log.jsonl only; pip install 'hf_ddpm[train]' adds tensorboard")


def start_trackers(run: Run) -> None:
    """Open what the scalars go to beside log.jsonl."""
    if run.accelerator.log_with:
        flat = {f"{b}.{k}": str(v) for b, block in blocks_of(run.recipe).items() for k, v in block.items()}
        in_tensorboard = str(run.accelerator.log_with[0]) == "tensorboard"  # whose folder bears the project's name
        run.accelerator.init_trackers("tensorboard" if in_tensorboard else "hf_ddpm", config=flat)


def mean_said(run: Run) -> dict[str, float]:
    """The mean of every figure of the players since the last line of the log, over all processes.

    A pair [sum, count] whose count is 0 has no mean, and is left out.

    Raises:
        UserError: one is not finite. Every save asks first: a run that has diverged replaces no good state.
    """
    names = list(dict.fromkeys(name for said in run.said for name in said))  # an objective may say some now and then
    columns = [torch.stack([as_pair(said[name]) for said in run.said if name in said]).sum(dim=0) for name in names]
    pairs = run.accelerator.reduce(torch.stack(columns), reduction="sum").tolist()  # of which every process has all
    means = {name: total / count for name, (total, count) in zip(names, pairs, strict=True) if count}
    for name, mean in means.items():
        if not math.isfinite(mean):
            several = " or ".join(f"--{player}_optimization.lr" for player in run.players)
            rate = several if len(run.players) > 1 else "lr"
            raise UserError(
                f"the {name} is {mean} at step {run.step}: lower {rate}, or turn mixed_precision off; "
                "the last saved state is untouched"
            )
    return means
