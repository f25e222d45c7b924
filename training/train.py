"""Train a recipe: `accelerate launch training/train.py --recipe mnist`.

The recipe's data yield x_0; the objective draws t and noise and returns each image's loss (`loss` in the files of
hf_ddpm/objectives, L_simple in simple.py); this loop, and nothing else, turns losses into gradients, optimizer steps,
averaged weights and checkpoints, for one network or for several that take turns. All random numbers of step k are
functions of (seed, k), drawn for the whole batch and divided between the processes, so a run that is resumed, or has
another number of processes, uses the same ones.
"""

# ruff: noqa: E402  # slow imports follow the first two statements
from hf_ddpm.training.stopping import STOPPED, Agreement, RunStopped, StopRequests

REQUESTS = StopRequests()
if __name__ == "__main__":
    REQUESTS.__enter__()  # a signal during the slow imports is a request too

import contextlib
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from tqdm.auto import tqdm

from hf_ddpm.data import Batch
from hf_ddpm.errors import UserError, exit_with_a_sentence, wait_for_the_first
from hf_ddpm.objectives import Draws, Losses
from hf_ddpm.sampling import mixed_seed
from hf_ddpm.training.command_line import parse_command_line
from hf_ddpm.training.players import alone
from hf_ddpm.training.recipe import Recipe
from hf_ddpm.training.remarks import remark, slow_remark
from hf_ddpm.training.run import Run, build_run, introduce, mean_said, not_essential, open_folder, start_trackers
from hf_ddpm.training.saving import finish, push_on_the_way, save_samples, select_best
from hf_ddpm.training.states import choose_state, load_state, save_state, stop_if_asked

MEMORY_REMEDY = (
    "continue with --resume auto and --gradient_accumulation_steps 2, which keeps the batch, or with "
    "--gradient_checkpointing true"
)


def main(argv: Sequence[str] | None = None, requests: StopRequests = REQUESTS) -> None:
    """Run the command line: exit code 0 is a finished run, and 75 a run that was stopped and can be resumed.

    An error that the user can fix is one sentence on stderr and exit code 1.
    """
    with exit_with_a_sentence(MEMORY_REMEDY):
        recipe, resume = parse_command_line(sys.argv[1:] if argv is None else argv)
        try:
            train(recipe, resume, requests)
        except RunStopped as stopped:
            wait_for_the_first()
            print(stopped, file=sys.stderr)
            sys.exit(STOPPED)


def train(recipe: Recipe, resume: str | None = None, requests: StopRequests | None = None) -> Path:
    """Train a recipe and return the folder of the finished checkpoint.

    Args:
        recipe: The recipe from `check_recipe`.
        resume: `auto`, `latest`, the folder of a state, or None for a new run.
        requests: The requests to stop, if signals are handled already.

    Raises:
        UserError: If the recipe, the data or the folder have an error that the user can fix.
        RunStopped: If a signal, the limit of hours or the end of the launcher stopped the run, whose state is then
            saved.
    """
    with requests or StopRequests() as requests:
        run = prepare(recipe, resume)
        try:
            return walk(run, requests)
        finally:
            run.folder.release()


def walk(run: Run, requests: StopRequests) -> Path:
    """Take step after step until the end of a run, with the logs, grids, evaluations and states that are due."""
    batches = run.data.batches(
        batch_size=run.training.batch_size,
        seed=run.training.seed,
        start_step=run.step,
        rank=run.accelerator.process_index,
        world_size=run.accelerator.num_processes,
        device=run.accelerator.device,
    )
    introduce(run)  # after images to be cached were decoded, so that the facts about them are printed before training
    total, on_main = run.training.total_steps, run.accelerator.is_main_process
    if on_main:  # only after the data could be read: a rejected run leaves no folder
        if run.resumed is None:
            run.folder.create(run.recipe)
        else:
            run.folder.record(run.recipe, run.changes, run.step)
    start_trackers(run)
    requests.max_hours = run.training.max_hours
    agreement = Agreement(requests, run.accelerator.num_processes)
    with contextlib.closing(batches), tqdm(total=total, initial=run.step, disable=not on_main) as progress:
        while run.step < total:
            stop_if_asked(run, agreement)
            started = time.perf_counter()
            run.said.append(optimizer_step(run, next(batches)))
            run.step += 1
            run.seconds += time.perf_counter() - started
            progress.update()
            if _due(run, run.training.log_every):
                log_losses(run, progress)
            if run.family.sampling is not None and _due(run, run.family.sampling.every):
                save_samples(run, f"step_{run.step:08d}.png")
            if run.evaluator is not None and _due(run, run.evaluator.every):
                select_best(run, run.evaluator)
            if _due(run, run.checkpoints.every):
                save_state(run)
            if _due(run, run.hub.hub_every) and run.step < total:
                push_on_the_way(run)
    return finish(run, agreement)


def optimizer_step(run: Run, batch: Batch) -> dict[str, Tensor]:
    """Update every player once with one global batch.

    Returns:
        dict: The mean loss of this process's part and the further figures of the objective, by their names in the log.
    """
    rank, size = run.accelerator.process_index, len(batch.x_0)
    generator = step_generator(run.training.seed, run.step, run.accelerator.device)
    whole = run.objective.draw((run.training.batch_size, *batch.x_0.shape[1:]), generator, run.step)
    draws = whole.part(slice(rank * size, (rank + 1) * size))
    torch.manual_seed(mixed_seed(run.training.seed, run.step, 1 + rank))  # dropout
    said: dict[str, Tensor] = {}
    for turn in run.objective.turns:
        player, losses = run.players[turn], take_turn(run, turn, batch, draws)
        if not player.optimizer.step_was_skipped:  # fp16 skips a step whose gradients overflow
            if player.ema is not None:
                player.ema.update(run.accelerator.unwrap_model(player.model), run.step + 1)
            run.objective.learn(turn, whole, losses.each, run.accelerator.gather)
        said |= {run.log_name(turn, name): value for name, value in losses.said.items()}
        said[run.log_name(turn, "loss")] = (draws.weight * losses.each).mean()
    return said


def take_turn(run: Run, turn: str, batch: Batch, draws: Draws) -> Losses:
    """Take a step of the optimizer whose turn it is, with gradients that are added up over the accumulation parts.

    Accelerate counts the parts once for all players, so the parts are inside a turn and not the other way round.
    """
    player, size = run.players[turn], len(batch.x_0)
    player.optimization.set_learning_rate(player.optimizer, run.step, run.training.total_steps)
    part = size // run.training.gradient_accumulation_steps
    found: list[Losses] = []
    norms: dict[str, Tensor] = {}
    with alone(turn, run.players, run.accelerator) as models:
        for start in range(0, size, part):
            cut = slice(start, start + part)
            with run.accelerator.accumulate(player.model):
                losses = run.objective.loss(turn, models, batch.part(cut), draws.part(cut), run.step)
                run.accelerator.backward((draws.weight[cut] * losses.each).mean())
                if run.accelerator.sync_gradients:
                    bound = player.optimization.max_grad_norm
                    most = math.inf if bound is None else bound
                    norm = run.accelerator.clip_grad_norm_(player.model.parameters(), most)
                    norms["gradient_norm"] = _counted_if_finite(norm)
                player.optimizer.step()
                player.optimizer.zero_grad()
            found.append(losses)
    joined = Losses.joined(found)
    return joined._replace(said={**joined.said, **norms})


def prepare(recipe: Recipe, resume: str | None) -> Run:
    """Build a run, and load the state from which it resumes."""
    folder = open_folder(recipe, resume)
    run = build_run(recipe, begins=resume is None or not folder.saved_states())
    if folder.holds_run and run.accelerator.is_main_process:
        run.folder.hold()
    try:
        if resume is not None and (state := choose_state(run, resume)) is not None:
            run.changes = folder.changes(recipe)
            folder.check_same_classes(run.data.facts)
            load_state(run, state)
    except UserError:
        run.folder.release()
        raise
    return run


def log_losses(run: Run, progress: tqdm) -> None:
    """Write a line of the log, and show the losses in the progress bar, with the speed since the last line."""
    means = mean_said(run)
    steps, seconds = len(run.said), run.seconds - run.seconds_logged
    run.said.clear()
    run.seconds_logged = run.seconds
    run.seconds_per_step.append(seconds / steps)
    speed = steps * run.training.batch_size / max(seconds, 1e-9)
    rates = {run.log_name(name, "lr"): p.optimizer.param_groups[-1]["lr"] for name, p in run.players.items()}
    scalars = {**means, **rates, "images_per_second": round(speed, 2)}
    with not_essential(run, "the tracker"):
        run.accelerator.log(scalars, step=run.step)
    if run.accelerator.is_main_process:
        shown = {name: f"{value:.4f}" for name, value in means.items() if name.endswith("loss")}
        progress.set_postfix({**shown, "images_per_s": f"{speed:.0f}"})
        threads = torch.get_num_threads() if run.accelerator.device.type == "cpu" else 1
        game, slow = remark(means), slow_remark(run.seconds_per_step, threads)
        for once, sentence in ((game or "", game), ("speed", slow)):
            if sentence is not None and once not in run.remarks:
                run.remarks.add(once)
                progress.write(f"step {run.step}: {sentence}")
        with not_essential(run, "the log"):
            run.folder.append_log({"step": run.step, **scalars, "seconds": round(run.seconds, 3)})


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """Return the generator of t and noise in `step`, the same in every process."""
    return torch.Generator(device).manual_seed(mixed_seed(seed, step, 0))


def _counted_if_finite(norm: Tensor) -> Tensor:
    """Return a norm as [sum, count]; with fp16 it is sometimes not finite, and the step is skipped."""
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm  # with FSDP2
    return torch.stack([norm.nan_to_num(0, 0, 0), norm.isfinite().to(norm.dtype)])


def _due(run: Run, every: int | None) -> bool:
    return every is not None and run.step % every == 0


if __name__ == "__main__":
    main()
