"""The kinds of saved models: one literal table of everything that differs from one kind to another.

Checkpoints, cards, pushes, commands and pages look up the entry of a model here and read its fields. A new kind needs
files of its own and one entry. Strings with a colon name an object of a module, which is imported when it is first
needed, so that `hf-ddpm --help` imports no network; only `resolve` imports them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from hf_ddpm.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline


@dataclass(frozen=True)
class Kind:
    """One kind of saved model.

    Attributes:
        word: The name of the kind in messages, as in "the folder contains a VAE".
        plural: The plural of `word`.
        pipeline: The class that loads and saves it.
        components: The components of its pipeline, each in a folder of the checkpoint. The first is the network whose
            weights training averages.
        family: The class that trains it.
        card: The template of its model card, in this package.
        tag: Its tag on the Hub.
        task: Its task on the Hub.
        walks: Whether its images are sampled over many timesteps, which editing and figures need.
        reconstructs: Whether its pipeline can `reconstruct` an image in one call, which is evaluated too.
        draw: A function (pipeline, indices, *, seed, batch_size, ...) that yields images, each of which depends only on
            the seed and its index; None for a kind without images.
        sample: What `hf-ddpm sample` does with it, a `KindCommand`; None if it has no images.
        likelihood: What `hf-ddpm likelihood` does with it, a `KindCommand`; None if it has no likelihood.
        evaluate: What `hf-ddpm evaluate` does with it, a function (options, accelerator) that returns a record; None if
            its samples are evaluated.
        evaluator: A function (recipe, family, accelerator) that returns the `training.evaluation.Evaluator` of a run,
            or None if nothing is to be measured.
    """

    word: str
    plural: str
    pipeline: str
    components: tuple[str, ...]
    family: str
    card: str
    tag: str
    task: str
    walks: bool = False
    reconstructs: bool = False
    draw: str | None = None
    sample: str | None = None
    likelihood: str | None = None
    evaluate: str | None = None
    evaluator: str = "hf_ddpm.training.evaluation:make_evaluator"

    @property
    def network(self) -> str:
        """The component whose weights training averages."""
        return self.components[0]

    @property
    def pipeline_name(self) -> str:
        """The name of the pipeline's class, as in an index."""
        return self.pipeline.partition(":")[2]


FAMILY = "family"  # the key of a recipe that names an entry

KINDS: Mapping[str, Kind] = {
    "diffusion": Kind(
        word="diffusion model",
        plural="diffusion models",
        pipeline="hf_ddpm.pipelines:HFDDPMPipeline",
        components=("unet", "scheduler", "vae", "classifier", "image_processor"),
        family="hf_ddpm.training.diffusion:DiffusionFamily",
        card="model_card.md",
        tag="ddpm",
        task="unconditional-image-generation",
        walks=True,
        draw="hf_ddpm.sampling:sample_images",
        sample="hf_ddpm.commands.diffusion:SAMPLE",
        likelihood="hf_ddpm.commands.diffusion:LIKELIHOOD",
    ),
    "vae": Kind(
        word="VAE",
        plural="VAEs",
        pipeline="hf_ddpm.pipelines:HFVAEPipeline",
        components=("vae",),
        family="hf_ddpm.training.autoencoder:VAEFamily",
        card="model_card_vae.md",
        tag="vae",
        task="unconditional-image-generation",
        reconstructs=True,
        draw="hf_ddpm.sampling:sample_latents",
        sample="hf_ddpm.commands.vae:SAMPLE",
        likelihood="hf_ddpm.commands.vae:LIKELIHOOD",
    ),
    "classifier": Kind(
        word="noisy classifier",
        plural="noisy classifiers",
        pipeline="hf_ddpm.pipelines:HFClassifierPipeline",
        components=("classifier",),
        family="hf_ddpm.training.classifier:ClassifierFamily",
        card="model_card_classifier.md",
        tag="noisy-classifier",
        task="image-classification",
        evaluate="hf_ddpm.commands.classifier:evaluate",
        evaluator="hf_ddpm.training.accuracy:make_evaluator",
    ),
    "ddgan": Kind(
        word="denoising GAN",
        plural="denoising GANs",
        pipeline="hf_ddpm.pipelines:HFDDGANPipeline",
        components=("generator", "scheduler", "discriminator"),
        family="hf_ddpm.training.adversarial:AdversarialFamily",
        card="model_card_ddgan.md",
        tag="ddgan",
        task="unconditional-image-generation",
        draw="hf_ddpm.sampling:sample_gan",
        sample="hf_ddpm.commands.ddgan:SAMPLE",
    ),
}


def kind_of(pipeline: "DiffusionPipeline") -> Kind:
    """Return the entry of a pipeline, by its class or one that it is derived from."""
    return _entry([parent.__name__ for parent in type(pipeline).__mro__])


def kind_of_index(index: Mapping[str, Any]) -> Kind:
    """Return the entry of a saved model, by the content of its model_index.json."""
    return _entry([index.get("_class_name")])


def kind_of_recipe(recipe: Mapping[str, Any]) -> Kind:
    """Return the entry of what a recipe trains, by its `family_of`."""
    return KINDS[family_of(recipe)]


def kind_of_run(facts: Mapping[str, Any]) -> Kind:
    """Return the entry of a run, by the recipe among its facts; without one, by the `family` in the facts."""
    return kind_of_recipe(facts.get("recipe") or facts)


def family_of(recipe: Mapping[str, Any]) -> str:
    """Return the key of what a recipe trains: its `family`, or else "vae" with a block `vae` and "diffusion" without.

    Raises:
        UserError: If the family is not in the table.
    """
    family = recipe.get(FAMILY, "vae" if "vae" in recipe else "diffusion")
    if not isinstance(family, str) or family not in KINDS:
        hint = did_you_mean(family, KINDS) or f"; it must be one of {', '.join(KINDS)}"
        raise UserError(f"family={family!r} is unknown{hint}")
    return family


def resolve(name: str) -> Any:
    """Return the object that a field of an entry names, as `module:object`."""
    return resolve_name(name)


def required(kind: Kind, field: str, source: str) -> Any:
    """Return the object that a field of an entry names.

    Args:
        kind: The entry of a checkpoint.
        field: "draw", "sample" or "likelihood", which not every kind has.
        source: The checkpoint, as the user named it.

    Raises:
        UserError: If this kind does not have the field.
    """
    name = getattr(kind, field)
    if name is None:
        fitting = " and ".join(other.plural for other in KINDS.values() if getattr(other, field) is not None)
        raise UserError(f"{source!r} contains a {kind.word}: {field} is only supported for {fitting}")
    return resolve(name)


def _entry(names: list[Any]) -> Kind:
    """Return the entry of one of these classes; other pipelines are opened as diffusion models."""
    return next((kind for kind in KINDS.values() if kind.pipeline_name in names), KINDS["diffusion"])
