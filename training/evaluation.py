"""Samples measured while a model is trained, to keep the best checkpoint, and afterwards, for its card.

Selection looks at the training images, with a sampling seed of its own. What a card says is measured on images that the
model was not trained on, with another seed, for the last checkpoint and for the best one.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from accelerate import Accelerator

from hf_ddpm.data import ImageData
from hf_ddpm.data.options import size_of
from hf_ddpm.data.sources import DIGITS
from hf_ddpm.errors import UserError
from hf_ddpm.evaluation.evaluate import evaluate
from hf_ddpm.evaluation.images import Drawn
from hf_ddpm.evaluation.measure import OF_DIGITS, Real, check_metrics
from hf_ddpm.evaluation.report import pipeline_conditions, record
from hf_ddpm.kinds import kind_of_recipe
from hf_ddpm.metrics.digits import SIDE
from hf_ddpm.metrics.extractors import DIGITS as DIGITS_EXTRACTOR
from hf_ddpm.metrics.extractors import open_extractor
from hf_ddpm.metrics.reference import MNIST_TEST, load_reference, mnist_test, reference_of, require_same_conditions
from hf_ddpm.places import last_name
from hf_ddpm.training.family import Family
from hf_ddpm.training.recipe import Block, Recipe, image_shape, keys_of
from hf_ddpm.training.settings import Evaluation

if TYPE_CHECKING:
    from PIL.Image import Image

Networks = Mapping[str, Any]  # by the player's name
BATCH = 64
_OF_TRAINING = (
    "horizontal_flip",
    "crop_scale",
    "binarize",
    "binarize_seed",
    "label_column",
    "num_classes",
    "cache",
    "num_workers",
)


class TestImages(Protocol):
    """The settings that say which images a run is tested on."""

    @property
    def test_source(self) -> str | None:
        """Of the images; None is the training data's."""

    @property
    def test_split(self) -> str:
        """Of it."""


class Evaluator(Protocol):
    """Measures the checkpoints of a run.

    Attributes:
        every: Steps between two selections, or None.
        plan: What a finished checkpoint is measured on, in words.
    """

    every: int | None
    plan: str

    def select(self, networks: Networks) -> list[dict[str, Any]]:
        """The figures that checkpoints are compared by, the smallest first of them: of the training images."""

    def measure(self, networks: Networks) -> dict[str, Any]:
        """The record of a finished checkpoint: of images that it was not trained on."""


class SampleEvaluator:
    """Measures the samples of a run. Made before training begins, so that a mistake costs none.

    Args:
        recipe: Of the run.
        family: That draws the samples.
        accelerator: Of the processes.
        samples: How many are measured.

    Attributes:
        every: Steps between two selections, or None.
        plan: What a finished checkpoint is measured on, in words.

    Raises:
        UserError: an extractor or images that cannot be opened, or that do not fit each other.
    """

    def __init__(self, recipe: Recipe, family: Family, accelerator: Accelerator, samples: int) -> None:
        self._settings = Evaluation(**recipe["evaluation"])
        self._recipe, self._family, self._accelerator = recipe, family, accelerator
        self._samples, self.every = samples, self._settings.every
        self._extractor = open_extractor(self._settings.extractor, accelerator.device)
        size, channels = image_shape(recipe)
        try:
            self._extractor(torch.zeros(2, channels, *size_of(size), dtype=torch.uint8))
        except ValueError as error:  # images that it cannot see
            raise UserError(
                f"evaluation: {error}; name another network with --evaluation.extractor, or "
                f"{_measure_nothing(self._settings)}"
            ) from error
        self._training: Real | None = None
        with accelerator.main_process_first():
            self._test, self._measured_on = self._open_test()
        require_same_conditions(self._test.reference, self._extractor, size_of(size))
        self.plan = f"{samples:,} samples against {self._measured_on}"

    def select(self, networks: Networks) -> list[dict[str, Any]]:
        """The figures that checkpoints are compared by, the smallest first of them: against the training images."""
        if self._training is None:
            with self._accelerator.main_process_first():
                self._training = Real(reference_of(plain_images(self._recipe), self._extractor))
        found = self._record(networks, self._training, self._settings.sampling_seed + 1)
        return list(found["numbers"])

    def measure(self, networks: Networks) -> dict[str, Any]:
        """The record of a finished checkpoint: against images that it was not trained on."""
        return {"measured_on": self._measured_on, **self._record(networks, self._test, self._settings.sampling_seed)}

    def _record(self, networks: Networks, real: Real, seed: int) -> dict[str, Any]:
        family, kind = self._family, kind_of_recipe(self._recipe)
        pipeline: Any = family.pipeline(networks)
        pipeline.set_progress_bar_config(disable=True)
        family.sample(pipeline, [], seed)  # which gives the pipeline its sampler
        sampling = family.facts(networks).get("sampling") or {}
        call = {key: value for key, value in sampling.items() if key not in ("scheduler", "name")}
        conditions = pipeline_conditions(pipeline, call) | {
            "seed": seed,
            "channels": pipeline.image_channels,
            "averaged_weights": self._recipe.get("ema", "unknown"),
        }

        def draw(pipeline: Any, indices: Sequence[int], *, seed: int, batch_size: int) -> "Iterator[Image]":
            return iter(family.sample(pipeline, indices, seed))

        source = Drawn(pipeline, draw, seed, BATCH, conditions=conditions)
        found = evaluate(
            source,
            real,
            self._extractor,
            check_metrics(["fd"], self._extractor),
            num_images=self._samples,
            allow_few=True,
            accelerator=self._accelerator,
        )
        about = {"kind": kind.word, "weights_sha256": conditions["weights_sha256"][kind.network]}
        return record(found, source, real, self._extractor, about)

    def _open_test(self) -> tuple[Real, str]:
        """What is measured against at the end, and what it is in words."""
        settings, held_back = self._settings, self._recipe["data"].get("held_back", 0)
        named = settings.test_source is not None or settings.test_split != Evaluation.test_split or held_back
        embedded = _source_of(self._recipe) == DIGITS and self._extractor.name == DIGITS_EXTRACTOR
        name = settings.reference or (MNIST_TEST if embedded and not named else None)  # they have no test split
        if name is not None:
            known = mnist_test() if name == MNIST_TEST else load_reference(Path(name))
            return Real(known), f"statistics {last_name(name)}"
        data, words = open_test_images(self._recipe, settings)
        return Real(reference_of(data, self._extractor), class_names=data.class_names), words


def plain_images(recipe: Recipe, **more: Any) -> ImageData:
    """The images of training as they are: not mirrored, not cropped at random, not binarised, without labels.

    Args:
        recipe: whose block `data` they are of.
        more: keywords of `ImageData` instead of the recipe's.
    """
    block = {key: value for key, value in recipe["data"].items() if key not in _OF_TRAINING}
    if block.get("resize") == "random_crop":
        block["resize"] = "crop"
    return ImageData(**(block | {"cache": "none"} | more))


def open_test_images(recipe: Recipe, settings: TestImages, **more: Any) -> tuple[ImageData, str]:
    """Images that a run is not trained on, and what they are in words: those that it holds back, or its test split.

    Args:
        recipe: of the run.
        settings: its block `evaluation`.
        more: as in `plain_images`.

    Raises:
        UserError: there is no such split.
    """
    if held_back := recipe["data"].get("held_back", 0):
        return plain_images(recipe, part="held_back", **more), f"{held_back:,} images held back from training"
    source = {} if settings.test_source is None else {"source": settings.test_source}
    try:
        data = plain_images(recipe, split=settings.test_split, **source, max_images=None, **more)
    except UserError as error:
        raise UserError(
            f"evaluation: {error}; name images to test on with --test_source and --test_split, keep some from "
            f"training with --held_back, or {_measure_nothing(settings)}"
        ) from error
    return data, f"split {settings.test_split}"


def _measure_nothing(settings: TestImages) -> str:
    """How a run with this block goes without, in words."""
    on_the_way = isinstance(settings, Evaluation) and settings.every is not None
    return f"measure nothing with --samples 0{' --evaluation.every null' if on_the_way else ''}"


def make_evaluator(recipe: Recipe, family: Family, accelerator: Accelerator) -> SampleEvaluator | None:
    """What measures a run's samples: as many as the recipe says, or 1,000 of the embedded digits; None measures none.

    Raises:
        UserError: as `SampleEvaluator`, and samples of a family that draws none.
    """
    settings = Evaluation(**recipe["evaluation"])
    samples = settings.samples
    if samples is None:
        size, channels = image_shape(recipe)
        digits = _source_of(recipe) == DIGITS and channels == 1 and min(size_of(size)) >= SIDE
        samples = OF_DIGITS if digits and family.sampling is not None else 0
    if samples and family.sampling is None:
        raise UserError("evaluation.samples: this family draws no images, leave it out")
    if samples:
        return SampleEvaluator(recipe, family, accelerator, samples)
    if settings.every is not None:
        raise UserError(
            f"evaluation.every={settings.every} measures samples, of which there are none: give --samples, or measure "
            "nothing on the way with --evaluation.every null"
        )
    return None


def _source_of(recipe: Recipe) -> Any:
    """The recipe's `data.source`, or what it is when nothing is said."""
    return recipe["data"].get("source", keys_of(Block(ImageData))["source"].default)
