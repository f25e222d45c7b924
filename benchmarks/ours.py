"""The shipped recipes for benchmarks: with other data, steps and folders, and the real training step."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_ddpm.kinds import FAMILY
from hf_ddpm.training.command_line import read_recipe
from hf_ddpm.training.family import check_recipe
from hf_ddpm.training.recipe import Recipe, blocks_of
from hf_ddpm.training.train import Run, optimizer_step, prepare


def recipe_with(name: str, overrides: Mapping[str, Mapping[str, Any]]) -> Recipe:
    """Return a shipped recipe with some keys replaced, checked like those of the command line."""
    recipe = read_recipe(name)
    blocks = {block: {**keys, **overrides.get(block, {})} for block, keys in blocks_of(recipe).items()}
    return check_recipe({FAMILY: recipe[FAMILY], **blocks})


def start(recipe: Recipe, folder: Path, total_steps: int) -> tuple[Run, Callable[[], Tensor]]:
    """Prepare a run of `total_steps` in a new folder; return it with a function that does its next training step.

    The function does the step like `training/train.py`, and returns the loss of the player whose turn is last.
    """
    training = recipe["training"] | {"total_steps": total_steps, "output_dir": str(folder), "tracker": "none"}
    run = prepare({**recipe, "training": training}, resume=None)
    batches = run.data.batches(
        batch_size=run.training.batch_size, seed=run.training.seed, device=run.accelerator.device
    )

    name = run.log_name(run.objective.turns[-1], "loss")

    def step() -> Tensor:
        said = optimizer_step(run, next(batches))
        run.step += 1
        return said[name]

    return run, step
