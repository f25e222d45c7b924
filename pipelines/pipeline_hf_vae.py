"""Sampling in one step with a VAE, and editing of real images in its latents."""

import math
import os
from collections.abc import Sequence
from dataclasses import fields, replace
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hf_ddpm.models.image_size import size_pair
from hf_ddpm.models.vae import HFVAE
from hf_ddpm.models.vae_likelihoods import DecoderDistribution
from hf_ddpm.pipelines.call_checks import Generators, check_call, finite_numbers
from hf_ddpm.pipelines.doors import name_ours, write_code
from hf_ddpm.pipelines.evaluating import without_training
from hf_ddpm.pipelines.image_inputs import Images, to_images, to_x_0
from hf_ddpm.pipelines.interpolation import Interpolation, check_pairs, shares_of, slerp
from hf_ddpm.pipelines.opening import CheckedOpening
from hf_ddpm.schedulers.annotations import check_choice, check_count

OutputType = Literal["pil", "np", "pt"]


class HFVAEPipeline(CheckedOpening, DiffusionPipeline):
    """Images x ~ p(x|z) of latents z ~ N(0, I), or of the z of real images (Kingma & Welling 2014, arXiv 1312.6114).

    Images are PIL images, tensors (B, C, H, W) or arrays (B, H, W, C), see `to_x_0`. Latents are (B, J, h, w), with
    h = w = 1 for MLPs. Methods that draw accept one generator, or one for each image, so that image i does not depend
    on the rest of the batch.

    Args:
        vae: An `HFVAE`.
    """

    model_cpu_offload_seq = "vae"  # type: ignore[assignment]

    def __init__(self, vae: HFVAE) -> None:
        super().__init__()
        # by its config: if hf_ddpm is imported next to door 3 there are two such classes; torch.compile has a third
        if not isinstance(vae, torch.nn.Module) or "likelihood" not in getattr(vae, "config", {}):
            raise ValueError(f"vae of type {type(vae).__name__} must be an HFVAE, which has a likelihood")
        self.register_modules(vae=vae)

    @property
    def num_classes(self) -> None:
        """None, because a VAE has no classes."""

    @property
    def image_channels(self) -> int:
        """C of the images."""
        return self.vae.config["in_channels"]

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the images."""
        return size_pair(self.vae.config["sample_size"])

    @property
    def noise_network(self) -> Any:
        """The network whose input is noise."""
        return self.vae.decoder

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """(J, h, w) of z, the noise that an image starts from."""
        return self.vae.latent_shape

    @without_training
    def __call__(
        self,
        batch_size: int = 1,
        generator: Generators = None,
        latents: Tensor | None = None,
        sample_pixels: bool = False,
        output_type: OutputType = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw z ~ N(0, I) and decode it.

        Args:
            batch_size: The number of images.
            generator: The generator of z, then of the pixels.
            latents: z, (batch_size, J, h, w), instead of a draw.
            sample_pixels: Whether to draw the image from p(x|z) instead of returning its mean, which is smoother than
                any image.
            output_type: `pil`, `np` (B, H, W, C) in [0, 1], or `pt` (B, C, H, W) in [0, 1].
            return_dict: Whether to return an `ImagePipelineOutput` instead of a tuple of the images.

        Raises:
            ValueError: If the batch size, generators or latents do not fit.
        """
        check_call(batch_size, generator, output_type)
        shape = (batch_size, *self.vae.latent_shape)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=self.vae.dtype)
        z = self._checked(latents)
        if len(z) != batch_size:
            raise ValueError(f"latents of shape {tuple(z.shape)} do not fit batch_size={batch_size}")
        x = self._pixels(z, generator) if sample_pixels else self.vae.decode(z).sample
        return self._returned(x, output_type, return_dict)

    @without_training
    def encode(self, images: Images, sample_posterior: bool = False, generator: Generators = None) -> Tensor:
        """Return the mean of q(z|x), or a draw from it, (B, J, h, w).

        Args:
            images: x.
            sample_posterior: Whether to draw z = mu + sigma * noise.
            generator: The generator of the noise.
        """
        posterior = self._posterior(images)
        check_call(len(posterior.mean), generator, "pt")
        self.maybe_free_model_hooks()
        return posterior.sample(generator) if sample_posterior else posterior.mean

    @without_training
    def decode(
        self, latents: Tensor, output_type: OutputType = "pil", return_dict: bool = True
    ) -> ImagePipelineOutput | tuple[Any]:
        """Return the mean images of p(x|z).

        Args:
            latents: z, (B, J, h, w).
            output_type, return_dict: As in a call.
        """
        check_call(1, None, output_type)
        return self._returned(self.vae.decode(self._checked(latents)).sample, output_type, return_dict)

    def reconstruct(
        self,
        images: Images,
        sample_posterior: bool = False,
        generator: Generators = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Encode images and decode them again, with the arguments of `encode` and `decode`."""
        return self.decode(self.encode(images, sample_posterior, generator), output_type, return_dict)

    @without_training
    def sample_posterior(
        self, images: Images, num_samples: int = 8, generator: Generators = None, output_type: OutputType = "pil"
    ) -> list[Any]:
        """Decode draws from q(z|x), which are possible images according to the model.

        Args:
            images: x.
            num_samples: The number of draws per image; with the same generators, more draws begin with the same ones.
            generator: The generator of the noise.
            output_type: As in a call.

        Returns:
            list: For each image its `num_samples` images, as a call returns them.
        """
        check_count("num_samples", num_samples)
        posterior = self._posterior(images)
        check_call(len(posterior.mean), generator, output_type)
        z = torch.stack([posterior.sample(generator) for _ in range(num_samples)], dim=1)  # (B, L, J, h, w)
        drawn = self.decode(z.flatten(0, 1), output_type, return_dict=False)[0]
        return [drawn[i : i + num_samples] for i in range(0, len(drawn), num_samples)]

    def interpolate(
        self,
        first: Images,
        second: Images,
        weights: Sequence[float],
        method: Interpolation = "lerp",
        output_type: OutputType = "pil",
    ) -> list[Any]:
        """Decode interpolations between the means of q(z|x) of two images.

        Args:
            first, second: Images, equal numbers of both.
            weights: The weights of `second`, in [0, 1].
            method: `lerp`, a straight line; or `slerp`, an arc (DDIM, eq. 67), which stays as far from 0 as its ends.
            output_type: As in a call.

        Returns:
            list: The images of each weight, as a call returns them.
        """
        check_choice("method", method, get_args(Interpolation))
        mix = slerp if method == "slerp" else torch.lerp
        shares = shares_of(weights)
        z_1, z_2 = self.encode(first), self.encode(second)
        check_pairs(z_1, z_2)
        return [self.decode(mix(z_1, z_2, share), output_type, return_dict=False)[0] for share in shares]

    @without_training
    def traverse(
        self,
        images: Images | None,
        dimension: int,
        values: Sequence[float],
        *,
        latents: Tensor | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Decode one image's mean of q(z|x) with one dimension set to each of `values`, to show its meaning.

        Args:
            images: One image; None to start from `latents`.
            dimension: The dimension, from 0 to J - 1; for convolutional latents, the whole channel, h x w.
            values: The values; -3 to 3 covers the prior, whose standard deviation is 1.
            latents: z, (1, J, h, w), instead of an image.
            output_type, return_dict: As in a call.
        """
        if (images is None) == (latents is None):
            raise ValueError("traverse requires either one image, or None and latents, not both")
        z = self._posterior(images).mean if images is not None else self._checked(latents)
        channels = self.vae.config["latent_channels"]
        if len(z) != 1:
            raise ValueError(f"traverse requires one image, not {len(z)}")
        if not isinstance(dimension, Integral) or not 0 <= dimension < channels:
            raise ValueError(f"dimension={dimension!r} must be a whole number from 0 to {channels - 1}")
        numbers = finite_numbers("values", values).to(z)
        walked = z.repeat(len(numbers), 1, 1, 1)
        walked[:, dimension] = numbers[:, None, None]
        return self.decode(walked, output_type, return_dict)

    def manifold(
        self, size: int = 20, output_type: OutputType = "pil", return_dict: bool = True
    ) -> ImagePipelineOutput | tuple[Any]:
        """Decode an even grid of the prior's quantiles (AEVB, Fig. 4), for models with exactly 2 latent numbers.

        z = (Phi^-1(u_row), Phi^-1(u_column)) with u_i = (i + 1/2) / size, so that all points have equal probability.

        Args:
            size: The number of rows and of columns.
            output_type, return_dict: As in a call.

        Returns:
            size * size images, row by row.
        """
        check_count("size", size)
        shape = self.vae.latent_shape
        if math.prod(shape) != 2:
            raise ValueError(
                f"manifold requires 2 latent numbers, but this model has {math.prod(shape)}, (J, h, w) = {shape}: "
                "use traverse for one of its dimensions"
            )
        quantiles = torch.special.ndtri((torch.arange(size, dtype=torch.float64) + 0.5) / size)
        z = torch.cartesian_prod(quantiles, quantiles).view(-1, *shape)
        return self.decode(z, output_type, return_dict)

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write model_index.json and the code files of door 3; door 2 is impossible, as diffusers has no such class.

        `save_pretrained` calls this last, after the component and before an upload.
        """
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)
        folder = Path(save_directory)
        write_code(folder, __name__, name_ours(folder).values())

    def _posterior(self, images: Images) -> Any:
        """Compute q(z|x), whose `sample` also takes a list of generators; convolutions accept any size that fits."""
        config = self.vae.config
        size = size_pair(config["sample_size"]) if config["network"] == "mlp" else None
        x = to_x_0(images, config["in_channels"], size)
        return self.vae.posterior(x.to(self._execution_device, self.vae.dtype))

    def _checked(self, latents: Tensor | None) -> Tensor:
        """Check the latents and move them to the network, which checks their shape."""
        if not isinstance(latents, Tensor):
            raise ValueError(f"latents of type {type(latents).__name__} must be a tensor (B, J, h, w)")
        if latents.ndim != 4 or latents.numel() == 0:
            raise ValueError(f"latents of shape {tuple(latents.shape)} must have shape (B, J, h, w)")
        return latents.to(self._execution_device, self.vae.dtype)

    def _pixels(self, z: Tensor, generator: Generators) -> Tensor:
        """Draw from p(x|z), (B, C, H, W); each generator draws its own image, independently of the batch."""
        p = self.vae.likelihood_params(z)
        if not isinstance(generator, list):
            return p.sample(generator)
        return torch.cat([_of_image(p, i).sample(one) for i, one in enumerate(generator)])

    def _returned(self, x: Tensor, output_type: OutputType, return_dict: bool) -> ImagePipelineOutput | tuple[Any]:
        images = to_images(x, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)


def _of_image(p: DecoderDistribution, i: int) -> DecoderDistribution:
    """Return p(x|z) of image i of a batch; a sigma that all elements share is left unchanged."""
    parts = {field.name: getattr(p, field.name) for field in fields(p)}
    return replace(p, **{name: part[i : i + 1] if part.ndim == 4 else part for name, part in parts.items()})
