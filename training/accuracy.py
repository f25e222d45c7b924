"""Measure the accuracy of a noisy classifier: during training, to keep the best checkpoint, and for its card."""

from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from hf_ddpm.data import ImageData
from hf_ddpm.errors import UserError, require_at_least
from hf_ddpm.evaluation.noisy_accuracy import MOST, accuracy_record
from hf_ddpm.kinds import kind_of_recipe
from hf_ddpm.objectives import MODEL
from hf_ddpm.training.evaluation import Networks, open_test_images, plain_images
from hf_ddpm.training.latents import InSpaceOfVAE
from hf_ddpm.training.recipe import Recipe


@dataclass(frozen=True)
class Accuracy:
    """Settings for measuring a classifier: each image is noised once, at a t that is drawn uniformly.

    Checkpoints are selected by their figures on the training images. The figures on the card are measured on other
    images: those of `data.held_back`, or the test split.

    Args:
        every: The number of steps between two selections, of which the best checkpoint is kept in the run's folder
            `best`; null disables the selection.
        samples: The number of noisy images to measure, where 0 measures nothing; null is one of each image, at most
            10,000.
        test_source: The source of the test images; null is the source of the training data.
        test_split: The split of the test images.
        sampling_seed: The seed of t and of the noise for the card; the selection uses the next seed.
    """

    every: int | None = None
    samples: int | None = None
    test_source: str | None = None
    test_split: str = "test"
    sampling_seed: int = 1

    def __post_init__(self) -> None:
        require_at_least(1, every=self.every)
        require_at_least(0, samples=self.samples, sampling_seed=self.sampling_seed)


class AccuracyEvaluator:
    """Measures the classifier of a run; see `Evaluator`. It is created before training, so that errors show early.

    Args:
        recipe: The recipe of the run.
        settings: The block `evaluation` of the recipe.
        accelerator: The accelerator of the run.
        vae: The VAE in whose latents the classifier works; None for pixels.

    Attributes:
        every: The number of steps between two selections, or None.
        plan: A description of what is measured.

    Raises:
        UserError: If the images cannot be opened.
    """

    def __init__(self, recipe: Recipe, settings: Accuracy, accelerator: Accelerator, vae: Any) -> None:
        self._recipe, self._settings, self._accelerator, self._vae = recipe, settings, accelerator, vae
        self._labels = {key: recipe["data"][key] for key in ("label_column", "num_classes") if key in recipe["data"]}
        self.every = settings.every
        self._training: ImageData | None = None
        with accelerator.main_process_first():
            self._test, self._measured_on = open_test_images(recipe, settings, **self._labels)
        count = min(self._test.num_images or 0, MOST) if settings.samples is None else settings.samples
        self.plan = f"{count:,} noisy images of {self._measured_on}"

    def select(self, networks: Networks) -> list[dict[str, Any]]:
        """Measure the figures that compare checkpoints, on training images; the smallest first figure is the best."""
        if self._training is None:
            with self._accelerator.main_process_first():
                self._training = plain_images(self._recipe, **self._labels)
        numbers: list[dict[str, Any]] = self._record(networks, self._training, 1)["numbers"]
        return numbers

    def measure(self, networks: Networks) -> dict[str, Any]:
        """Return the record of a finished checkpoint, measured on images that it was not trained on."""
        return {"measured_on": self._measured_on, **self._record(networks, self._test, 0)}

    def _record(self, networks: Networks, data: ImageData, seed: int) -> dict[str, Any]:
        about = {"kind": kind_of_recipe(self._recipe).word}
        settings = {"num_images": self._settings.samples, "seed": self._settings.sampling_seed + seed}
        settings |= {"accelerator": self._accelerator, "vae": self._vae}
        return accuracy_record(networks[MODEL], data, about, **settings)


def make_evaluator(recipe: Recipe, family: InSpaceOfVAE, accelerator: Accelerator) -> AccuracyEvaluator | None:
    """Return the evaluator of a run's classifier, or None if nothing is measured.

    Raises:
        UserError: As in `AccuracyEvaluator`, and if `every` is set although nothing is measured.
    """
    settings = Accuracy(**recipe["evaluation"])
    if settings.samples != 0:
        return AccuracyEvaluator(recipe, settings, accelerator, family.vae)
    if settings.every is not None:
        raise UserError(f"evaluation.every={settings.every} has no effect with samples=0: leave one of them out")
    return None
