"""One run on disk: recipe.yaml, log.jsonl, samples/, states/ to resume from, checkpoint/ to share, and best/."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import yaml

from hf_ddpm.checkpoint import FACTS_FILE, GO_ON, new_file, read_object, writing
from hf_ddpm.data.facts import DataFacts
from hf_ddpm.errors import UserError
from hf_ddpm.kinds import FAMILY, family_of
from hf_ddpm.training.recipe import Recipe, blocks_of

FREE_ON_RESUME = {
    "training",
    "sampling",
    "evaluation",
    "checkpoints",
    "hub",
}  # blocks a resumed run may change, but for what fixes the batch
FIXED_TRAINING = {"batch_size", "seed"}


class RunFolder:
    """The files of a run. Every process may ask where they are; only the main process writes.

    Args:
        path: the run's folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe, self.log = self.path / "recipe.yaml", self.path / "log.jsonl"
        self.samples, self.states = self.path / "samples", self.path / "states"
        self.checkpoint = self.path / "checkpoint"
        self.best = self.path / "best"  # the checkpoint that selection prefers
        self.pushed = self.path / "pushed"  # a checkpoint of the way, until it has arrived on the Hub

    def check_new(self) -> None:
        """Refuse a folder that holds anything, so that no run is overwritten or mixed with another."""
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            what = "another run" if self.recipe.exists() else "other files"
            raise UserError(
                f"output_dir {self.path} holds {what}: continue it with --resume latest, or choose another --output_dir"
            )

    def create(self, recipe: Recipe) -> None:
        """Make the folders and write the recipe, or say why that is not possible."""
        with writing(self.path):
            for folder in (self.samples, self.states):
                folder.mkdir(parents=True, exist_ok=True)
            self.recipe.write_text(yaml.safe_dump(_plain(recipe), sort_keys=False))

    def find_state(self, resume: str) -> Path:
        """The state that `--resume` names: `latest`, or a folder."""
        if resume != "latest":
            state = Path(resume)
            if not (state / "counters.json").is_file() or state.resolve().parent != self.states.resolve():
                raise UserError(
                    f"--resume {resume}: that is no state of output_dir {self.path}: give latest, or a folder under "
                    f"{self.states}"
                )
            return state
        states = self.saved_states()
        if not states:
            raise UserError(f"--resume latest: {self.states} holds no state; start anew in another --output_dir")
        return states[-1]

    def saved_states(self) -> list[Path]:
        """Finished states, oldest first."""
        return sorted(self.states.glob("step_*")) if self.states.is_dir() else []

    def check_same_recipe(self, recipe: Recipe) -> None:
        """Refuse to resume with another model, data, objective or batch than the run began with."""
        if not self.recipe.is_file():
            raise UserError(f"--resume: {self.recipe} is missing, so what the run began with is not known")
        before, now = yaml.safe_load(self.recipe.read_text()), _plain(recipe)
        began, given = ({FAMILY: family_of(one), **_by_key(one)} for one in (before, now))
        fixed = [key for key in {*began, *given} if _is_fixed(key)]
        for key in sorted(fixed, key=lambda key: (key != FAMILY, key)):
            if began.get(key) != given.get(key):
                first = f"with {began[key]!r}" if key in began else "without one"
                now_is = f"is {given[key]!r}" if key in given else "is not given"
                raise UserError(
                    f"--resume: {key} {now_is} but the run began {first}: resume with the same recipe, or start "
                    "another --output_dir"
                )

    def check_same_classes(self, data: DataFacts) -> None:
        """Refuse to resume a run of version 0.1, whose recipe has no `family`, with classes in another order.

        Raises:
            UserError: that version put the names of these classes in the order of words.
        """
        names = [*(data.class_names or ())]
        before = sorted(names)
        if data.in_natural_order and names != before and FAMILY not in yaml.safe_load(self.recipe.read_text()):
            first = next(i for i, (old, new) in enumerate(zip(before, names, strict=True)) if old != new)
            raise UserError(
                f"--resume: the run numbered its classes as words, so that {first} is {before[first]!r}, and this "
                f"version numbers them naturally, so that {first} is {names[first]!r}: finish it with hf_ddpm 0.1, or "
                "start another --output_dir"
            )

    def remove_old_states(self, keep: int) -> None:
        for state in self.saved_states()[:-keep]:
            shutil.rmtree(state)

    def append_log(self, line: dict[str, Any]) -> None:
        with writing(self.log, remedy=GO_ON), self.log.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def forget_after(self, step: int) -> None:
        """Remove the log's lines, the states and the best checkpoint after `step`: the resumed run makes them again."""
        if self.best.is_dir() and read_object(self.best / FACTS_FILE, "delete the folder").get("steps", 0) > step:
            shutil.rmtree(self.best)
        for state in self.saved_states():
            if int(state.name.removeprefix("step_")) > step:
                shutil.rmtree(state)
        if self.log.exists():
            kept = [line for line in self.log.read_text().splitlines() if _step_of(line) <= step]
            with writing(self.log, remedy=GO_ON), new_file(self.log) as new:
                new.write_text("".join(f"{line}\n" for line in kept))


def _step_of(line: str) -> float:
    """The step of a line of the log; a line that a full disk cut short is later than any."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf


def _by_key(recipe: Recipe) -> dict[str, Any]:
    """The values of a recipe by `block.key`."""
    return {f"{block}.{key}": value for block, keys in blocks_of(recipe).items() for key, value in keys.items()}


def _is_fixed(key: str) -> bool:
    """Whether a resumed run must have a value of the recipe that it began with."""
    block, _, name = key.partition(".")
    return block not in FREE_ON_RESUME or (block == "training" and name in FIXED_TRAINING)


def _plain(recipe: Recipe) -> Recipe:
    """Tuples as lists, so that YAML reads back what it wrote."""
    return json.loads(json.dumps(recipe))
