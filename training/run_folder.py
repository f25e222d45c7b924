"""The folder of a run: recipe.yaml, log.jsonl, samples/, states/ to resume from, checkpoint/ to share, and best/."""

import json
import math
import os
import platform
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from hf_ddpm.checkpoint import FACTS_FILE, GO_ON, new_file, read_object, writing
from hf_ddpm.data.facts import DataFacts
from hf_ddpm.errors import UserError
from hf_ddpm.kinds import FAMILY, family_of
from hf_ddpm.training.family import family_class
from hf_ddpm.training.recipe import HISTORY, Recipe, blocks_of, keys_of

FREE_BLOCKS = {"training", "sampling", "evaluation", "checkpoints", "hub"}
FIXED = {"training.batch_size", "training.seed"}  # they determine the training samples
FREE_DATA = {"cache", "num_workers", "max_pixels"}  # how images are read, but not which images
FREE_RATES = {"lr", "muon_lr", "warmup_steps", "decay", "floor", "max_grad_norm"}  # of every optimization block
LOCK, HOLDER = ".lock", ".lock.txt"
START_ANEW = "start a new run in another --output_dir, without --resume"


class RunFolder:
    """The files of a run. Every process may use their paths; only the main process writes.

    Args:
        path: The folder of the run.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self._lock = FileLock(self.path / LOCK)
        self.recipe, self.log = self.path / "recipe.yaml", self.path / "log.jsonl"
        self.samples, self.states = self.path / "samples", self.path / "states"
        self.checkpoint = self.path / "checkpoint"
        self.best = self.path / "best"  # the best checkpoint of the selections
        self.pushed = self.path / "pushed"  # an intermediate checkpoint, until it is on the Hub

    @property
    def is_empty(self) -> bool:
        """Whether a new run can begin in this folder."""
        if not self.path.is_dir():
            return not self.path.exists()
        return not {path.name for path in self.path.iterdir()} - {LOCK, HOLDER}

    @property
    def holds_run(self) -> bool:
        """Whether a run has begun in this folder, even if nothing of it was saved."""
        return self.recipe.exists() or self.states.is_dir()

    def check_new(self) -> None:
        """Reject a folder that is not empty, so that no run is overwritten or mixed with another."""
        if self.holds_run:
            raise UserError(
                f"output_dir {self.path} contains another run: continue it with --resume auto, or set another "
                "--output_dir"
            )
        self._check_no_other_files()

    def check_resumable(self, resume: str) -> None:
        """Reject a folder without a run that could be continued; `auto` also accepts an empty folder."""
        if self.holds_run or (resume == "auto" and self.is_empty):
            return
        if resume == "latest" and self.is_empty:
            raise UserError(f"--resume latest: {self.path} contains no run: use --resume auto, which starts one")
        self._check_no_other_files()

    def create(self, recipe: Recipe) -> None:
        """Create the folders and write the recipe, or raise an error that says why that is not possible."""
        self.hold()
        with writing(self.path):
            for folder in (self.samples, self.states):
                folder.mkdir(parents=True, exist_ok=True)
            self._write(recipe)
        self.forget_after(0)  # removes the log of a run that began here and saved nothing

    def hold(self) -> None:
        """Lock the folder against other processes until `release` or until this process ends, for whatever reason.

        Raises:
            UserError: If another process runs here; the message names it.
        """
        holder = self.path / HOLDER
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                who = holder.read_text() if holder.is_file() else "another process"
                raise UserError(
                    f"output_dir {self.path} is in use by {who}: wait until it ends, or set another --output_dir"
                ) from None
            except NotImplementedError:  # the file system has no locks, so the user has to prevent it
                return
            holder.write_text(f"process {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")

    def release(self) -> None:
        """Unlock the folder for other processes."""
        if self._lock.is_locked:
            (self.path / HOLDER).unlink(missing_ok=True)
            self._lock.release(force=True)

    def state_of(self, step: int) -> Path:
        """Return the folder of the state of a step."""
        return self.states / f"step_{step:08d}"

    def find_state(self, resume: str) -> Path | None:
        """Return the folder that `--resume` names; None for `latest` and `auto`."""
        if resume in ("auto", "latest"):
            return None
        state = Path(resume).expanduser()
        if not state.is_dir() or state.resolve().parent != self.states.resolve():
            raise UserError(
                f"--resume {resume} is not a state of output_dir {self.path}: use auto, latest, or a folder in "
                f"{self.states}"
            )
        return state

    def saved_states(self) -> list[Path]:
        """Return the complete states, oldest first."""
        return sorted(path for path in self.states.glob("step_*") if path.is_dir()) if self.states.is_dir() else []

    def began(self) -> dict[str, Any] | None:
        """Return the content of recipe.yaml: the recipe of the run and its history; None if it cannot be read."""
        try:
            found = yaml.safe_load(self.recipe.read_text())
        except (OSError, yaml.YAMLError, UnicodeDecodeError):
            return None
        return found if isinstance(found, dict) and found else None

    def changes(self, recipe: Recipe) -> dict[str, list[Any]]:
        """Return what a resumed run does differently than before, as [before, now] by `block.key`.

        Raises:
            UserError: If the run began with another model, other data, another objective or another batch size.
        """
        before = self.began()
        if before is None:
            if self.saved_states():
                raise UserError(
                    f"--resume: {self.recipe} is missing or damaged, so the recipe of the run is unknown: restore the "
                    "file with the original recipe"
                )
            return {}
        began, given = ({FAMILY: family_of(one), **_complete(one)} for one in (before, _plain(recipe)))
        for one in (began, given):
            one.pop("training.output_dir", None)  # the folder may have been moved
        changed = {
            key: [began.get(key), given.get(key)] for key in {**began, **given} if began.get(key) != given.get(key)
        }
        for key in sorted(filter(_is_fixed, changed), key=lambda key: (key != FAMILY, key)):
            first = f"with {began[key]!r}" if key in began else "without one"
            now_is = f"is {given[key]!r}" if key in given else "is not set"
            raise UserError(
                f"--resume: {key} {now_is} but the run began {first}: resume with the same recipe, or {START_ANEW}"
            )
        return changed

    def record(self, recipe: Recipe, changes: Mapping[str, list[Any]], step: int) -> None:
        """Save the recipe with which a run continues at `step` in recipe.yaml, and its changes in the history."""
        before = self.began()
        if before is None or changes:
            entry = {"step": step, "date": time.strftime("%Y-%m-%d"), "changed": dict(changes)}
            with writing(self.recipe, remedy=GO_ON):
                self._write({**recipe, HISTORY: [*(before or {}).get(HISTORY, []), entry]})

    def check_same_classes(self, data: DataFacts) -> None:
        """Refuse to resume a run of version 0.1, whose recipe has no `family`, if its classes have another order here.

        Raises:
            UserError: If that version sorted the names of these classes alphabetically, in another order than this
                version.
        """
        names = [*(data.class_names or ())]
        before = sorted(names)
        if data.in_natural_order and names != before and FAMILY not in (self.began() or {}):
            first = next(i for i, (old, new) in enumerate(zip(before, names, strict=True)) if old != new)
            raise UserError(
                f"--resume: the run sorted its classes alphabetically, so that {first} is {before[first]!r}, but this "
                f"version uses the natural order, so that {first} is {names[first]!r}: finish it with hf_ddpm 0.1, or "
                f"{START_ANEW}"
            )

    def _check_no_other_files(self) -> None:
        if not self.is_empty:
            raise UserError(f"output_dir {self.path} contains other files but no run: {START_ANEW}")

    def _write(self, recipe: Recipe) -> None:
        """Write recipe.yaml completely or not at all."""
        with new_file(self.recipe) as new:
            new.write_text(yaml.safe_dump(_plain(recipe), sort_keys=False))

    def append_log(self, line: dict[str, Any]) -> None:
        with writing(self.log, remedy=GO_ON), self.log.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def forget_after(self, step: int) -> None:
        """Delete the log's lines, the states and the best checkpoint after `step`; a resumed run creates them again."""
        if self.best.is_dir() and read_object(self.best / FACTS_FILE, f"delete {self.best}").get("steps", 0) > step:
            shutil.rmtree(self.best)
        for state in self.saved_states():
            if int(state.name.removeprefix("step_")) > step:
                shutil.rmtree(state)
        if self.log.exists():
            kept = [line for line in self.log.read_text().splitlines() if _step_of(line) <= step]
            with writing(self.log, remedy=GO_ON), new_file(self.log) as new:
                new.write_text("".join(f"{line}\n" for line in kept))


def _step_of(line: str) -> float:
    """Return the step of a line of the log, or infinity for a line that a full disk truncated."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf


def _complete(recipe: Recipe) -> dict[str, Any]:
    """Return the values of a recipe by `block.key`, with defaults for missing keys, except in blocks with a preset."""
    blocks = family_class(recipe).blocks
    defaults = {
        f"{name}.{key}": parameter.default
        for name, block in blocks.items()
        for key, parameter in keys_of(block).items()
        if parameter.default is not parameter.empty and not block.more
    }
    given = {f"{block}.{key}": value for block, keys in blocks_of(recipe).items() for key, value in keys.items()}
    return _plain(defaults | given)


def _is_fixed(key: str) -> bool:
    """Return whether a resumed run must keep the value of the recipe that it began with."""
    block, _, name = key.partition(".")
    free = (
        block in FREE_BLOCKS
        or (block == "data" and name in FREE_DATA)
        or (block.endswith("optimization") and name in FREE_RATES)
        or key == "latents.cache"
    )
    return key in FIXED or not free


def _plain(recipe: Recipe) -> Recipe:
    """Convert tuples to lists, so that YAML reads what it wrote."""
    return json.loads(json.dumps(recipe))
