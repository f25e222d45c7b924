"""The variational autoencoder (Kingma & Welling 2014, arXiv 1312.6114): q(z|x), p(x|z) and what joins them."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import (
    AutoencoderMixin,
    Decoder,
    DecoderOutput,
    DiagonalGaussianDistribution,
    Encoder,
)
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from hf_ddpm.models.checked_network import CheckedNetwork
from hf_ddpm.models.image_size import side_unit, size_pair
from hf_ddpm.models.vae_likelihoods import (
    DecoderDistribution,
    Likelihood,
    decoder_distribution,
    optimal_log_variance,
    outputs_per_channel,
)
from hf_ddpm.models.vae_networks import (
    Activation,
    Network,
    check_groups,
    check_halving,
    check_shape,
    check_sizes,
    mlp,
    unit_scale,
)
from hf_ddpm.schedulers.annotations import check_arguments

MOST_WEIGHTS = 2**31  # of one layer of an MLP


@dataclass
class VAEOutput(BaseOutput):
    """What a forward pass finds.

    Attributes:
        sample: mean images of p(x|z), (B, C, H, W) in [-1, 1]; (B * L, C, H, W) for L draws of z an image.
        moments: mean and log-variance of q(z|x), (B, 2J, h, w); `DiagonalGaussianDistribution` reads them.
        latents: z, (B, J, h, w), or (B * L, J, h, w), the draws of an image beside each other.
        output: of the decoder, which `decoder_distribution` reads.
        log_variance: the sigma that all elements share, (1,), where the likelihood has one.
    """

    sample: Tensor
    moments: Tensor = None  # type: ignore[assignment]  # Accelerate rebuilds an output from one dictionary
    latents: Tensor = None  # type: ignore[assignment]
    output: Tensor = None  # type: ignore[assignment]
    log_variance: Tensor | None = None


class HFVAE(CheckedNetwork, AutoencoderMixin, ModelMixin, ConfigMixin):  # type: ignore[misc]  # they disagree on config_name
    """q(z|x) = N(mu, diag sigma^2) and p(x|z), as MLPs or convolutions; stands where `AutoencoderKL` stands.

    Images are (B, C, H, W) in [-1, 1], latents (B, J, h, w): (B, J, 1, 1) for MLPs. Without arguments a small one.

    Args:
        sample_size: (H, W), or one number for both.
        in_channels: C.
        latent_channels: J.
        network: `mlp` knows one image size; `conv` is diffusers' encoder and decoder, each level but the last halving
            the image.
        hidden_sizes: of the MLP, from image to latent; the decoder has them in reverse.
        activation: of the MLP.
        block_out_channels: widths of the levels of `conv`.
        layers_per_block: residual blocks of a level of `conv`; its decoder has one more.
        norm_num_groups: of the group norms of `conv`.
        likelihood: p(x|z). `bernoulli` (logits); `gaussian` with a sigma of each element, `gaussian_global` with one
            that is learned, `gaussian_optimal` with the one that fits best, `gaussian_fixed` with sigma = 1;
            `discretized_gaussian` gives masses to the 256 grey levels, hence bits a dimension.
        scaling_factor: 1 over the standard deviation of latents, which a diffusion model in them multiplies by.

    Raises:
        ValueError: an unknown word, or sizes that do not fit together.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 28,
        in_channels: int = 1,
        latent_channels: int = 10,
        network: Network = "mlp",
        hidden_sizes: tuple[int, ...] = (200,),
        activation: Activation = "relu",
        block_out_channels: tuple[int, ...] = (32, 64),
        layers_per_block: int = 1,
        norm_num_groups: int = 8,
        likelihood: Likelihood = "bernoulli",
        scaling_factor: float | None = None,
    ) -> None:
        super().__init__()
        self.use_slicing, self.gradient_checkpointing = False, False
        check_arguments(HFVAE, self.config)
        check_sizes(
            sample_size=size_pair(sample_size),
            in_channels=in_channels,
            latent_channels=latent_channels,
            hidden_sizes=hidden_sizes,
            block_out_channels=block_out_channels or (0,),
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
        )
        if scaling_factor is not None and not scaling_factor > 0:
            raise ValueError(f"scaling_factor={scaling_factor} must be positive, or None until it is measured")
        out_channels = outputs_per_channel(likelihood) * in_channels
        self.encoder: nn.Module
        self.decoder: nn.Module
        if network == "mlp":
            image = (in_channels, *size_pair(sample_size))
            _check_layers(math.prod(image), *hidden_sizes, latent_channels)
            self.encoder = mlp(image, hidden_sizes, (2 * latent_channels, 1, 1), activation)
            self.decoder = mlp((latent_channels, 1, 1), hidden_sizes[::-1], (out_channels, *image[1:]), activation)
        else:
            check_halving(size_pair(sample_size), len(block_out_channels))
            check_groups(block_out_channels, norm_num_groups)
            levels: dict[str, Any] = {"block_out_channels": block_out_channels, "layers_per_block": layers_per_block}
            levels |= {"norm_num_groups": norm_num_groups}
            kinds = ("DownEncoderBlock2D",) * len(block_out_channels), ("UpDecoderBlock2D",) * len(block_out_channels)
            self.encoder = Encoder(in_channels, latent_channels, down_block_types=kinds[0], **levels)
            self.decoder = Decoder(latent_channels, out_channels, up_block_types=kinds[1], **levels)
        self.log_variance: nn.Parameter | None = None
        if likelihood == "gaussian_global":
            self.log_variance = nn.Parameter(torch.zeros(1))
        elif likelihood == "gaussian_optimal":  # nan until it is measured
            self.log_variance = nn.Parameter(torch.full((1,), torch.nan), requires_grad=False)

    def enable_tiling(self) -> None:
        """Refuse to cut images into tiles, which group norms would see one by one, and so change every number.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "tiles would change the images of an HFVAE, whose norms look at whole ones: take enable_slicing()"
        )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(J, h, w) of an image of `sample_size`."""
        channels, (height, width) = self.config["latent_channels"], size_pair(self.config["sample_size"])
        if self.config["network"] == "mlp":
            return channels, 1, 1
        unit = side_unit(len(self.config["block_out_channels"]))
        return channels, height // unit, width // unit

    @apply_forward_hook
    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """q(z|x) of images (B, C, H, W) in [-1, 1]: `.latent_dist` has `mean`, `logvar`, `sample(generator)`, `kl()`.

        The log-variance is clamped to [-30, 20].

        Raises:
            ValueError: images of another shape.
        """
        posterior = self.posterior(x)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    @apply_forward_hook
    def posterior(self, x: Tensor) -> DiagonalGaussianDistribution:
        """q(z|x) by itself, what `encode(x).latent_dist` is."""
        return DiagonalGaussianDistribution(self._moments(x))

    @apply_forward_hook
    def decode(
        self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[Tensor]:
        """The mean image of p(x|z), (B, C, H, W) in [-1, 1], of latents (B, J, h, w).

        Args:
            generator: not used; `AutoencoderKL` has it.
        """
        mean = decoder_distribution(self.config["likelihood"], self._decoded(z), self.log_variance).mean
        return DecoderOutput(sample=mean) if return_dict else (mean,)

    @apply_forward_hook
    def likelihood_params(self, z: Tensor) -> DecoderDistribution:
        """p(x|z) of latents (B, J, h, w): `Bernoulli(logits)`, `Gaussian(location, log_variance)` or its discrete form.

        Raises:
            ValueError: a `gaussian_optimal` model whose sigma was not measured.
        """
        unknown = self.log_variance is not None and bool(self.log_variance.isnan())
        if unknown and self.config["likelihood"] == "gaussian_optimal":
            raise ValueError("likelihood='gaussian_optimal' has no sigma yet: call measure_log_variance(images)")
        return decoder_distribution(self.config["likelihood"], self._decoded(z), self.log_variance)

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z) of each image, (B,): the sum over its elements, in nats.

        Args:
            x: (B, C, H, W) in [-1, 1]; under `bernoulli` white is 1 and black -1, and greys have no likelihood.
            z: (B, J, h, w).

        Raises:
            ValueError: images outside [-1, 1] or of another shape.
        """
        p = self.likelihood_params(z)
        check_shape("images", x, ("B", *p.mean.shape[1:]))
        low, high = (x.min().item(), x.max().item()) if len(x) else (0.0, 0.0)
        if not (low >= -1.001 and high <= 1.001):  # NaN fails too
            raise ValueError(
                f"images with values from {low:g} to {high:g} must lie in [-1, 1]: 2 y - 1 maps [0, 1] there"
            )
        return p.log_prob(x)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> VAEOutput | tuple[Tensor, ...]:
        """Encode, draw z, decode. z is the mean of q(z|x) unless it is drawn.

        Args:
            sample: images (B, C, H, W) in [-1, 1].
            sample_posterior: draw z = mu + sigma * noise (the reparameterisation trick) with `generator`.
            noise: standard normal (B, L, J, h, w), for L draws an image, instead of a generator.
            return_dict: `VAEOutput`, or a tuple whose first entry are the images.
        """
        moments = self._moments(sample)
        posterior = DiagonalGaussianDistribution(moments)
        if noise is not None:
            check_shape("noise", noise, (len(posterior.mean), "L", *posterior.mean.shape[1:]))
            z = (posterior.mean[:, None] + posterior.std[:, None] * noise).flatten(0, 1)  # (B * L, J, h, w)
        else:
            z = posterior.sample(generator) if sample_posterior or generator is not None else posterior.mode()
        output = self._decoded(z)
        mean = decoder_distribution(self.config["likelihood"], output, self.log_variance).mean
        found = VAEOutput(mean, moments, z, output, self.log_variance)
        return found if return_dict else found.to_tuple()

    @torch.no_grad()
    def measure_scaling_factor(self, images: Tensor) -> float:
        """Set `scaling_factor` to 1 / std of the latents z ~ q(z|x) of these images, over all elements.

        As in arXiv 2112.10752, appendix G, which takes one batch.

        Args:
            images: (n, C, H, W) in [-1, 1]; a few hundred will do.
        """
        posteriors = [self.posterior(part) for part in images.split(64)]
        means, variances = (torch.cat([getattr(p, name) for p in posteriors]) for name in ("mean", "var"))
        scale = unit_scale(means, variances)
        self.register_to_config(scaling_factor=scale)
        return scale

    @torch.no_grad()
    def measure_log_variance(self, images: Tensor) -> float:
        """Set the sigma of `gaussian_optimal` to the one under which `images` are most probable, seen from their mu.

        Args:
            images: (n, C, H, W) in [-1, 1], as many as fit in memory.

        Returns:
            float: log sigma^2.
        """
        if self.config["likelihood"] != "gaussian_optimal":
            raise ValueError(f"likelihood={self.config['likelihood']!r} measures no sigma, 'gaussian_optimal' does")
        outputs = [self._decoded(self.posterior(part).mode()) for part in images.split(64)]
        found = optimal_log_variance(images, torch.cat(outputs))
        self.log_variance = nn.Parameter(found, requires_grad=False)
        return float(found)

    def _moments(self, x: Tensor) -> Tensor:
        """mu and log sigma^2, (B, 2J, h, w)."""
        channels, size = self.config["in_channels"], size_pair(self.config["sample_size"])
        sides = size if self.config["network"] == "mlp" else ("H", "W")
        check_shape("images", x, ("B", channels, *sides), ": resize and convert them first")
        if self.config["network"] == "conv":
            check_halving(x.shape[2:], len(self.config["block_out_channels"]))
        return self._in_slices(self.encoder, x)

    def _decoded(self, z: Tensor) -> Tensor:
        """The decoder's output, (B, C, H, W) or (B, 2C, H, W)."""
        channels, *sides = self.latent_shape
        check_shape("latents", z, ("B", channels, *(sides if self.config["network"] == "mlp" else ("h", "w"))))
        return self._in_slices(self.decoder, z)

    def _in_slices(self, network: nn.Module, x: Tensor) -> Tensor:
        """One image at a time, if `enable_slicing` asked for it; the parts of `conv` checkpoint by themselves."""
        if self.gradient_checkpointing and self.config["network"] == "mlp" and torch.is_grad_enabled():
            found: Tensor = self._gradient_checkpointing_func(network, x)
            return found
        return torch.cat([network(one) for one in x.split(1)]) if self.use_slicing and len(x) > 1 else network(x)


def _check_layers(*sizes: int) -> None:
    """Refuse an MLP that no memory holds."""
    weights = max(i * o for i, o in pairwise(sizes))
    if weights > MOST_WEIGHTS:
        raise ValueError(
            f"a layer of {weights:,} weights is more than the {MOST_WEIGHTS:,} of 8 GB: take network='conv', smaller "
            "images or smaller hidden_sizes"
        )
