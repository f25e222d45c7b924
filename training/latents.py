"""The space of x_0 in a recipe: pixels, or the latents of the frozen VAE that `latents` names."""

from typing import Any, Protocol

import torch

from hf_ddpm.data import ImageData
from hf_ddpm.data.options import size_of
from hf_ddpm.latent_data import LatentData, latent_shape, open_vae
from hf_ddpm.training.recipe import Recipe, image_shape
from hf_ddpm.training.settings import Latents


class InSpaceOfVAE(Protocol):
    """A family whose x_0 are the latents of its `vae`, or pixels if it is None."""

    vae: Any


def open_recipe_vae(recipe: Recipe) -> Any:
    """Open the VAE of the block `latents`; None for pixels.

    Raises:
        UserError: As in `open_vae`.
    """
    source = Latents(**recipe["latents"]).vae
    return None if source is None else open_vae(source)


def x_0_shape(recipe: Recipe, vae: Any) -> tuple[int, tuple[int, int]]:
    """Return the channels and the size (H, W) of x_0, without opening data.

    Raises:
        UserError: If the VAE does not support the size of the images.
    """
    size, channels = image_shape(recipe)
    if vae is None:
        return channels, size_of(size)
    channels, height, width = latent_shape(vae, size_of(size))
    return channels, (height, width)


def open_recipe_data(recipe: Recipe, vae: Any, seed: int, device: torch.device) -> ImageData | LatentData:
    """Open the recipe's images, or their latents, whose scale is then stored in the VAE's config.

    Args:
        recipe: The recipe of the run.
        vae: The VAE from `open_recipe_vae`; it is moved to the device.
        seed: The seed of the images that the scale is measured on.
        device: The device that encodes images.

    Raises:
        UserError: As in `ImageData` and `LatentData`.
    """
    if vae is None:
        return ImageData(**recipe["data"])
    cache = Latents(**recipe["latents"]).cache
    data = LatentData(vae.to(device), recipe["data"], seed=seed, cache=cache)
    vae.register_to_config(scaling_factor=data.scale)  # where encoding, decoding and saving read it
    return data


def latent_facts(vae: Any) -> dict[str, Any] | None:
    """Return the facts about a VAE for cards and configs, without its own config, which may contain a local path."""
    if vae is None:
        return None
    return {"class": type(vae).__name__, "scaling_factor": vae.config["scaling_factor"]}
