"""Where the models of a recipe have their x_0: in pixels, or in the latents of the frozen VAE that `latents` names."""

from typing import Any, Protocol

import torch

from hf_ddpm.data import ImageData
from hf_ddpm.data.options import size_of
from hf_ddpm.latent_data import LatentData, latent_shape, open_vae
from hf_ddpm.training.recipe import Recipe, image_shape
from hf_ddpm.training.settings import Latents


class InSpaceOfVAE(Protocol):
    """A family whose x_0 are the latents of its `vae`, or pixels where it is None."""

    vae: Any


def open_recipe_vae(recipe: Recipe) -> Any:
    """The VAE of the block `latents`, None for pixels.

    Raises:
        UserError: what `open_vae` refuses.
    """
    source = Latents(**recipe["latents"]).vae
    return None if source is None else open_vae(source)


def x_0_shape(recipe: Recipe, vae: Any) -> tuple[int, tuple[int, int]]:
    """The channels and the size (H, W) of x_0, found without data.

    Raises:
        UserError: images that the VAE does not take.
    """
    size, channels = image_shape(recipe)
    if vae is None:
        return channels, size_of(size)
    channels, height, width = latent_shape(vae, size_of(size))
    return channels, (height, width)


def open_recipe_data(recipe: Recipe, vae: Any, seed: int, device: torch.device) -> ImageData | LatentData:
    """The recipe's images, or their latents, whose scale the VAE's config then holds.

    Args:
        recipe: of the run.
        vae: of `open_recipe_vae`; it is moved to the device.
        seed: of the images that the scale is measured on.
        device: which encodes.

    Raises:
        UserError: what the data refuse.
    """
    if vae is None:
        return ImageData(**recipe["data"])
    cache = Latents(**recipe["latents"]).cache
    data = LatentData(vae.to(device), recipe["data"], seed=seed, cache=cache)
    vae.register_to_config(scaling_factor=data.scale)  # whoever encodes, decodes or saves it reads it there
    return data


def latent_facts(vae: Any) -> dict[str, Any] | None:
    """What is said of a VAE in cards and configs, without its own config, which may name a folder of this machine."""
    if vae is None:
        return None
    return {"class": type(vae).__name__, "scaling_factor": vae.config["scaling_factor"]}
