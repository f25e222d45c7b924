"""Where a walk's x_0 is: in pixels, or in the latents of a VAE (Rombach et al. 2022, arXiv 2112.10752)."""

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
    """From images to x_0 and back.

    Args:
        vae: an `HFVAE`, `AutoencoderKL` or `AutoencoderTiny`; None for a network that works in pixels.
        signature: of the network, whose x_0 are latents where there is a VAE.
        device, dtype: of the network.
    """

    vae: Any
    signature: NetworkSignature
    device: Any
    dtype: torch.dtype

    @property
    def channels(self) -> int:
        """C of the images, which those of the latents are not."""
        return self.signature.channels if self.vae is None else self.vae.config["in_channels"]

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) of the images, found by decoding one where there is a VAE; None: any."""
        signature = self.signature
        if self.vae is None or signature.size is None:
            return signature.size
        zeros = torch.zeros(1, signature.channels, *signature.size, device=self.device)
        with torch.no_grad():
            height, width = self.decoded(zeros).shape[2:]
        return height, width

    def x_0(self, images: Images) -> Tensor:
        """Images where the walk begins and ends: pixels, or the latents that are the mean of q(z|image)."""
        pixels = self.pixels(images)
        if self.vae is None:
            return pixels
        x_0, size = encode_images(self.vae, pixels.to(self.vae.dtype)), self.signature.size
        if size is not None and tuple(x_0.shape[2:]) != size:
            raise ValueError(
                f"images of {tuple(pixels.shape[2:])} have latents of {tuple(x_0.shape[2:])}, and the network was "
                f"trained with {size}: resize them first"
            )
        return x_0.to(self.dtype)

    def pixels(self, images: Images) -> Tensor:
        """Images as (B, C, H, W) in [-1, 1]."""
        pixels = to_x_0(images, self.channels, self.signature.size if self.vae is None else None)
        return pixels.to(self.device, self.dtype)

    def mask(self, of_pixels: Tensor, x_0: Tensor) -> Tensor:
        """A mask of pixels (B, C, H, W) as one of `x_0`."""
        return of_pixels if self.vae is None else latent_mask(of_pixels, x_0)

    def decoded(self, x_0: Tensor) -> Tensor:
        """Pixels of where the walk ended, about in [-1, 1]."""
        return x_0 if self.vae is None else decode_latents(self.vae, x_0.to(self.vae.dtype))


def latent_scale(vae: Any) -> float:
    """What latents are multiplied by to have unit variance: `scaling_factor` of the VAE's config.

    Raises:
        ValueError: it was not measured.
    """
    scale = vae.config.get("scaling_factor")
    if scale is None:
        raise ValueError(
            "the vae's config has no scaling_factor, the scale that gives latents unit variance: set it by "
            "vae.measure_scaling_factor(images), with images of the training data"
        )
    return scale


def check_vae(vae: Any, channels: int) -> None:
    """Refuse a VAE without a measured scale or of MLPs, and latents of other `channels` than the network takes.

    Raises:
        ValueError: which of them.
    """
    latent_scale(vae)
    if vae.config.get("network") == "mlp":
        raise ValueError(
            "the vae is an MLP, whose latents have no height and width to walk in: give a convolutional one"
        )
    if vae.config["latent_channels"] != channels:
        raise ValueError(
            f"the vae has {vae.config['latent_channels']} latent channels and the network takes {channels}: "
            "give the VAE that it was trained with"
        )


def latent_frame(vae: Any) -> tuple[Tensor | float, Tensor | float]:
    """Mean and standard deviation of a VAE's latents as its config tells them, each a number or (J, 1, 1).

    `shift_factor`, or `latents_mean` and `latents_std`, which some VAEs of others have; 0 and 1 of ours.
    """
    mean, std = (
        None if (each := vae.config.get(name)) is None else torch.tensor(each).to(vae.device, vae.dtype).view(-1, 1, 1)
        for name in ("latents_mean", "latents_std")
    )
    return (0.0 if mean is None else mean) + (vae.config.get("shift_factor") or 0.0), 1.0 if std is None else std


def encode_moments(vae: Any, x_0: Tensor) -> Tensor:
    """Mean and variance of q(z|x_0) in the VAE's `latent_frame`, unscaled (B, 2J, h, w).

    Of an `AutoencoderTiny` they are the latent and variance 0.

    Args:
        vae: an `HFVAE`, `AutoencoderKL` or `AutoencoderTiny`.
        x_0: images in [-1, 1], (B, C, H, W).
    """
    found = vae.encode(x_0)
    mean, std = latent_frame(vae)
    if isinstance(found, AutoencoderTinyOutput):
        return torch.cat([(found.latents - mean) / std, torch.zeros_like(found.latents)], dim=1)
    posterior: DiagonalGaussianDistribution = found.latent_dist
    return torch.cat([(posterior.mean - mean) / std, posterior.var / std**2], dim=1)


def encode_images(vae: Any, x_0: Tensor) -> Tensor:
    """Scaled latents (B, J, h, w) of images, the mean of q(z|x_0)."""
    return latent_scale(vae) * encode_moments(vae, x_0).chunk(2, dim=1)[0]


def latent_mask(mask: Tensor, latents: Tensor) -> Tensor:
    """A mask of pixels (B, C, H, W) as one of latents (B, J, h, w): 1 wherever a pixel under a latent is 1."""
    covered = adaptive_max_pool2d(mask.amax(dim=1, keepdim=True), latents.shape[2:])
    return covered.expand_as(latents)


def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """Images (B, C, H, W) of scaled latents (B, J, h, w), about in [-1, 1]."""
    mean, std = latent_frame(vae)
    return vae.decode(latents / latent_scale(vae) * std + mean).sample
