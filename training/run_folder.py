"""One run on disk: recipe.yaml, log.jsonl, samples/, states/ to resume from, checkpoint/ to share, and best/."""

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
FIXED = {"training.batch_size", "training.seed"}  # which decide what is learned from
FREE_DATA = {"cache", "num_workers", "max_pixels"}  # how images are read, and not which
FREE_RATES = {"lr", "muon_lr", "warmup_steps", "decay", "floor", "max_grad_norm"}  # of every optimization
LOCK, HOLDER = ".lock", ".lock.txt"


class RunFolder:
    """The files of a run. Every process may ask where they are; only the main process writes.

    Args:
        path: the run's folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self._lock = FileLock(self.path / LOCK)
        self.recipe, self.log = self.path / "recipe.yaml", self.path / "log.jsonl"
        self.samples, self.states = self.path / "samples", self.path / "states"
        self.checkpoint = self.path / "checkpoint"
        self.best = self.path / "best"  # the checkpoint that selection prefers
        self.pushed = self.path / "pushed"  # a checkpoint of the way, until it has arrived on the Hub

    @property
    def is_empty(self) -> bool:
        """Whether a new run may begin here."""
        if not self.path.is_dir():
            return not self.path.exists()
        return not {path.name for path in self.path.iterdir()} - {LOCK, HOLDER}

    @property
    def holds_run(self) -> bool:
        """Whether a run began here, even if nothing of it was saved."""
        return self.recipe.exists() or self.states.is_dir()

    def check_new(self) -> None:
        """Refuse a folder that holds anything, so that no run is overwritten or mixed with another."""
        if self.holds_run:
            raise UserError(
                f"output_dir {self.path} holds another run: continue it with --resume auto, or choose another "
                "--output_dir"
            )
        self._check_no_other_files()

    def check_resumable(self, resume: str) -> None:
        """Refuse a folder from which nothing can be continued; `auto` also takes one where nothing is."""
        if self.holds_run or (resume == "auto" and self.is_empty):
            return
        if resume == "latest" and self.is_empty:
            raise UserError(f"--resume latest: {self.path} holds no run: give --resume auto, which begins one")
        self._check_no_other_files()

    def create(self, recipe: Recipe) -> None:
        """Make the folders and write the recipe, or say why that is not possible."""
        self.hold()
        with writing(self.path):
            for folder in (self.samples, self.states):
                folder.mkdir(parents=True, exist_ok=True)
            self._write(recipe)
        self.forget_after(0)  # of a run that began here and saved nothing

    def hold(self) -> None:
        """Keep every other process from running here, until `release` or the end of this one, whatever ends it.

        Raises:
            UserError: another one runs here, which is named.
        """
        holder = self.path / HOLDER
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                who = holder.read_text() if holder.is_file() else "another process"
                raise UserError(
                    f"output_dir {self.path} is in use by {who}: wait until it ends, or choose another --output_dir"
                ) from None
            except NotImplementedError:  # a file system without locks, where the user has to see to it
                return
            holder.write_text(f"process {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")

    def release(self) -> None:
        """Let others run here."""
        if self._lock.is_locked:
            (self.path / HOLDER).unlink(missing_ok=True)
            self._lock.release(force=True)

    def state_of(self, step: int) -> Path:
        """Where the state of a step is saved."""
        return self.states / f"step_{step:08d}"

    def find_state(self, resume: str) -> Path | None:
        """The folder that `--resume` names; None for `latest` and `auto`."""
        if resume in ("auto", "latest"):
            return None
        state = Path(resume).expanduser()
        if not state.is_dir() or state.resolve().parent != self.states.resolve():
            raise UserError(
                f"--resume {resume}: that is no state of output_dir {self.path}: give auto, latest, or a folder under "
                f"{self.states}"
            )
        return state

    def saved_states(self) -> list[Path]:
        """Finished states, oldest first."""
        return sorted(path for path in self.states.glob("step_*") if path.is_dir()) if self.states.is_dir() else []

    def began(self) -> dict[str, Any] | None:
        """The recipe that the run began with, and what changed since; None if it cannot be read any more."""
        try:
            found = yaml.safe_load(self.recipe.read_text())
        except (OSError, yaml.YAMLError, UnicodeDecodeError):
            return None
        return found if isinstance(found, dict) and found else None

    def changes(self, recipe: Recipe) -> dict[str, list[Any]]:
        """What a resumed run does otherwise than it did before: [before, now] by `block.key`.

        Raises:
            UserError: another model, other data, another objective or batch than the run began with.
        """
        before = self.began()
        if before is None:
            if self.saved_states():
                raise UserError(
                    f"--resume: {self.recipe} is missing or damaged, so what the run began with is not known: write "
                    "the recipe there again, as it was"
                )
            return {}
        began, given = ({FAMILY: family_of(one), **_complete(one)} for one in (before, _plain(recipe)))
        for one in (began, given):
            one.pop("training.output_dir", None)  # a folder that was moved
        changed = {
            key: [began.get(key), given.get(key)] for key in {**began, **given} if began.get(key) != given.get(key)
        }
        for key in sorted(filter(_is_fixed, changed), key=lambda key: (key != FAMILY, key)):
            first = f"with {began[key]!r}" if key in began else "without one"
            now_is = f"is {given[key]!r}" if key in given else "is not given"
            raise UserError(
                f"--resume: {key} {now_is} but the run began {first}: resume with the same recipe, or start another "
                "--output_dir"
            )
        return changed

    def record(self, recipe: Recipe, changes: Mapping[str, list[Any]], step: int) -> None:
        """Keep what a run goes on with from `step` in recipe.yaml, and in its history what it was before."""
        before = self.began()
        if before is None or changes:
            entry = {"step": step, "date": time.strftime("%Y-%m-%d"), "changed": dict(changes)}
            with writing(self.recipe, remedy=GO_ON):
                self._write({**recipe, HISTORY: [*(before or {}).get(HISTORY, []), entry]})

    def check_same_classes(self, data: DataFacts) -> None:
        """Refuse to resume a run of version 0.1, whose recipe has no `family`, with classes in another order.

        Raises:
            UserError: that version put the names of these classes in the order of words.
        """
        names = [*(data.class_names or ())]
        before = sorted(names)
        if data.in_natural_order and names != before and FAMILY not in (self.began() or {}):
            first = next(i for i, (old, new) in enumerate(zip(before, names, strict=True)) if old != new)
            raise UserError(
                f"--resume: the run numbered its classes as words, so that {first} is {before[first]!r}, and this "
                f"version numbers them naturally, so that {first} is {names[first]!r}: finish it with hf_ddpm 0.1, or "
                "start another --output_dir"
            )

    def _check_no_other_files(self) -> None:
        if not self.is_empty:
            raise UserError(f"output_dir {self.path} holds other files and no run: choose another --output_dir")

    def _write(self, recipe: Recipe) -> None:
        """Write recipe.yaml whole or not at all."""
        with new_file(self.recipe) as new:
            new.write_text(yaml.safe_dump(_plain(recipe), sort_keys=False))

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


def _complete(recipe: Recipe) -> dict[str, Any]:
    """The values of a recipe by `block.key`; what it leaves out is as by default, unless a preset says what it is."""
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
    """Whether a resumed run must have a value of the recipe that it began with."""
    block, _, name = key.partition(".")
    free = (
        block in FREE_BLOCKS
        or (block == "data" and name in FREE_DATA)
        or (block.endswith("optimization") and name in FREE_RATES)
        or key == "latents.cache"
    )
    return key in FIXED or not free


def _plain(recipe: Recipe) -> Recipe:
    """Tuples as lists, so that YAML reads back what it wrote."""
    return json.loads(json.dumps(recipe))
