"""What the parts of the GPU benchmark are told: where they write, how long they have, and how large everything is."""

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

RECIPE = "cifar10"  # unless another is named
STARTED = psutil.Process().create_time()  # of this process, before it imported anything
Blocks = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Subject:
    """A recipe that is measured.

    Args:
        parts: in their order.
        tiny: what makes its networks those of a rehearsal.
        walks: whether it is sampled in as many steps as one likes, and begins with a long warm-up.
    """

    parts: tuple[str, ...]
    tiny: Blocks
    walks: bool


SUBJECTS: Mapping[str, Subject] = {
    RECIPE: Subject(("training", "sampling", "quality"), tiny={"model": {"preset": "tiny"}}, walks=True),
    "cifar10-ddgan": Subject(
        ("quality",),  # diffusers has no example of it
        tiny={"generator": {"preset": "tiny"}, "discriminator": {"preset": "tiny"}, "data": {"image_size": 8}},
        walks=False,
    ),
}


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Args:
        tiny: whether the networks are those of a rehearsal.
        batch_size: of a training step; None is the recipe's.
        mixed_precision: of training, and of sampling.
        compile: whether the networks are also compiled, and trained compiled.
        calls: steps of a turn.
        stage_seconds: how long contestants take turns.
        sampling_batch: images of one call of a pipeline.
        num_inference_steps: network calls of a walk.
        train_split, test_split: of the data.
        samples: that the Fréchet distance is measured of.
        log_every: steps between two lines of the log.
        warmup_steps: the most steps of linear growth of the learning rate.
        seconds_between: evaluations, about.
        num_workers: processes that decode images for diffusers' example.
        cpu_threads: of ours; None is the recipe's.
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
    """What one part is told.

    Args:
        result: the file of results, into which each figure is written as soon as it is known.
        work: a folder for what is thrown away afterwards.
        seconds: after which the part shall end by itself, counted from the start of its process.
        data: folder with train.parquet and test.parquet of CIFAR-10; None is the embedded digits, for a rehearsal.
        seed: of weights, order, noise and samples.
        scale: how large everything is.
        name: of the recipe, a key of `SUBJECTS`.
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
        """What is measured."""
        return SUBJECTS[self.name]

    def left(self) -> float:
        """Seconds until this process shall end."""
        return STARTED + self.seconds - time.time()

    def note(self, part: str, **figures: Any) -> None:
        """Write figures of a part into the file of results. One process writes at a time."""
        note(self.result, part, figures)

    def noted(self, part: str) -> dict[str, Any]:
        """What is written of a part so far."""
        found: dict[str, Any] = json.loads(self.result.read_text())["parts"].get(part, {})
        return found

    def source(self) -> tuple[str, str, str]:
        """The data, with the splits to train and to test on."""
        if self.data is None:
            return "digits", "train[:96]", "train[4500:4564]"
        return str(self.data), self.scale.train_split, self.scale.test_split

    def recipe(self, changed: Blocks) -> Recipe:
        """The recipe on these data and at this scale, with further keys replaced."""
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
    """Where everything computes."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
