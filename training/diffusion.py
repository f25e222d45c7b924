"""Training of a diffusion model: a UNet with one of DDPM's objectives, and how it is sampled and saved."""

from collections.abc import Mapping, Sequence
from inspect import Parameter
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import nn

from hf_ddpm import HFDDPMPipeline, HFDDPMScheduler, unet_preset
from hf_ddpm.data import ImageData
from hf_ddpm.data.options import size_of
from hf_ddpm.errors import UserError, as_user_error
from hf_ddpm.latent_data import LatentData
from hf_ddpm.models import ADMUNet
from hf_ddpm.objectives import MODEL, make_objective
from hf_ddpm.pipelines.doors import stock_samples_the_same
from hf_ddpm.pipelines.network_signature import NetworkSignature
from hf_ddpm.sampling import name_of_sampler, sample_images
from hf_ddpm.schedulers.annotations import parameters_of
from hf_ddpm.training.latents import latent_facts, open_recipe_data, open_recipe_vae, x_0_shape
from hf_ddpm.training.players import OF_ONE_PLAYER, Player, single_player
from hf_ddpm.training.recipe import Block, Blocks, Recipe
from hf_ddpm.training.settings import OF_SAVING, OF_THE_LOOP, Latents, Optimization, Sampling

if TYPE_CHECKING:
    from PIL.Image import Image

Networks = Mapping[str, Any]  # by the name of the player
PRESET = Parameter("preset", Parameter.KEYWORD_ONLY, annotation=str)  # the UNet, see `unet_preset`
OF_ADM_UNETS = tuple(p for key, p in parameters_of(ADMUNet).items() if key not in parameters_of(UNet2DModel))


class DiffusionFamily:
    """The family of diffusion models, created from the blocks of a recipe, which it checks; see `Family`.

    Raises:
        UserError: If a block is invalid, or the blocks do not fit each other or the size and channels of the data.
    """

    blocks: ClassVar[Blocks] = {
        "data": Block(ImageData),
        "latents": Block(Latents),
        "model": Block(UNet2DModel, more=(PRESET, *OF_ADM_UNETS)),
        "scheduler": Block(HFDDPMScheduler),
        "objective": Block(make_objective, supplied=("scheduler",)),
        **OF_ONE_PLAYER,
        **OF_THE_LOOP,
        "sampling": Block(Sampling),
        **OF_SAVING,
    }
    artefact = MODEL
    sample_options = ""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.sampling = recipe, Sampling(**recipe["sampling"])
        Optimization(**recipe["optimization"])  # errors show before data are downloaded
        with as_user_error("scheduler"):
            self.scheduler = HFDDPMScheduler(**recipe["scheduler"])
        with as_user_error("objective"):
            self.objective = make_objective(self.scheduler, **recipe["objective"])
        self.title: str = recipe["model"]["preset"]
        steps = self.sampling.num_inference_steps
        if steps > len(self.scheduler):
            raise UserError(f"sampling.num_inference_steps={steps} must be at most T={len(self.scheduler)}")
        with as_user_error("sampling"):
            self.scheduler.set_timesteps(steps)
        if Latents(**recipe["latents"]).vae is not None:
            check_latents(recipe, self.scheduler)
        self.vae = open_recipe_vae(recipe)
        channels, size = x_0_shape(recipe, self.vae)
        network = check_model(recipe, self.scheduler, size, channels)
        with as_user_error("sampling"):
            self.sampling.sampler(HFDDPMPipeline(network, self.scheduler))
        check_label_dropout(recipe, network.config)
        self._config = network.config
        self._classes: dict[str, Any] = {}

    def open_data(self, seed: int, device: torch.device) -> ImageData | LatentData:
        """Open the recipe's images, or their latents."""
        return open_recipe_data(self.recipe, self.vae, seed, device)

    def build_players(self, data: ImageData | LatentData) -> dict[str, Player]:
        """Build the network for these data."""
        block, dropout = self.recipe["model"], self.objective.label_dropout
        self._classes = classes_of(self._config, block, data, dropout)
        self.objective.null_class = self._classes.get("null_class")
        network = build_model(block, self.scheduler, data.image_size, data.channels, data.num_classes, dropout)
        return single_player(network, self.recipe)

    def measure(self, networks: Networks, data: ImageData | LatentData, seed: int) -> None:
        """Do nothing: this kind of model stores no measurements of its training data."""

    def pipeline(self, networks: Networks) -> HFDDPMPipeline:
        """Return the pipeline that samples from the network and is saved."""
        return HFDDPMPipeline(networks[MODEL], self.scheduler, vae=self.vae, **self._classes)

    def sample(self, pipeline: HFDDPMPipeline, indices: Sequence[int], seed: int) -> "list[Image]":
        """Draw the images of a grid."""
        return list(sample_images(pipeline, indices, seed=seed, **self.sampling.sampler(pipeline)))

    def facts(self, networks: Networks) -> dict[str, Any]:
        """Return what the card may state in addition to the facts of every run."""
        return {
            "stock": self.vae is None and stock_samples_the_same(self.scheduler.config, networks[MODEL], None),
            "latents": latent_facts(self.vae),
            "classes": self._classes or None,
            "sampling": self._sampler_facts(networks),
        }

    def _sampler_facts(self, networks: Networks) -> dict[str, Any]:
        """Return how grids are drawn; eta is None if another scheduler than `HFDDPMScheduler` draws them."""
        pipeline = self.pipeline(networks)
        call = {"eta": None} | self.sampling.sampler(pipeline)
        scheduler = None if isinstance(pipeline.scheduler, HFDDPMScheduler) else type(pipeline.scheduler).__name__
        return {**call, "scheduler": scheduler, "name": name_of_sampler(pipeline, call["eta"])}


def check_latents(recipe: Recipe, scheduler: HFDDPMScheduler) -> None:
    """Reject options that have a meaning only for pixels."""
    if scheduler.config["clip_sample"] or scheduler.config["thresholding"]:
        raise UserError(
            "scheduler: clip_sample and thresholding limit pixels to [-1, 1], but latents exceed this range: set "
            "--clip_sample false and --thresholding false"
        )
    if recipe["objective"].get("loss", "simple") != "simple":
        raise UserError(
            f"objective.loss={recipe['objective']['loss']!r} has a likelihood of grey levels at t = 0, which latents "
            "do not have: set --loss simple"
        )


def check_model(recipe: Recipe, scheduler: HFDDPMScheduler, size: int | Sequence[int], channels: int) -> Any:
    """Build the network and its average without memory, before data are opened, so that errors show before a download.

    Returns:
        UNet2DModel | ADMUNet: The network, on the meta device.
    """
    with torch.device("meta"):
        model: Any = build_model(recipe["model"], scheduler, size, channels)
        single_player(model, recipe)
    with as_user_error("model"):
        NetworkSignature.of(model.config, scheduler.config)
    inputs, outputs = model.config["in_channels"], model.config["out_channels"]
    fit = scheduler.output_channels(channels)
    if (inputs, outputs) != (channels, fit):
        raise UserError(
            f"model: in_channels={inputs} and out_channels={outputs} do not fit data with {channels} channel(s) and "
            f"variance_type={scheduler.config['variance_type']!r}: leave in_channels out, and set "
            f"--out_channels {fit}"
        )
    return model


def check_label_dropout(recipe: Recipe, network: Mapping[str, Any]) -> None:
    """Reject label dropout if there are no labels, or if the network cannot have a class "no label".

    Args:
        recipe: The recipe.
        network: The config of the network, in which the recipe and its preset have set how classes are embedded.
    """
    dropout, remedy = recipe["objective"].get("label_dropout"), "or set --label_dropout 0"
    if not dropout:
        return
    if recipe["data"].get("label_column") is None:
        raise UserError(
            f"objective.label_dropout={dropout} needs labels, but there is no label_column: set --label_column auto, "
            f"{remedy}"
        )
    if network.get("class_embed_type") is not None:
        raise UserError(
            f'objective.label_dropout={dropout} needs an additional class for "no label", which is not possible with '
            f"model.class_embed_type={network['class_embed_type']!r}: leave class_embed_type out, {remedy}"
        )


def classes_of(
    network: Mapping[str, Any], block: Mapping[str, Any], data: ImageData | LatentData, label_dropout: float = 0.0
) -> dict[str, Any]:
    """Return what a pipeline needs to know about the data's K classes: their names, and the class "no label".

    Args:
        network: The config of the network, in which the recipe and its preset have set the classes.
        block: The block `model` of the recipe.
        data: The training data, with their labels.
        label_dropout: The label dropout of the objective; above 0 the network has K + 1 classes.

    Returns:
        dict: `null_class`, which is K if the network has K + 1 classes, and `id2label` of `HFDDPMPipeline`; empty
        without labels.

    Raises:
        UserError: If the network has classes but the data have no labels, or if its number of classes is neither K nor
            K + 1; with label dropout, it must be K + 1.
    """
    num_classes = data.num_classes
    if num_classes is None:
        if network["num_class_embeds"] is not None:
            raise UserError(
                f"model: the network has num_class_embeds={network['num_class_embeds']}, but the data have no labels: "
                "set --label_column auto, or --num_class_embeds null"
            )
        return {}
    embedded = block.get("num_class_embeds", embedded_classes(num_classes, label_dropout))  # as in `build_model`
    uncounted = embedded is None and network.get("class_embed_type") is not None
    if embedded not in (num_classes, num_classes + 1) and not uncounted:
        raise UserError(
            f"model.num_class_embeds={embedded} does not fit data with num_classes={num_classes}: leave it out, or set "
            f'it to {num_classes + 1}, for an additional class that stands for "no label"'
        )
    if label_dropout and embedded != num_classes + 1:
        raise UserError(
            f"model.num_class_embeds={embedded} leaves no class for objective.label_dropout={label_dropout}: leave it "
            f"out, or set it to {num_classes + 1}"
        )
    names = (data.facts.class_names or ())[:num_classes]
    null_class = num_classes if embedded == num_classes + 1 else None
    return {"null_class": null_class, "id2label": dict(enumerate(names)) or None}


def build_model(
    block: Mapping[str, Any],
    scheduler: HFDDPMScheduler,
    image_size: int | Sequence[int],
    channels: int,
    num_classes: int | None = None,
    label_dropout: float = 0.0,
) -> nn.Module:
    """Build the recipe's preset; image size, channels and classes come from the data unless the recipe sets them.

    So do the output channels, which also depend on the scheduler's variance, and the additional class of
    `label_dropout`.
    """
    keywords: dict[str, Any] = {"sample_size": size_of(image_size), "in_channels": channels}
    keywords["out_channels"] = scheduler.output_channels(channels)
    keywords |= {} if num_classes is None else {"num_class_embeds": embedded_classes(num_classes, label_dropout)}
    keywords |= block
    with as_user_error("model"):
        return unet_preset(keywords.pop("preset"), **keywords)


def embedded_classes(num_classes: int, label_dropout: float) -> int:
    """Return K, or K + 1 with label dropout: class K then stands for "no label"."""
    return num_classes + 1 if label_dropout else num_classes
