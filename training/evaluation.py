"""Measure samples during training, to keep the best checkpoint, and at the end, for its card.

The selection compares samples with the training images, and has its own sampling seed. The figures on the card are
measured on images that the model was not trained on, with another seed, for the last checkpoint and for the best one.
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

Networks = Mapping[str, Any]  # by the name of the player
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
    """The settings that determine the test images of a run."""

    @property
    def test_source(self) -> str | None:
        """The source of the images; None is the source of the training data."""

    @property
    def test_split(self) -> str:
        """The split of the images."""


class Evaluator(Protocol):
    """Measures the checkpoints of a run.

    Attributes:
        every: The number of steps between two selections, or None.
        plan: A description of what a finished checkpoint is measured on.
    """

    every: int | None
    plan: str

    def select(self, networks: Networks) -> list[dict[str, Any]]:
        """Measure the figures that compare checkpoints, on training images; the smallest first figure is the best."""

    def measure(self, networks: Networks) -> dict[str, Any]:
        """Return the record of a finished checkpoint, measured on images that it was not trained on."""


class SampleEvaluator:
    """Measures the samples of a run. It is created before training, so that errors show early.

    Args:
        recipe: The recipe of the run.
        family: The family of the run, which draws the samples.
        accelerator: The accelerator of the run.
        samples: The number of samples.

    Attributes:
        every: The number of steps between two selections, or None.
        plan: A description of what a finished checkpoint is measured on.

    Raises:
        UserError: If the extractor or the images cannot be opened, or do not fit each other.
    """

    def __init__(self, recipe: Recipe, family: Family, accelerator: Accelerator, samples: int) -> None:
        self._settings = Evaluation(**recipe["evaluation"])
        self._recipe, self._family, self._accelerator = recipe, family, accelerator
        self._samples, self.every = samples, self._settings.every
        self._extractor = open_extractor(self._settings.extractor, accelerator.device)
        size, channels = image_shape(recipe)
        try:
            self._extractor(torch.zeros(2, channels, *size_of(size), dtype=torch.uint8))
        except ValueError as error:  # the extractor does not support these images
            raise UserError(
                f"evaluation: {error}; set another network with --evaluation.extractor, or "
                f"{_measure_nothing(self._settings)}"
            ) from error
        self._training: Real | None = None
        with accelerator.main_process_first():
            self._test, self._measured_on = self._open_test()
        require_same_conditions(self._test.reference, self._extractor, size_of(size))
        self.plan = f"{samples:,} samples against {self._measured_on}"

    def select(self, networks: Networks) -> list[dict[str, Any]]:
        """Measure the figures that compare checkpoints, on training images; the smallest first figure is the best."""
        if self._training is None:
            with self._accelerator.main_process_first():
                self._training = Real(reference_of(plain_images(self._recipe), self._extractor))
        found = self._record(networks, self._training, self._settings.sampling_seed + 1)
        return list(found["numbers"])

    def measure(self, networks: Networks) -> dict[str, Any]:
        """Return the record of a finished checkpoint, measured against images that it was not trained on."""
        return {"measured_on": self._measured_on, **self._record(networks, self._test, self._settings.sampling_seed)}

    def _record(self, networks: Networks, real: Real, seed: int) -> dict[str, Any]:
        family, kind = self._family, kind_of_recipe(self._recipe)
        pipeline: Any = family.pipeline(networks)
        pipeline.set_progress_bar_config(disable=True)
        family.sample(pipeline, [], seed)  # sets the sampler of the pipeline
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
        """Open what is compared with at the end, and return it with a description."""
        settings, held_back = self._settings, self._recipe["data"].get("held_back", 0)
        named = settings.test_source is not None or settings.test_split != Evaluation.test_split or held_back
        embedded = _source_of(self._recipe) == DIGITS and self._extractor.name == DIGITS_EXTRACTOR
        name = settings.reference or (MNIST_TEST if embedded and not named else None)  # which have no test split
        if name is not None:
            known = mnist_test() if name == MNIST_TEST else load_reference(Path(name))
            return Real(known), f"statistics {last_name(name)}"
        data, words = open_test_images(self._recipe, settings)
        return Real(reference_of(data, self._extractor), class_names=data.class_names), words


def plain_images(recipe: Recipe, **more: Any) -> ImageData:
    """Open the training images as they are: without mirroring, random crops, binarisation and labels.

    Args:
        recipe: The recipe, whose block `data` describes the images.
        more: Arguments of `ImageData` that replace those of the recipe.
    """
    block = {key: value for key, value in recipe["data"].items() if key not in _OF_TRAINING}
    if block.get("resize") == "random_crop":
        block["resize"] = "crop"
    return ImageData(**(block | {"cache": "none"} | more))


def open_test_images(recipe: Recipe, settings: TestImages, **more: Any) -> tuple[ImageData, str]:
    """Open images that a run is not trained on, with a description: those that it holds back, or its test split.

    Args:
        recipe: The recipe of the run.
        settings: The block `evaluation` of the recipe.
        more: As in `plain_images`.

    Raises:
        UserError: If the test images cannot be opened.
    """
    if held_back := recipe["data"].get("held_back", 0):
        return plain_images(recipe, part="held_back", **more), f"{held_back:,} images held back from training"
    source = {} if settings.test_source is None else {"source": settings.test_source}
    try:
        data = plain_images(recipe, split=settings.test_split, **source, max_images=None, **more)
    except UserError as error:
        hold_back = "" if recipe["data"].get("streaming") else "hold back training images with --held_back, "
        raise UserError(
            f"evaluation: {error}; set the test images with --test_source and --test_split, {hold_back}or "
            f"{_measure_nothing(settings)}"
        ) from error
    return data, f"split {settings.test_split}"


def _measure_nothing(settings: TestImages) -> str:
    """Return the end of a message: how to turn off the evaluation of a run with this block."""
    on_the_way = getattr(settings, "every", None) is not None
    return f"measure nothing with --samples 0{' --evaluation.every null' if on_the_way else ''}"


def make_evaluator(recipe: Recipe, family: Family, accelerator: Accelerator) -> SampleEvaluator | None:
    """Return the evaluator of a run's samples, or None if nothing is measured.

    It measures as many samples as the recipe sets; by default 1,000 of models of the embedded digits, and none of
    others.

    Raises:
        UserError: As in `SampleEvaluator`, and if samples are set for a family that draws none, or `every` without
            samples.
    """
    settings = Evaluation(**recipe["evaluation"])
    samples = settings.samples
    if samples is None:
        size, channels = image_shape(recipe)
        digits = _source_of(recipe) == DIGITS and channels == 1 and min(size_of(size)) >= SIDE
        samples = OF_DIGITS if digits and family.sampling is not None else 0
    if samples and family.sampling is None:
        raise UserError("evaluation.samples: this family draws no images; leave it out")
    if samples:
        return SampleEvaluator(recipe, family, accelerator, samples)
    if settings.every is not None:
        raise UserError(
            f"evaluation.every={settings.every} needs samples, but their number is 0: set --samples, or turn off the "
            "selection with --evaluation.every null"
        )
    return None


def _source_of(recipe: Recipe) -> Any:
    """Return the recipe's `data.source`, or its default."""
    return recipe["data"].get("source", keys_of(Block(ImageData))["source"].default)
