"""The settings of the parts of the GPU benchmark: their output, time limits, and sizes."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from benchmarks.ours import recipe_with
from benchmarks.report import write_json
from hf_ddpm.training.recipe import Recipe

RECIPE = "cifar10"  # the default
STARTED = psutil.Process().create_time()  # when this process started, before it imported anything
Blocks = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Subject:
    """A recipe that is measured.

    Args:
        parts: The parts of the benchmark, in order.
        tiny: The keys that replace its networks by those of a rehearsal.
        walks: Whether its number of sampling steps can be chosen, and whether it has a long warm-up.
    """

    parts: tuple[str, ...]
    tiny: Blocks
    walks: bool


SUBJECTS: Mapping[str, Subject] = {
    RECIPE: Subject(("training", "sampling", "quality"), tiny={"model": {"preset": "tiny"}}, walks=True),
    "cifar10-ddgan": Subject(
        ("quality",),  # diffusers has no example for it
        tiny={"generator": {"preset": "tiny"}, "discriminator": {"preset": "tiny"}, "data": {"image_size": 8}},
        walks=False,
    ),
}


@dataclass(frozen=True)
class Scale:
    """The sizes of everything.

    Args:
        tiny: Whether the networks are those of a rehearsal.
        batch_size: The batch size of a training step; None uses that of the recipe.
        mixed_precision: The precision of training and sampling.
        compile: Whether the networks are also measured compiled, and trained compiled.
        calls: The number of training steps in one turn.
        stage_seconds: The time for which contestants take turns.
        sampling_batch: The number of images in one call of a pipeline.
        num_inference_steps: The number of network calls for sampling.
        train_split, test_split: The splits of the data.
        samples: The number of samples for the Fréchet distance.
        log_every: The number of steps between two lines of the log.
        warmup_steps: The number of warm-up steps of the learning rate.
        seconds_between: The approximate time between evaluations.
        num_workers: The number of processes that decode images for diffusers' example.
        cpu_threads: The number of threads of hf_ddpm; None uses that of the recipe.
    """

    tiny: bool
    batch_size: int | None
    mixed_precision: Literal["no", "bf16"]
    compile: bool
    calls: int
    stage_seconds: float
    sampling_batch: int
    num_inference_steps: int
    train_split: str
    test_split: str
    samples: int
    log_every: int
    warmup_steps: int
    seconds_between: float
    num_workers: int
    cpu_threads: int | None


FULL = Scale(
    tiny=False,
    batch_size=None,
    mixed_precision="bf16",
    compile=True,
    calls=10,
    stage_seconds=10.0,
    sampling_batch=256,
    num_inference_steps=20,
    train_split="train",
    test_split="test",
    samples=2048,
    log_every=50,
    warmup_steps=500,
    seconds_between=40.0,
    num_workers=8,
    cpu_threads=None,
)
TINY = Scale(
    tiny=True,
    batch_size=4,
    mixed_precision="no",
    compile=False,
    calls=2,
    stage_seconds=2.0,
    sampling_batch=2,
    num_inference_steps=3,
    train_split="train[:96]",
    test_split="test[:64]",
    samples=8,
    log_every=5,
    warmup_steps=5,
    seconds_between=3.0,
    num_workers=1,
    cpu_threads=1,
)


@dataclass(frozen=True)
class Job:
    """The settings of one part.

    Args:
        result: The file of results, to which each figure is written as soon as it is known.
        work: A folder for temporary files.
        seconds: The time after which the part should end by itself, from the start of its process.
        data: The folder with train.parquet and test.parquet of CIFAR-10; None uses the embedded digits (rehearsal).
        seed: The seed of weights, order, noise and samples.
        scale: The sizes of everything.
        name: The name of the recipe, a key of `SUBJECTS`.
    """

    result: Path
    work: Path
    seconds: float
    data: Path | None
    seed: int
    scale: Scale
    name: str = RECIPE

    @property
    def subject(self) -> Subject:
        """The recipe that is measured."""
        return SUBJECTS[self.name]

    def left(self) -> float:
        """Return the seconds until this process should end."""
        return STARTED + self.seconds - time.time()

    def note(self, part: str, **figures: Any) -> None:
        """Write figures of a part to the file of results. Only one process writes at a time."""
        note(self.result, part, figures)

    def noted(self, part: str) -> dict[str, Any]:
        """Return the figures of a part that are written so far."""
        found: dict[str, Any] = json.loads(self.result.read_text())["parts"].get(part, {})
        return found

    def source(self) -> tuple[str, str, str]:
        """Return the data, with the splits for training and for testing."""
        if self.data is None:
            return "digits", "train[:96]", "train[4500:4564]"
        return str(self.data), self.scale.train_split, self.scale.test_split

    def recipe(self, changed: Blocks) -> Recipe:
        """Return the recipe for these data and this scale, with further keys replaced."""
        source, split, _ = self.source()
        blocks: dict[str, dict[str, Any]] = {
            "data": {"source": source, "split": split},
            "training": {"seed": self.seed, "cpu_threads": self.scale.cpu_threads},
        }
        blocks["training"] |= {"mixed_precision": self.scale.mixed_precision, "log_every": self.scale.log_every}
        if self.data is None:
            blocks["data"]["resize"] = "stretch"  # 28x28 digits
        if self.scale.batch_size is not None:
            blocks["training"]["batch_size"] = self.scale.batch_size
        for more in (self.subject.tiny if self.scale.tiny else {}, changed):
            for name, keys in more.items():
                blocks[name] = blocks.get(name, {}) | dict(keys)
        return recipe_with(self.name, blocks)


def note(result: Path, part: str, figures: Mapping[str, Any]) -> None:
    """Add figures of a part to a file of results."""
    found = json.loads(result.read_text())
    found["parts"].setdefault(part, {}).update(figures)
    write_json(result, found)


def device() -> torch.device:
    """Return the device of all computations."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
