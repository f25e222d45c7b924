"""Training of a NoisyClassifier, with the cross-entropy of noisy images, and how it is saved."""

from collections.abc import Mapping, Sequence
from inspect import Parameter
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from hf_ddpm import HFClassifierPipeline, HFDDPMScheduler
from hf_ddpm.data import ImageData
from hf_ddpm.errors import UserError, as_user_error
from hf_ddpm.latent_data import LatentData
from hf_ddpm.models import NoisyClassifier, classifier_preset
from hf_ddpm.models.noisy_classifier import SCHEDULE_KEYS
from hf_ddpm.objectives import MODEL, ClassificationObjective
from hf_ddpm.training.accuracy import Accuracy
from hf_ddpm.training.latents import latent_facts, open_recipe_data, open_recipe_vae, x_0_shape
from hf_ddpm.training.players import OF_ONE_PLAYER, Player, single_player
from hf_ddpm.training.recipe import Block, Blocks, Recipe
from hf_ddpm.training.settings import OF_SAVING, OF_THE_LOOP, Latents, Optimization

if TYPE_CHECKING:
    from PIL.Image import Image

PRESET = Parameter("preset", Parameter.KEYWORD_ONLY, annotation=str)  # the network, see `classifier_preset`
OF_THE_DATA = ("sample_size", "in_channels", "num_classes", "id2label", "latents")  # arguments that the data define


class ClassifierFamily:
    """The family of noisy classifiers, created from the blocks of a recipe, which it checks; see `Family`.

    With a block `ema` without keys the weights are not averaged, like those of ADM's classifiers.

    Raises:
        UserError: If a block is invalid, or the blocks do not fit each other or the size and channels of the data.
    """

    blocks: ClassVar[Blocks] = {
        "data": Block(ImageData),
        "latents": Block(Latents),
        "model": Block(NoisyClassifier, supplied=(*OF_THE_DATA, "noise_schedule"), more=(PRESET,)),
        "scheduler": Block(HFDDPMScheduler),
        "objective": Block(ClassificationObjective, supplied=("scheduler",)),
        **OF_ONE_PLAYER,
        **OF_THE_LOOP,
        **OF_SAVING,
        "evaluation": Block(Accuracy),
    }
    artefact = MODEL
    sampling = None
    sample_options = ""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        Optimization(**recipe["optimization"])  # errors show before data are downloaded
        if recipe["data"].get("label_column") is None:
            raise UserError(
                "data.label_column is missing, but a classifier needs labels: set --label_column auto, or the name of "
                "the column"
            )
        with as_user_error("scheduler"):
            self.scheduler = HFDDPMScheduler(**recipe["scheduler"])
        with as_user_error("objective"):
            self.objective = ClassificationObjective(self.scheduler, **recipe["objective"])
        self.vae = open_recipe_vae(recipe)
        channels, size = x_0_shape(recipe, self.vae)
        with torch.device("meta"):  # errors show before data are downloaded
            self._players(sample_size=size, in_channels=channels, num_classes=2)
        self.title = f"noisy classifier, {recipe['model']['preset']}"

    def open_data(self, seed: int, device: torch.device) -> ImageData | LatentData:
        """Open the recipe's images, or their latents, with their labels."""
        return open_recipe_data(self.recipe, self.vae, seed, device)

    def build_players(self, data: ImageData | LatentData) -> dict[str, Player]:
        """Build the network for these data."""
        return self._players(
            sample_size=data.image_size,
            in_channels=data.channels,
            num_classes=data.num_classes or 0,  # never 0, because there is a label column
            id2label=dict(enumerate(data.facts.class_names or ())) or None,
            latents=latent_facts(self.vae),
        )

    def measure(self, networks: Mapping[str, Any], data: ImageData | LatentData, seed: int) -> None:
        """Do nothing: this kind of model stores no measurements of its training data."""

    def pipeline(self, networks: Mapping[str, Any]) -> HFClassifierPipeline:
        """Return the pipeline that classifies images and is saved."""
        return HFClassifierPipeline(networks[MODEL])

    def sample(self, pipeline: HFClassifierPipeline, indices: Sequence[int], seed: int) -> "list[Image]":
        """Return no images: a classifier draws none."""
        return []

    def facts(self, networks: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the card may state in addition to the facts of every run."""
        config = networks[MODEL].config
        about = {key: config[key] for key in ("sample_size", "in_channels", "num_classes", "pool", "noise_schedule")}
        return {"title": self.title, "classifier": about, "id2label": config["id2label"], "latents": config["latents"]}

    def _players(self, **of_the_data: Any) -> dict[str, Player]:
        keywords = {**of_the_data, **self.recipe["model"]}
        keywords["noise_schedule"] = {key: self.scheduler.config[key] for key in SCHEDULE_KEYS}
        with as_user_error("model"):
            network = classifier_preset(keywords.pop("preset"), **keywords)
        return single_player(network, self.recipe, averaged=bool(self.recipe["ema"]))
