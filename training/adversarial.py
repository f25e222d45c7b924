"""Training of a DDGAN: a generator and a discriminator, and how they are sampled and saved."""

import os
from collections.abc import Mapping, Sequence
from inspect import Parameter
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from hf_ddpm import HFDDGANPipeline, HFDDPMScheduler
from hf_ddpm.data import ImageData
from hf_ddpm.data.options import size_of
from hf_ddpm.errors import UserError, as_user_error
from hf_ddpm.models import DDGANDiscriminator, DDGANGenerator, discriminator_preset, generator_preset
from hf_ddpm.objectives import DISCRIMINATOR, GENERATOR, AdversarialObjective
from hf_ddpm.sampling import sample_gan
from hf_ddpm.training.ema import EMA
from hf_ddpm.training.players import Player
from hf_ddpm.training.recipe import Block, Blocks, Recipe, image_shape
from hf_ddpm.training.settings import OF_SAVING, OF_THE_LOOP, Grids, Optimization, Training

if TYPE_CHECKING:
    from PIL.Image import Image

Networks = Mapping[str, Any]  # by the name of the player
PRESET = Parameter("preset", Parameter.KEYWORD_ONLY, annotation=str)  # see `generator_preset`, `discriminator_preset`
OF_THE_DATA = ("sample_size", "in_channels", "num_classes")  # arguments of both networks that the data define
OPTIMIZATIONS = {GENERATOR: "generator_optimization", DISCRIMINATOR: "discriminator_optimization"}  # their blocks


class AdversarialFamily:
    """The family of denoising GANs, created from the blocks of a recipe, which it checks; see `Family`.

    Raises:
        UserError: If a block is invalid, or the blocks do not fit each other or the size and channels of the data.
    """

    blocks: ClassVar[Blocks] = {
        "data": Block(ImageData),
        "generator": Block(DDGANGenerator, supplied=OF_THE_DATA, more=(PRESET,)),
        "discriminator": Block(DDGANDiscriminator, supplied=OF_THE_DATA, more=(PRESET,)),
        "scheduler": Block(HFDDPMScheduler),
        "objective": Block(AdversarialObjective, supplied=("scheduler", "latent_dim", "total_steps")),
        **{block: Block(Optimization) for block in OPTIMIZATIONS.values()},
        "ema": Block(EMA, supplied=("model",)),
        **OF_THE_LOOP,
        "sampling": Block(Grids),
        **OF_SAVING,
    }
    artefact = GENERATOR
    sample_options = ""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.sampling = recipe, Grids(**recipe["sampling"])
        with as_user_error("scheduler"):
            self.scheduler = HFDDPMScheduler(**recipe["scheduler"])
        size, channels = image_shape(recipe)
        with torch.device("meta"):  # errors show before data are downloaded
            players = self._players(size_of(size), channels, None)
        training = Training(**recipe["training"])
        latent_dim = players[GENERATOR].model.config["latent_dim"]
        with as_user_error("objective"):
            self.objective = AdversarialObjective(
                self.scheduler, latent_dim=latent_dim, total_steps=training.total_steps, **recipe["objective"]
            )
        if training.compile and (self.objective.r1_gamma or self.objective.r2_gamma):
            raise UserError(
                "training.compile=True: torch.compile does not support the double backward of R1 and R2; leave "
                "--compile out, or set --r1_gamma 0 and --r2_gamma 0"
            )
        check_groups(training, players[DISCRIMINATOR].model.config["group_size"])
        self.title = f"denoising GAN, {recipe['generator']['preset']}, T = {len(self.scheduler)}"
        self._names: dict[int, str] | None = None

    def open_data(self, seed: int, device: torch.device) -> ImageData:
        """Open the recipe's images."""
        return ImageData(**self.recipe["data"])

    def build_players(self, data: ImageData) -> dict[str, Player]:
        """Build the two networks for these data; only the weights of the generator are averaged."""
        self._names = dict(enumerate(data.facts.class_names or ())) or None
        return self._players(data.image_size, data.channels, data.num_classes)

    def measure(self, networks: Networks, data: ImageData, seed: int) -> None:
        """Do nothing: this kind of model stores no measurements of its training data."""

    def pipeline(self, networks: Networks) -> HFDDGANPipeline:
        """Return the pipeline that samples from the generator; it is saved with the discriminator, if there is one."""
        return HFDDGANPipeline(networks[GENERATOR], self.scheduler, networks.get(DISCRIMINATOR), self._names)

    def sample(self, pipeline: HFDDGANPipeline, indices: Sequence[int], seed: int) -> "list[Image]":
        """Draw the images of a grid."""
        return list(sample_gan(pipeline, indices, seed=seed))

    def facts(self, networks: Networks) -> dict[str, Any]:
        """Return what the card may state in addition to the facts of every run."""
        config = networks[GENERATOR].config
        return {
            "title": self.title,
            "generator": {key: config[key] for key in ("sample_size", "in_channels", "latent_dim", "num_classes")},
            "with_discriminator": DISCRIMINATOR in networks,
            "num_train_timesteps": len(self.scheduler),
            "classes": None if config["num_classes"] is None else {"id2label": self._names},
        }

    def _players(self, size: Any, channels: int, num_classes: int | None) -> dict[str, Player]:
        """Build the recipe's presets for images with this size, these channels and classes, and their optimization."""
        of_the_data = {"sample_size": size, "in_channels": channels, "num_classes": num_classes}
        found: dict[str, Player] = {}
        for name, build in ((GENERATOR, generator_preset), (DISCRIMINATOR, discriminator_preset)):
            keywords = {**of_the_data, **self.recipe[name]}
            with as_user_error(name):
                network: Any = build(keywords.pop("preset"), **keywords)
            found[name] = Player(network, Optimization(**self.recipe[OPTIMIZATIONS[name]]), None)
        with as_user_error("ema"):
            found[GENERATOR].ema = EMA(found[GENERATOR].model, **self.recipe["ema"])
        return found


def check_groups(training: Training, group_size: int) -> None:
    """Reject batches whose parts would split a group of the minibatch standard deviation."""
    parts = training.gradient_accumulation_steps * int(os.environ.get("WORLD_SIZE", "1"))
    if parts > 1 and (training.batch_size // parts) % group_size:
        raise UserError(
            f"training.batch_size={training.batch_size} is divided into {parts} parts, by processes and accumulation "
            f"steps, whose size must be a multiple of the discriminator's group_size={group_size}: change "
            "--batch_size or --discriminator.group_size"
        )
