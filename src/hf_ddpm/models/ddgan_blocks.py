"""Building blocks of the two networks of a denoising diffusion GAN (Xiao et al. 2022, arXiv 2112.07804, appendix C).

The generator's blocks are those of NCSN++ (Song et al. 2021, arXiv 2011.13456, appendix H) with a latent in addition.
"""

import math
from functools import cache
from typing import Any, Literal

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.normalization import AdaGroupNorm
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, leaky_relu, silu

from hf_ddpm.models.vae_networks import each_timestep

FIR = (1.0, 3.0, 3.0, 1.0)
SLOPE = 0.2  # of the discriminator's activation for negative inputs
NORM_EPS = 1e-6
_OF_THE_MEAN = 1000  # the number of latents in the mean of w


def fir_downsample(x: Tensor) -> Tensor:
    """Downsample (B, C, H, W) to (B, C, H // 2, W // 2) with the filter (1, 3, 3, 1) in both directions."""
    return conv2d(x, _fir_kernel(x), stride=2, padding=1, groups=x.shape[1])


def fir_upsample(x: Tensor) -> Tensor:
    """Upsample (B, C, H, W) to (B, C, 2H, 2W) with the filter (1, 3, 3, 1) in both directions."""
    return conv_transpose2d(x, 4 * _fir_kernel(x), stride=2, padding=1, groups=x.shape[1])


def _fir_kernel(x: Tensor) -> Tensor:
    """Return the kernel, (C, 1, 4, 4), whose weights for each channel add up to 1."""
    return _fir_taps(x.dtype, x.device).expand(x.shape[1], 1, -1, -1).contiguous()


@cache
def _fir_taps(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the kernel, (4, 4), which is copied to a device only once; training may use a copy made while sampling."""
    with torch.inference_mode(False):
        taps = torch.tensor(FIR, dtype=dtype, device=device)
        kernel = torch.outer(taps, taps)
        return kernel / kernel.sum()


class TimeEmbedding(nn.Module):
    """An embedding of t: sinusoids through two linear layers, (B,) to (B, `channels`).

    Args:
        sinusoids: The number of sinusoids.
        channels: The number of channels of the embedding.
    """

    def __init__(self, sinusoids: int, channels: int) -> None:
        super().__init__()
        self.sinusoids = Timesteps(sinusoids, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.layers = TimestepEmbedding(sinusoids, channels)

    def forward(self, timestep: Tensor | int, like: Tensor) -> Tensor:
        """Embed `timestep`, one number for all images of `like` (B, ...) or (B,), in the precision of `like`.

        Raises:
            ValueError: If there is neither one timestep nor one for each image.
        """
        found: Tensor = self.layers(self.sinusoids(each_timestep(timestep, like)).to(like.dtype))
        return found


class MappingNetwork(nn.Module):
    """Maps a latent z and a class to w: z, normalised to unit mean square, and an embedding of the class, concatenated.

    Linear layers follow. With neither z nor classes, w is 0.

    Args:
        latent_dim: The dimension of z.
        channels: The number of channels of w.
        num_layers: The number of linear layers, each followed by an activation.
        num_classes: K; None for no classes.
    """

    def __init__(self, latent_dim: int, channels: int, num_layers: int, num_classes: int | None) -> None:
        super().__init__()
        self.classes = None if num_classes is None else nn.Embedding(num_classes, channels)
        inputs = latent_dim + (0 if num_classes is None else channels)
        widths = [inputs, *[channels] * (num_layers - 1)] if inputs else []
        layers = [layer for width in widths for layer in (nn.Linear(width, channels), nn.SiLU())]
        self.layers, self.channels = nn.Sequential(*layers), channels

    def forward(self, z: Tensor, class_labels: Tensor | None, truncation: float = 1.0) -> Tensor:
        """Map (B, latent_dim) and (B,) to (B, channels); a `truncation` below 1 moves w towards its mean."""
        w = self._mapped(z, class_labels)
        if truncation == 1:
            return w
        generator = torch.Generator().manual_seed(0)  # so that every call uses the same mean
        some = torch.randn(_OF_THE_MEAN, z.shape[1], generator=generator).to(z)
        if class_labels is None:
            return torch.lerp(self._mapped(some, None).mean(dim=0), w, truncation)
        classes, own = class_labels.unique(return_inverse=True)
        means = [self._mapped(some, one.expand(len(some))).mean(dim=0) for one in classes]
        return torch.lerp(torch.stack(means)[own], w, truncation)

    def _mapped(self, z: Tensor, class_labels: Tensor | None) -> Tensor:
        z = z * torch.rsqrt(z.square().mean(dim=1, keepdim=True) + 1e-8)
        if self.classes is not None:
            z = torch.cat([z, self.classes(class_labels).to(z.dtype)], dim=1)
        found: Tensor = self.layers(z) if len(self.layers) else z.new_zeros(len(z), self.channels)
        return found


class AdaptiveBlock(nn.Module):
    """A residual block: w scales and shifts the group norms, and t is added between the convolutions.

    Args:
        in_channels, out_channels: The number of channels of the input and of the output.
        w_channels, t_channels: The number of channels of w and of the embedding of t.
        num_groups: The largest number of groups of the group norms; see `norm_groups`.
        resample: "down" halves the image inside the block, "up" doubles it; None keeps its size.
        dropout: The dropout probability before the second convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        w_channels: int,
        t_channels: int,
        num_groups: int,
        resample: Literal["down", "up"] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.resample: Any = {"down": fir_downsample, "up": fir_upsample, None: nn.Identity()}[resample]
        self.norm1 = AdaGroupNorm(w_channels, in_channels, norm_groups(in_channels, num_groups), eps=NORM_EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.time = nn.Linear(t_channels, out_channels)
        self.norm2 = AdaGroupNorm(w_channels, out_channels, norm_groups(out_channels, num_groups), eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        plain = in_channels == out_channels and resample is None
        self.shortcut = nn.Identity() if plain else nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor, w: Tensor, t: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H', W'), with unit variance if x and the residual have it."""
        h = self.resample(silu(self.norm1(x, w)))
        h = self.conv1(h) + self.time(silu(t))[:, :, None, None]
        h = self.conv2(self.dropout(silu(self.norm2(h, w))))
        found: Tensor = (self.shortcut(self.resample(x)) + h) / math.sqrt(2)
        return found


def run_block(network: Any, block: nn.Module, *inputs: Tensor) -> Tensor:
    """Run a block of a network, with gradient checkpointing if the network's `gradient_checkpointing` is True."""
    if torch.is_grad_enabled() and network.gradient_checkpointing:
        found: Tensor = network._gradient_checkpointing_func(block, *inputs)
    else:
        found = block(*inputs)
    return found


def norm_groups(channels: int, most: int) -> int:
    """Return the number of groups of a norm: at most `most`, a divisor of `channels`, four channels or more per group.

    This is the rule of NCSN++. A norm subtracts what is added to all channels of a group alike: with one channel per
    group, t would vanish.
    """
    return math.gcd(min(most, max(1, channels // 4)), channels)


def attention(channels: int, head_dim: int | None, num_groups: int) -> Attention:
    """Build self-attention over the pixels of (B, C, H, W), whose output is added to its input and divided by sqrt(2).

    Args:
        channels: C.
        head_dim: The number of channels per head; None for one head.
        num_groups: The largest number of groups of the norm; see `norm_groups`.
    """
    found = Attention(
        channels,
        heads=channels // (head_dim or channels),
        dim_head=head_dim or channels,
        norm_num_groups=norm_groups(channels, num_groups),
        eps=NORM_EPS,
        bias=True,
        residual_connection=True,
        rescale_output_factor=math.sqrt(2),
        _from_deprecated_attn_block=True,
    )
    # a bias of the keys shifts all logits of a query alike, so its gradient is only rounding, which Adam would follow
    found.to_k = nn.Linear(channels, channels, bias=False)
    return found


class DiscriminatorBlock(nn.Module):
    """A residual block without norms, in which t is added between the convolutions.

    Args:
        in_channels, out_channels: The number of channels of the input and of the output.
        t_channels: The number of channels of the embedding of t.
        down: Whether the block halves the image.
    """

    def __init__(self, in_channels: int, out_channels: int, *, t_channels: int, down: bool) -> None:
        super().__init__()
        self.resample = fir_downsample if down else nn.Identity()
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.time = nn.Linear(t_channels, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H', W')."""
        h = self.conv1(leaky_relu(x, SLOPE)) + self.time(t)[:, :, None, None]
        h = self.conv2(self.resample(leaky_relu(h, SLOPE)))
        found: Tensor = (self.shortcut(self.resample(x)) + h) / math.sqrt(2)
        return found


def minibatch_std(x: Tensor, group_size: int) -> Tensor:
    """Append a channel to x (B, C, H, W): the mean standard deviation within a group of images (Karras et al. 2018).

    Each group consists of neighbouring images, so that parts of a batch with whole groups, also on other processes,
    give the same result as the whole batch. If the group size does not divide the batch size, groups are smaller; for
    a group of one image the channel is nearly 0.
    """
    group = math.gcd(len(x), group_size)
    grouped = x.view(len(x) // group, group, *x.shape[1:]).to(torch.promote_types(x.dtype, torch.float32))
    spread = (grouped.var(dim=1, correction=0) + 1e-8).sqrt().flatten(1).mean(dim=1)  # (B / group,)
    spread = spread.repeat_interleave(group).view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
    return torch.cat([x, spread.to(x.dtype)], dim=1)
