"""A noisy classifier's accuracy: while it is trained, to keep the best checkpoint, and afterwards, for its card."""

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
    """A measured classifier: each image is noised once, at a t that is drawn uniformly.

    Selection looks at the training images. What a card says is measured on others: those of `data.held_back`, or the
    test split.

    Args:
        every: steps between two selections, of which the best is kept in the run's folder `best`; null selects none.
        samples: how many noisy images are looked at; 0 measures nothing, null is one of each image, at most 10,000.
        test_source: of the images to test on; null is the training data's.
        test_split: of it.
        sampling_seed: of t and of the noise for the card; those for the selection have the next one.
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
    """Measures the classifier of a run; see `Evaluator`. Made before training begins, so that a mistake costs none.

    Args:
        recipe: Of the run.
        settings: Its block `evaluation`.
        accelerator: Of the processes.
        vae: In whose latents the classifier works, None for pixels.

    Attributes:
        every: Steps between two selections, or None.
        plan: What is measured, in words.

    Raises:
        UserError: images that cannot be opened.
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
        """The figures that checkpoints are compared by, the smallest first of them: of training images."""
        if self._training is None:
            with self._accelerator.main_process_first():
                self._training = plain_images(self._recipe, **self._labels)
        numbers: list[dict[str, Any]] = self._record(networks, self._training, 1)["numbers"]
        return numbers

    def measure(self, networks: Networks) -> dict[str, Any]:
        """The record of a finished checkpoint: of images that it was not trained on."""
        return {"measured_on": self._measured_on, **self._record(networks, self._test, 0)}

    def _record(self, networks: Networks, data: ImageData, seed: int) -> dict[str, Any]:
        about = {"kind": kind_of_recipe(self._recipe).word}
        settings = {"num_images": self._settings.samples, "seed": self._settings.sampling_seed + seed}
        settings |= {"accelerator": self._accelerator, "vae": self._vae}
        return accuracy_record(networks[MODEL], data, about, **settings)


def make_evaluator(recipe: Recipe, family: InSpaceOfVAE, accelerator: Accelerator) -> AccuracyEvaluator | None:
    """What measures a run's classifier; None measures nothing.

    Raises:
        UserError: as `AccuracyEvaluator`, and a selection by nothing.
    """
    settings = Accuracy(**recipe["evaluation"])
    if settings.samples != 0:
        return AccuracyEvaluator(recipe, settings, accelerator, family.vae)
    if settings.every is not None:
        raise UserError(f"evaluation.every={settings.every} measures nothing with samples=0: leave one of them out")
    return None
