"""The interface of the families of models that a recipe can train, which the training loop uses."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from hf_ddpm.data import ImageData
from hf_ddpm.kinds import FAMILY, family_of, kind_of_recipe, resolve
from hf_ddpm.latent_data import LatentData
from hf_ddpm.objectives import Objective
from hf_ddpm.training.players import Player
from hf_ddpm.training.recipe import Blocks, Recipe, check_blocks
from hf_ddpm.training.settings import Grids, Sampling

if TYPE_CHECKING:
    from PIL.Image import Image


class Family(Protocol):
    """A kind of model: its recipe, its data, and how it is built, sampled and saved.

    It is created from a recipe, whose blocks it checks before data are opened. `networks` are the networks of the
    players by name, with averaged weights if they are averaged.

    Attributes:
        blocks: The blocks of its recipes.
        artefact: The player whose network is saved.
    """

    blocks: ClassVar[Blocks]
    artefact: str

    def __init__(self, recipe: Recipe) -> None:
        """Check the recipe's blocks."""

    @property
    def title(self) -> str:
        """The title of the model, for the log."""

    @property
    def objective(self) -> Objective:
        """The objective that training minimises."""

    @property
    def sampling(self) -> Grids | Sampling | None:
        """The settings of sample grids; None for a model that draws no images."""

    @property
    def sample_options(self) -> str:
        """Options of `hf-ddpm sample` for the command that is suggested at the end of a run."""

    def open_data(self, seed: int, device: torch.device) -> ImageData | LatentData:
        """Open the training data; what is measured on them depends on the seed."""

    def build_players(self, data: Any) -> dict[str, Player]:
        """Build the networks for these data, with random weights, and what trains them: one player for each turn."""

    def measure(self, networks: Mapping[str, Any], data: Any, seed: int) -> None:
        """Set what the model stores about its training data, before it is saved."""

    def pipeline(self, networks: Mapping[str, Any]) -> DiffusionPipeline:
        """Return the pipeline that samples from the networks and is saved."""

    def sample(self, pipeline: Any, indices: Sequence[int], seed: int) -> "list[Image]":
        """Draw images, each of which depends only on (seed, index); not called for a model that draws none."""

    def facts(self, networks: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the card may state in addition to the facts of every run."""


def family_class(recipe: Mapping[str, Any]) -> type[Family]:
    """Return the class that trains a recipe, from the table of kinds.

    Raises:
        UserError: If the family does not exist.
    """
    found: type[Family] = resolve(kind_of_recipe(recipe).family)
    return found


def check_recipe(recipe: Mapping[str, Any]) -> Recipe:
    """Return the recipe with the name of its family, and with every value converted to its declared type.

    Raises:
        UserError: If the family does not exist, or `check_blocks` rejects the recipe.
    """
    return {FAMILY: family_of(recipe), **check_blocks(recipe, family_class(recipe).blocks)}


def make_family(recipe: Recipe) -> Family:
    """Create the recipe's family, which checks the blocks before data are opened.

    Raises:
        UserError: If the recipe has an error that the user can fix.
    """
    return family_class(recipe)(recipe)
