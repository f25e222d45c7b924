"""Where a walk's x_0 is: in pixels, or in the latents of a VAE."""

from abc import ABC
from typing import Any

import torch
from torch import Tensor

from hf_ddpm.pipelines.image_inputs import Images, to_x_0
from hf_ddpm.pipelines.latent_images import decode_latents, encode_images
from hf_ddpm.pipelines.network_signature import NetworkSignature


class ImageSpace(ABC):
    """The part of `HFDDPMPipeline` that goes from images to x_0 and back."""

    unet: Any  # these are the pipeline's own
    vae: Any
    scheduler: Any
    config: Any
    _execution_device: Any

    @property
    def signature(self) -> NetworkSignature:
        """What the network takes and returns; of latents, where there is a VAE."""
        of_classes = {name: self.config[name] for name in ("null_class", "id2label")}
        return NetworkSignature.of(self.unet.config, self.scheduler.config, **of_classes)

    @property
    def image_channels(self) -> int:
        """C of the images, which those of the latents are not."""
        return self.signature.channels if self.vae is None else self.vae.config["in_channels"]

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(H, W) of the images, found by decoding one where there is a VAE; None: any."""
        signature = self.signature
        if self.vae is None or signature.size is None:
            return signature.size
        zeros = torch.zeros(1, signature.channels, *signature.size, device=self._execution_device)
        with torch.no_grad():
            height, width = self._decoded(zeros).shape[2:]
        return height, width

    def _x_0(self, images: Images) -> Tensor:
        """Images where the walk begins and ends: pixels, or the latents that are the mean of q(z|image)."""
        pixels = self._pixels(images)
        if self.vae is None:
            return pixels
        x_0, size = encode_images(self.vae, pixels.to(self.vae.dtype)), self.signature.size
        if size is not None and tuple(x_0.shape[2:]) != size:
            raise ValueError(
                f"images of {tuple(pixels.shape[2:])} have latents of {tuple(x_0.shape[2:])}, and the network was "
                f"trained with {size}: resize them first"
            )
        return x_0.to(self.unet.dtype)

    def _pixels(self, images: Images) -> Tensor:
        """Images as (B, C, H, W) in [-1, 1]."""
        pixels = to_x_0(images, self.image_channels, self.signature.size if self.vae is None else None)
        return pixels.to(self._execution_device, self.unet.dtype)

    def _decoded(self, x_0: Tensor) -> Tensor:
        """Pixels of where the walk ended, about in [-1, 1]."""
        return x_0 if self.vae is None else decode_latents(self.vae, x_0.to(self.vae.dtype))
