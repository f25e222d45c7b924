"""The members of the family that a recipe can train, and what the loop asks of each."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn

from hf_ddpm.data import ImageData
from hf_ddpm.latents import LatentData
from hf_ddpm.objectives import Objective
from hf_ddpm.training.autoencoder import VAEFamily
from hf_ddpm.training.diffusion import DiffusionFamily
from hf_ddpm.training.recipe import Recipe, family_of
from hf_ddpm.training.settings import Grids, Sampling

if TYPE_CHECKING:
    from PIL.Image import Image


class Family(Protocol):
    """A kind of model: what it learns from, how it is built, sampled and saved."""

    @property
    def title(self) -> str:
        """Of the model, for the log."""

    @property
    def objective(self) -> Objective:
        """What it is trained to minimise."""

    @property
    def sampling(self) -> Grids | Sampling:
        """When to draw grids, of how many images."""

    @property
    def sample_options(self) -> str:
        """Of `hf-ddpm sample`, for a first look."""

    def open_data(self, seed: int, device: torch.device) -> ImageData | LatentData:
        """The training data; what is measured of them follows from the seed."""

    def build_model(self, data: Any) -> nn.Module:
        """The network for these data, with random weights."""

    def measure(self, model: Any, data: Any, seed: int) -> None:
        """Set what the model stores of its training data, before it is saved."""

    def pipeline(self, model: Any) -> DiffusionPipeline:
        """What samples from the network, and is saved."""

    def sample(self, pipeline: Any, indices: Sequence[int], seed: int) -> "list[Image]":
        """The images of some indices, each fixed by (seed, index)."""

    def facts(self, model: Any) -> dict[str, Any]:
        """What the card may say beside the facts of every run."""


def make_family(recipe: Recipe) -> Family:
    """The recipe's family, its blocks checked before data are opened.

    Raises:
        UserError: what the user can mend.
    """
    if family_of(recipe) == "vae":
        return VAEFamily(recipe)
    return DiffusionFamily(recipe)
