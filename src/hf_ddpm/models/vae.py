"""The variational autoencoder (Kingma & Welling 2014, arXiv 1312.6114): q(z|x) and p(x|z)."""

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

MOST_WEIGHTS = 2**31  # the limit for one layer of an MLP


@dataclass
class VAEOutput(BaseOutput):
    """The output of `HFVAE`.

    Attributes:
        sample: The mean images of p(x|z), (B, C, H, W) in [-1, 1]; (B * L, C, H, W) for L draws of z per image.
        moments: The mean and the log-variance of q(z|x), (B, 2J, h, w), for `DiagonalGaussianDistribution`.
        latents: z, (B, J, h, w), or (B * L, J, h, w) with the draws of an image next to each other.
        output: The output of the decoder, for `decoder_distribution`.
        log_variance: The log-variance that all elements share, (1,), if the likelihood has one.
    """

    sample: Tensor
    moments: Tensor = None  # type: ignore[assignment]  # Accelerate rebuilds an output from one dictionary
    latents: Tensor = None  # type: ignore[assignment]
    output: Tensor = None  # type: ignore[assignment]
    log_variance: Tensor | None = None


class HFVAE(CheckedNetwork, AutoencoderMixin, ModelMixin, ConfigMixin):  # type: ignore[misc]  # they disagree on config_name
    """A VAE with q(z|x) = N(mu, diag sigma^2) and p(x|z), as MLPs or convolutions; it can replace `AutoencoderKL`.

    Images are (B, C, H, W) in [-1, 1], latents are (B, J, h, w), or (B, J, 1, 1) for MLPs. The defaults give a small
    VAE.

    Args:
        sample_size: The image size (H, W), or one number for both.
        in_channels: The number of image channels, C.
        latent_channels: The number of latent channels, J.
        network: The architecture of encoder and decoder. `mlp` supports one image size; `conv` is that of diffusers, in
            which each level but the last halves the image.
        hidden_sizes: The hidden sizes of the MLP, from image to latent; the decoder has them in reverse.
        activation: The activation of the MLP.
        block_out_channels: The widths of the levels of `conv`.
        layers_per_block: The number of residual blocks per level of `conv`; its decoder has one more.
        norm_num_groups: The number of groups of the group norms of `conv`.
        likelihood: The likelihood p(x|z). `bernoulli` has logits; `gaussian` has a sigma for each element,
            `gaussian_global` has one learned sigma, `gaussian_optimal` the one that fits best, `gaussian_fixed` has
            sigma = 1; `discretized_gaussian` gives the probability of the 256 grey levels, hence bits per dimension.
        scaling_factor: 1 / the standard deviation of the latents, by which a latent diffusion model multiplies them.

    Raises:
        ValueError: If a choice is unknown, or sizes do not fit together.
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
        """Raise an error: with tiles, group norms would see parts of an image, which would change the results.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "tiling would change the images of an HFVAE, whose norms depend on whole images: use enable_slicing()"
        )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(J, h, w) for an image with `sample_size`."""
        channels, (height, width) = self.config["latent_channels"], size_pair(self.config["sample_size"])
        if self.config["network"] == "mlp":
            return channels, 1, 1
        unit = side_unit(len(self.config["block_out_channels"]))
        return channels, height // unit, width // unit

    @apply_forward_hook
    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Compute q(z|x) of images (B, C, H, W) in [-1, 1].

        `.latent_dist` has `mean`, `logvar`, `sample(generator)` and `kl()`. The log-variance is clamped to [-30, 20].

        Raises:
            ValueError: If the images have the wrong shape.
        """
        posterior = self.posterior(x)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    @apply_forward_hook
    def posterior(self, x: Tensor) -> DiagonalGaussianDistribution:
        """Compute q(z|x) alone, which is `encode(x).latent_dist`."""
        return DiagonalGaussianDistribution(self._moments(x))

    @apply_forward_hook
    def decode(
        self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[Tensor]:
        """Compute the mean images of p(x|z), (B, C, H, W) in [-1, 1], from latents (B, J, h, w).

        Args:
            z: The latents.
            return_dict: Whether to return a `DecoderOutput` instead of a tuple of the images.
            generator: Unused; it is there because `AutoencoderKL` has it.
        """
        mean = decoder_distribution(self.config["likelihood"], self._decoded(z), self.log_variance).mean
        return DecoderOutput(sample=mean) if return_dict else (mean,)

    @apply_forward_hook
    def likelihood_params(self, z: Tensor) -> DecoderDistribution:
        """Compute p(x|z) from latents (B, J, h, w): a `Bernoulli`, a `Gaussian` or a `DiscretizedGaussian`.

        Raises:
            ValueError: If the sigma of a `gaussian_optimal` model was not measured.
        """
        unknown = self.log_variance is not None and bool(self.log_variance.isnan())
        if unknown and self.config["likelihood"] == "gaussian_optimal":
            raise ValueError("likelihood='gaussian_optimal' has no sigma yet: call measure_log_variance(images)")
        return decoder_distribution(self.config["likelihood"], self._decoded(z), self.log_variance)

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        """Compute log p(x|z) of each image, (B,): the sum over its elements, in nats.

        Args:
            x: Images, (B, C, H, W) in [-1, 1]; for `bernoulli`, white is 1, black is -1, and greys have no likelihood.
            z: Latents, (B, J, h, w).

        Raises:
            ValueError: If the images are outside [-1, 1] or have the wrong shape.
        """
        p = self.likelihood_params(z)
        check_shape("images", x, ("B", *p.mean.shape[1:]))
        low, high = (x.min().item(), x.max().item()) if len(x) else (0.0, 0.0)
        if not (low >= -1.001 and high <= 1.001):  # NaN fails too
            raise ValueError(
                f"images with values from {low:g} to {high:g} must lie in [-1, 1]: convert [0, 1] with 2 * x - 1"
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
        """Encode images, draw z, and decode. z is the mean of q(z|x) unless it is drawn.

        Args:
            sample: Images (B, C, H, W) in [-1, 1].
            sample_posterior: Whether to draw z = mu + sigma * noise (the reparameterisation trick) with `generator`.
            return_dict: Whether to return a `VAEOutput` instead of a tuple, which starts with the images.
            generator: The generator of the noise; if it is passed, z is drawn.
            noise: Standard normal noise (B, L, J, h, w), for L draws per image, instead of a generator.
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
        """Set `scaling_factor` to 1 / std of the latents z ~ q(z|x) of these images, over all elements, and return it.

        This follows arXiv 2112.10752, appendix G, which uses one batch.

        Args:
            images: Images (n, C, H, W) in [-1, 1]; a few hundred are enough.
        """
        posteriors = [self.posterior(part) for part in images.split(64)]
        means, variances = (torch.cat([getattr(p, name) for p in posteriors]) for name in ("mean", "var"))
        scale = unit_scale(means, variances)
        self.register_to_config(scaling_factor=scale)
        return scale

    @torch.no_grad()
    def measure_log_variance(self, images: Tensor) -> float:
        """Set the sigma of `gaussian_optimal` to the one for which `images` are most probable, given their mean z.

        Args:
            images: Images (n, C, H, W) in [-1, 1], as many as fit in memory.

        Returns:
            float: log sigma^2.
        """
        if self.config["likelihood"] != "gaussian_optimal":
            raise ValueError(f"likelihood={self.config['likelihood']!r} must be 'gaussian_optimal' to measure a sigma")
        outputs = [self._decoded(self.posterior(part).mode()) for part in images.split(64)]
        found = optimal_log_variance(images, torch.cat(outputs))
        self.log_variance = nn.Parameter(found, requires_grad=False)
        return float(found)

    def _moments(self, x: Tensor) -> Tensor:
        """Return mu and log sigma^2, (B, 2J, h, w)."""
        channels, size = self.config["in_channels"], size_pair(self.config["sample_size"])
        sides = size if self.config["network"] == "mlp" else ("H", "W")
        check_shape("images", x, ("B", channels, *sides), ": resize and convert them first")
        if self.config["network"] == "conv":
            check_halving(x.shape[2:], len(self.config["block_out_channels"]))
        return self._in_slices(self.encoder, x)

    def _decoded(self, z: Tensor) -> Tensor:
        """Return the decoder's output, (B, C, H, W) or (B, 2C, H, W)."""
        channels, *sides = self.latent_shape
        check_shape("latents", z, ("B", channels, *(sides if self.config["network"] == "mlp" else ("h", "w"))))
        return self._in_slices(self.decoder, z)

    def _in_slices(self, network: nn.Module, x: Tensor) -> Tensor:
        """Run a network, one image at a time if slicing is enabled; the parts of `conv` checkpoint by themselves."""
        if self.gradient_checkpointing and self.config["network"] == "mlp" and torch.is_grad_enabled():
            found: Tensor = self._gradient_checkpointing_func(network, x)
            return found
        return torch.cat([network(one) for one in x.split(1)]) if self.use_slicing and len(x) > 1 else network(x)


def _check_layers(*sizes: int) -> None:
    """Reject an MLP that is too large for any memory."""
    weights = max(i * o for i, o in pairwise(sizes))
    if weights > MOST_WEIGHTS:
        raise ValueError(
            f"a layer with {weights:,} weights exceeds the limit of {MOST_WEIGHTS:,} (8 GB): use network='conv', "
            "smaller images or smaller hidden_sizes"
        )
