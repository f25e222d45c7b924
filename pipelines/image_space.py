"""The space of x_0: pixels, or the latents of a VAE (Rombach et al. 2022, arXiv 2112.10752)."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from hf_ddpm.pipelines.image_inputs import Images, to_x_0
from hf_ddpm.pipelines.network_signature import NetworkSignature


@dataclass(frozen=True)
class ImageSpace:
    """Conversion of images to x_0 and back.

    Args:
        vae: An `HFVAE`, `AutoencoderKL` or `AutoencoderTiny`; None for a network that works in pixels.
        signature: The signature of the network, whose x_0 are latents if there is a VAE.
        device, dtype: The device and the dtype of the network.
    """

    vae: Any
    signature: NetworkSignature
    device: Any
    dtype: torch.dtype

    @property
    def channels(self) -> int:
        """C of the images, not of the latents."""
        return self.signature.channels if self.vae is None else self.vae.config["in_channels"]

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) of the images, found by decoding one if there is a VAE; None for any size."""
        signature = self.signature
        if self.vae is None or signature.size is None:
            return signature.size
        zeros = torch.zeros(1, signature.channels, *signature.size, device=self.device)
        with torch.no_grad():
            height, width = self.decoded(zeros).shape[2:]
        return height, width

    def x_0(self, images: Images) -> Tensor:
        """Convert images to x_0: pixels, or the latents that are the mean of q(z|image)."""
        pixels = self.pixels(images)
        if self.vae is None:
            self.signature.check_size(pixels.shape[2:], "images")
            return pixels
        x_0, size = encode_images(self.vae, pixels.to(self.vae.dtype)), self.signature.size
        if size is not None and tuple(x_0.shape[2:]) != size:
            raise ValueError(
                f"images of size {tuple(pixels.shape[2:])} have latents of size {tuple(x_0.shape[2:])}, but the "
                f"network was trained with {size}: resize the images first"
            )
        return x_0.to(self.dtype)

    def pixels(self, images: Images) -> Tensor:
        """Convert images to (B, C, H, W) in [-1, 1]."""
        pixels = to_x_0(images, self.channels, self.signature.size if self.vae is None else None)
        return pixels.to(self.device, self.dtype)

    def mask(self, of_pixels: Tensor, x_0: Tensor) -> Tensor:
        """Convert a mask of pixels (B, C, H, W) to a mask of `x_0`."""
        return of_pixels if self.vae is None else latent_mask(of_pixels, x_0)

    def decoded(self, x_0: Tensor) -> Tensor:
        """Convert x_0 to pixels, about in [-1, 1]."""
        return x_0 if self.vae is None else decode_latents(self.vae, x_0.to(self.vae.dtype))


def latent_scale(vae: Any) -> float:
    """Return the factor that gives latents unit variance, `scaling_factor` of the VAE's config.

    Raises:
        ValueError: If it was not measured.
    """
    scale = vae.config.get("scaling_factor")
    if scale is None:
        measured = "vae.measure_scaling_factor(images), with images from the training data"
        given = "vae.register_to_config(scaling_factor=...), 1 / the standard deviation of its latents"
        raise ValueError(
            "the vae's config has no scaling_factor, which gives latents unit variance: set it with "
            f"{given if getattr(vae, 'measure_scaling_factor', None) is None else measured}"
        )
    return scale


def check_vae(vae: Any, channels: int) -> None:
    """Reject a VAE that has no measured scale or is an MLP, or whose latents do not have the network's `channels`.

    Raises:
        ValueError: If one of these is the case.
    """
    if vae.config.get("network") == "mlp":
        raise ValueError("the vae is an MLP, whose latents have no height and width: use a convolutional VAE")
    if vae.config["latent_channels"] != channels:
        raise ValueError(
            f"the vae has latent_channels={vae.config['latent_channels']}, but the network has in_channels={channels}: "
            "use the VAE that the network was trained with"
        )
    latent_scale(vae)


def latent_frame(vae: Any) -> tuple[Tensor | float, Tensor | float]:
    """Return the mean and the standard deviation of a VAE's latents from its config, each a number or (J, 1, 1).

    Some VAEs have `shift_factor`, or `latents_mean` and `latents_std`; ours has neither, which means 0 and 1.
    """
    mean, std = (
        None if (each := vae.config.get(name)) is None else torch.tensor(each).to(vae.device, vae.dtype).view(-1, 1, 1)
        for name in ("latents_mean", "latents_std")
    )
    return (0.0 if mean is None else mean) + (vae.config.get("shift_factor") or 0.0), 1.0 if std is None else std


def encode_moments(vae: Any, x_0: Tensor) -> Tensor:
    """Compute the mean and the variance of q(z|x_0) in the VAE's `latent_frame`, unscaled (B, 2J, h, w).

    For an `AutoencoderTiny` they are the latent and 0.

    Args:
        vae: An `HFVAE`, `AutoencoderKL` or `AutoencoderTiny`.
        x_0: Images in [-1, 1], (B, C, H, W).
    """
    found = vae.encode(x_0)
    mean, std = latent_frame(vae)
    if isinstance(found, AutoencoderTinyOutput):
        return torch.cat([(found.latents - mean) / std, torch.zeros_like(found.latents)], dim=1)
    posterior: DiagonalGaussianDistribution = found.latent_dist
    return torch.cat([(posterior.mean - mean) / std, posterior.var / std**2], dim=1)


def encode_images(vae: Any, x_0: Tensor) -> Tensor:
    """Encode images as scaled latents (B, J, h, w), the mean of q(z|x_0)."""
    return latent_scale(vae) * encode_moments(vae, x_0).chunk(2, dim=1)[0]


def latent_mask(mask: Tensor, latents: Tensor) -> Tensor:
    """Convert a mask of pixels (B, C, H, W) to one of latents (B, J, h, w): 1 wherever a pixel under a latent is 1."""
    covered = adaptive_max_pool2d(mask.amax(dim=1, keepdim=True), latents.shape[2:])
    return covered.expand_as(latents)


def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """Decode scaled latents (B, J, h, w) to images (B, C, H, W), about in [-1, 1]."""
    mean, std = latent_frame(vae)
    return vae.decode(latents / latent_scale(vae) * std + mean).sample
