"""The members of the family that a recipe can train, and what the loop asks of each."""

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
    """A kind of model: what its recipe says, what it learns from, how it is built, sampled and saved.

    Made of a recipe whose blocks it checks before data are opened. `networks` are the players' by name, averaged where
    they have an average.

    Attributes:
        blocks: of its recipes.
        artefact: the player whose network is saved.
    """

    blocks: ClassVar[Blocks]
    artefact: str

    def __init__(self, recipe: Recipe) -> None:
        """Check the recipe's blocks."""

    @property
    def title(self) -> str:
        """Of the model, for the log."""

    @property
    def objective(self) -> Objective:
        """What it is trained to minimise."""

    @property
    def sampling(self) -> Grids | Sampling | None:
        """When to draw grids, of how many images; None for a model that draws none."""

    @property
    def sample_options(self) -> str:
        """Of `hf-ddpm sample`, for a first look."""

    def open_data(self, seed: int, device: torch.device) -> ImageData | LatentData:
        """The training data; what is measured of them follows from the seed."""

    def build_players(self, data: Any) -> dict[str, Player]:
        """The networks for these data, with random weights, and what trains them: a player for each turn."""

    def measure(self, networks: Mapping[str, Any], data: Any, seed: int) -> None:
        """Set what the model stores of its training data, before it is saved."""

    def pipeline(self, networks: Mapping[str, Any]) -> DiffusionPipeline:
        """What samples from the networks, and is saved."""

    def sample(self, pipeline: Any, indices: Sequence[int], seed: int) -> "list[Image]":
        """The images of some indices, each fixed by (seed, index); not asked of a model that draws none."""

    def facts(self, networks: Mapping[str, Any]) -> dict[str, Any]:
        """What the card may say beside the facts of every run."""


def family_class(recipe: Mapping[str, Any]) -> type[Family]:
    """The class that the table of kinds names for what a recipe trains.

    Raises:
        UserError: a family that is not there.
    """
    found: type[Family] = resolve(kind_of_recipe(recipe).family)
    return found


def check_recipe(recipe: Mapping[str, Any]) -> Recipe:
    """The recipe with the name of its family and every value converted to its declared type.

    Raises:
        UserError: a family that is not there, or what `check_blocks` refuses.
    """
    return {FAMILY: family_of(recipe), **check_blocks(recipe, family_class(recipe).blocks)}


def make_family(recipe: Recipe) -> Family:
    """The recipe's family, its blocks checked before data are opened.

    Raises:
        UserError: what the user can mend.
    """
    return family_class(recipe)(recipe)
