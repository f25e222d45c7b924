"""Training of a VAE: an HFVAE with the ELBO or IWAE's bound, and how it is sampled and saved."""

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from hf_ddpm import HFVAE, HFVAEPipeline
from hf_ddpm.data import ImageData
from hf_ddpm.data.options import size_of
from hf_ddpm.errors import UserError, as_user_error
from hf_ddpm.objectives import MODEL, ELBOObjective
from hf_ddpm.sampling import sample_latents
from hf_ddpm.training.players import OF_ONE_PLAYER, Player, single_player
from hf_ddpm.training.recipe import Block, Blocks, Recipe, image_shape
from hf_ddpm.training.settings import OF_SAVING, OF_THE_LOOP, Grids, Optimization

if TYPE_CHECKING:
    from PIL.Image import Image

MEASURED_IMAGES = 2048  # the number of training images for figures that are stored in the model


class VAEFamily:
    """The family of VAEs, created from the blocks of a recipe, which it checks; see `Family`.

    Raises:
        UserError: If a block is invalid, or the blocks do not fit each other or the size and channels of the data.
    """

    blocks: ClassVar[Blocks] = {
        "data": Block(ImageData),
        "vae": Block(HFVAE),
        "elbo": Block(ELBOObjective, supplied=("likelihood", "latent_shape")),
        **OF_ONE_PLAYER,
        **OF_THE_LOOP,
        "sampling": Block(Grids),
        **OF_SAVING,
    }
    artefact = MODEL
    sample_options = ""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.sampling = recipe, Grids(**recipe["sampling"])
        Optimization(**recipe["optimization"])  # errors show before data are downloaded
        size, channels = image_shape(recipe)
        with torch.device("meta"):  # errors show before data are downloaded
            model = self._model(size, channels)
            single_player(model, recipe)
        config = model.config
        if (config["in_channels"], size_of(config["sample_size"])) != (channels, size_of(size)):
            raise UserError(
                f"vae: in_channels={config['in_channels']} and sample_size={config['sample_size']} do not fit data "
                f"with channels={channels} and image_size={size}: leave both out, the data define them"
            )
        with as_user_error("elbo"):
            self.objective = ELBOObjective(config["likelihood"], model.latent_shape, **recipe["elbo"])
        self.title = f"VAE, {config['network']}, {config['likelihood']}, {math.prod(model.latent_shape)} latent numbers"

    def open_data(self, seed: int, device: torch.device) -> ImageData:
        """Open the recipe's images."""
        return ImageData(**self.recipe["data"])

    def build_players(self, data: ImageData) -> dict[str, Player]:
        """Build the network for these data."""
        return single_player(self._model(data.image_size, data.channels), self.recipe)

    def measure(self, networks: Mapping[str, Any], data: ImageData, seed: int) -> None:
        """Store the scale of the latents in the model and, for `gaussian_optimal`, the sigma that fits best."""
        model: HFVAE = networks[MODEL]
        count = min(MEASURED_IMAGES, data.num_images or MEASURED_IMAGES)
        with closing(data.batches(batch_size=count, seed=seed)) as batches:
            images = next(batches).x_0
        images = images.to(model.device)
        model.measure_scaling_factor(images)
        if model.config["likelihood"] == "gaussian_optimal":
            model.measure_log_variance(images)

    def pipeline(self, networks: Mapping[str, Any]) -> HFVAEPipeline:
        """Return the pipeline that samples from the model and is saved."""
        return HFVAEPipeline(networks[MODEL])

    def sample(self, pipeline: HFVAEPipeline, indices: Sequence[int], seed: int) -> "list[Image]":
        """Draw the images of a grid, from the prior."""
        return list(sample_latents(pipeline, indices, seed=seed))

    def facts(self, networks: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the card may state in addition to the facts of every run."""
        return {"title": self.title, "scaling_factor": networks[MODEL].config["scaling_factor"]}

    def _model(self, image_size: int | Sequence[int], channels: int) -> HFVAE:
        keywords: dict[str, Any] = {"sample_size": size_of(image_size), "in_channels": channels}
        with as_user_error("vae"):
            return HFVAE(**(keywords | self.recipe["vae"]))
