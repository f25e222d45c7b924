"""What a diffusion recipe trains: a UNet, by one of DDPM's objectives, and how it is sampled and saved."""

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
from hf_ddpm.objectives import MODEL, make_objective
from hf_ddpm.pipelines.doors import stock_samples_the_same
from hf_ddpm.pipelines.network_signature import NetworkSignature
from hf_ddpm.sampling import name_of_sampler, sample_images
from hf_ddpm.training.latents import latent_facts, open_recipe_data, open_recipe_vae, x_0_shape
from hf_ddpm.training.players import OF_ONE_PLAYER, Player, single_player
from hf_ddpm.training.recipe import Block, Blocks, Recipe
from hf_ddpm.training.settings import OF_SAVING, OF_THE_LOOP, Latents, Optimization, Sampling

if TYPE_CHECKING:
    from PIL.Image import Image

Networks = Mapping[str, Any]  # by the player's name
PRESET = Parameter("preset", Parameter.KEYWORD_ONLY, annotation=str)  # of the UNet, see `unet_preset`


class DiffusionFamily:
    """The blocks `model`, `scheduler`, `objective` and `sampling` of a recipe, checked; see `Family`.

    Raises:
        UserError: what they cannot be, together or with the data's size and channels.
    """

    blocks: ClassVar[Blocks] = {
        "data": Block(ImageData),
        "latents": Block(Latents),
        "model": Block(UNet2DModel, more=(PRESET,)),
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
        Optimization(**recipe["optimization"])  # a mistake costs no download
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
        """The recipe's images, or their latents."""
        return open_recipe_data(self.recipe, self.vae, seed, device)

    def build_players(self, data: ImageData | LatentData) -> dict[str, Player]:
        """The network for these data."""
        block, dropout = self.recipe["model"], self.objective.label_dropout
        self._classes = classes_of(self._config, block, data, dropout)
        self.objective.null_class = self._classes.get("null_class")
        network = build_model(block, self.scheduler, data.image_size, data.channels, data.num_classes, dropout)
        return single_player(network, self.recipe)

    def measure(self, networks: Networks, data: ImageData | LatentData, seed: int) -> None:
        """Nothing is left to measure when such a model is saved."""

    def pipeline(self, networks: Networks) -> HFDDPMPipeline:
        """What samples from the network, and is saved."""
        return HFDDPMPipeline(networks[MODEL], self.scheduler, vae=self.vae, **self._classes)

    def sample(self, pipeline: HFDDPMPipeline, indices: Sequence[int], seed: int) -> "list[Image]":
        """Images of a grid."""
        return list(sample_images(pipeline, indices, seed=seed, **self.sampling.sampler(pipeline)))

    def facts(self, networks: Networks) -> dict[str, Any]:
        """What the card may say beside the facts of every run."""
        config = networks[MODEL].config
        return {
            "stock": self.vae is None and stock_samples_the_same(self.scheduler.config, config, None),
            "latents": latent_facts(self.vae),
            "classes": self._classes or None,
            "sampling": self._sampler_facts(networks),
        }

    def _sampler_facts(self, networks: Networks) -> dict[str, Any]:
        """How grids are drawn; eta is None where another scheduler than ours draws them."""
        pipeline = self.pipeline(networks)
        call = {"eta": None} | self.sampling.sampler(pipeline)
        scheduler = None if isinstance(pipeline.scheduler, HFDDPMScheduler) else type(pipeline.scheduler).__name__
        return {**call, "scheduler": scheduler, "name": name_of_sampler(pipeline, call["eta"])}


def check_latents(recipe: Recipe, scheduler: HFDDPMScheduler) -> None:
    """Refuse what has a meaning for pixels only."""
    if scheduler.config["clip_sample"] or scheduler.config["thresholding"]:
        raise UserError(
            "scheduler: clip_sample and thresholding keep pixels in [-1, 1], where latents are not: give "
            "--clip_sample false"
        )
    if recipe["objective"].get("loss", "simple") != "simple":
        raise UserError(
            f"objective.loss={recipe['objective']['loss']!r} has a decoder of grey levels at t = 0, which latents are "
            "not: give --loss simple"
        )


def check_model(recipe: Recipe, scheduler: HFDDPMScheduler, size: int | Sequence[int], channels: int) -> Any:
    """Build the network and its average without memory, before data are opened: a mistake costs no download.

    Returns:
        UNet2DModel: the network, on the meta device.
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
            f"model: {inputs} input and {outputs} output channels do not fit images of {channels} and "
            f"variance_type={scheduler.config['variance_type']!r}: leave in_channels to the data and give "
            f"--out_channels {fit}"
        )
    return model


def check_label_dropout(recipe: Recipe, network: Mapping[str, Any]) -> None:
    """Refuse to drop labels that are not there, or for which the network can have no class "no label".

    Args:
        network: its configuration, in which the recipe and its preset have set how classes are embedded.
    """
    dropout, remedy = recipe["objective"].get("label_dropout"), "or give --label_dropout 0"
    if not dropout:
        return
    if recipe["data"].get("label_column") is None:
        raise UserError(
            f"objective.label_dropout={dropout} drops labels, and the data have none: give --label_column auto, "
            f"{remedy}"
        )
    if network["class_embed_type"] is not None:
        raise UserError(
            f'objective.label_dropout={dropout} needs one class more, for "no label", and '
            f"model.class_embed_type={network['class_embed_type']!r} counts no classes: leave it out, {remedy}"
        )


def classes_of(
    network: Mapping[str, Any], block: Mapping[str, Any], data: ImageData | LatentData, label_dropout: float = 0.0
) -> dict[str, Any]:
    """What a pipeline is told of the data's K classes: their names, and K as `null_class` of a network of K + 1.

    Args:
        network: its configuration, in which the recipe and its preset have set classes.
        block: `model` of the recipe.
        data: whose labels it is trained with.
        label_dropout: of the objective; above 0 the network has K + 1 classes.

    Returns:
        dict: `null_class` and `id2label` of `HFDDPMPipeline`; empty without labels.

    Raises:
        UserError: a network with classes and no labels, or another number of classes than K or K + 1, which is K + 1
            alone where labels are dropped.
    """
    num_classes = data.num_classes
    if num_classes is None:
        if network["num_class_embeds"] is not None:
            raise UserError(
                f"model: the network has {network['num_class_embeds']} classes and the data no labels: give "
                "--label_column auto, or --num_class_embeds null"
            )
        return {}
    embedded = block.get("num_class_embeds", embedded_classes(num_classes, label_dropout))  # as in `build_model`
    uncounted = embedded is None and network["class_embed_type"] is not None
    if embedded not in (num_classes, num_classes + 1) and not uncounted:
        raise UserError(
            f"model.num_class_embeds={embedded} does not fit data of {num_classes} classes: leave it out, or give "
            f'{num_classes + 1} for one class more that stands for "no label"'
        )
    if label_dropout and embedded != num_classes + 1:
        raise UserError(
            f"model.num_class_embeds={embedded} has no class for the labels that objective.label_dropout="
            f"{label_dropout} drops: leave it out, or give {num_classes + 1}"
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
    """The recipe's preset; image size, channels and classes are the data's unless the recipe says otherwise.

    So are the output channels, which the scheduler's variance decides too, and the one class more of `label_dropout`.
    """
    keywords: dict[str, Any] = {"sample_size": size_of(image_size), "in_channels": channels}
    keywords["out_channels"] = scheduler.output_channels(channels)
    keywords |= {} if num_classes is None else {"num_class_embeds": embedded_classes(num_classes, label_dropout)}
    keywords |= block
    with as_user_error("model"):
        return unet_preset(keywords.pop("preset"), **keywords)


def embedded_classes(num_classes: int, label_dropout: float) -> int:
    """K, or K + 1 where labels are dropped: class K stands for "no label"."""
    return num_classes + 1 if label_dropout else num_classes
