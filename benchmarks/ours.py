"""The shipped recipes as benchmarks use them: other data, steps and folder, the real training step."""

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
    """A shipped recipe with some keys replaced, checked as a command line's are."""
    recipe = read_recipe(name)
    blocks = {block: {**keys, **overrides.get(block, {})} for block, keys in blocks_of(recipe).items()}
    return check_recipe({FAMILY: recipe[FAMILY], **blocks})


def start(recipe: Recipe, folder: Path, total_steps: int) -> tuple[Run, Callable[[], Tensor]]:
    """A run of `total_steps` in a new folder, and the call that does its next step as `training/train.py` does.

    The call returns the loss of the player whose turn is the last.
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
