"""What the two networks of a denoising diffusion GAN are built of (Xiao et al. 2022, arXiv 2112.07804, appendix C).

The generator's blocks are those of NCSN++ (Song et al. 2021, arXiv 2011.13456, appendix H) with a latent beside t.
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
SLOPE = 0.2  # of the discriminator's activation where it is negative
NORM_EPS = 1e-6
_OF_THE_MEAN = 1000  # latents


def fir_downsample(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, C, H // 2, W // 2) through the filter (1, 3, 3, 1) in both directions."""
    return conv2d(x, _fir_kernel(x), stride=2, padding=1, groups=x.shape[1])


def fir_upsample(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, C, 2H, 2W) through the filter (1, 3, 3, 1) in both directions."""
    return conv_transpose2d(x, 4 * _fir_kernel(x), stride=2, padding=1, groups=x.shape[1])


def _fir_kernel(x: Tensor) -> Tensor:
    """(C, 1, 4, 4), whose weights add up to 1."""
    return _fir_taps(x.dtype, x.device).expand(x.shape[1], 1, -1, -1).contiguous()


@cache
def _fir_taps(dtype: torch.dtype, device: torch.device) -> Tensor:
    """(4, 4), copied to a device once, so that no step waits for it; training may use what sampling has made."""
    with torch.inference_mode(False):
        taps = torch.tensor(FIR, dtype=dtype, device=device)
        kernel = torch.outer(taps, taps)
        return kernel / kernel.sum()


class TimeEmbedding(nn.Module):
    """Sinusoids of t through two linear layers, (B,) to (B, `channels`).

    Args:
        sinusoids: how many.
        channels: of the embedding.
    """

    def __init__(self, sinusoids: int, channels: int) -> None:
        super().__init__()
        self.sinusoids = Timesteps(sinusoids, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.layers = TimestepEmbedding(sinusoids, channels)

    def forward(self, timestep: Tensor | int, like: Tensor) -> Tensor:
        """The embedding of `timestep`, a number for all images of `like` (B, ...) or (B,), in its precision.

        Raises:
            ValueError: neither one timestep nor one for each image.
        """
        found: Tensor = self.layers(self.sinusoids(each_timestep(timestep, like)).to(like.dtype))
        return found


class MappingNetwork(nn.Module):
    """w of a latent z and a class: z of unit mean square, beside an embedding of the class, through linear layers.

    With neither of them, w is 0.

    Args:
        latent_dim: of z.
        channels: of w.
        num_layers: linear layers, an activation behind each.
        num_classes: K; None: no classes.
    """

    def __init__(self, latent_dim: int, channels: int, num_layers: int, num_classes: int | None) -> None:
        super().__init__()
        self.classes = None if num_classes is None else nn.Embedding(num_classes, channels)
        inputs = latent_dim + (0 if num_classes is None else channels)
        widths = [inputs, *[channels] * (num_layers - 1)] if inputs else []
        layers = [layer for width in widths for layer in (nn.Linear(width, channels), nn.SiLU())]
        self.layers, self.channels = nn.Sequential(*layers), channels

    def forward(self, z: Tensor, class_labels: Tensor | None, truncation: float = 1.0) -> Tensor:
        """(B, latent_dim) and (B,) to (B, channels); with a `truncation` below 1 nearer to the mean of w."""
        w = self._mapped(z, class_labels)
        if truncation == 1:
            return w
        generator = torch.Generator().manual_seed(0)  # of one mean, whoever asks
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
    """A residual block: the group norms are scaled and shifted by w, t is added between the convolutions.

    Args:
        in_channels, out_channels: of the images.
        w_channels, t_channels: of w and of the embedding of t.
        num_groups: of the group norms, at most; see `norm_groups`.
        resample: "down" halves the image inside, "up" doubles it; None leaves it.
        dropout: before the second convolution.
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
        """(B, in_channels, H, W) to (B, out_channels, H', W'); of unit variance if x and the residual are."""
        h = self.resample(silu(self.norm1(x, w)))
        h = self.conv1(h) + self.time(silu(t))[:, :, None, None]
        h = self.conv2(self.dropout(silu(self.norm2(h, w))))
        found: Tensor = (self.shortcut(self.resample(x)) + h) / math.sqrt(2)
        return found


def run_block(network: Any, block: nn.Module, *inputs: Tensor) -> Tensor:
    """A block of a network, computed twice instead of kept where the network's `gradient_checkpointing` says so."""
    if torch.is_grad_enabled() and network.gradient_checkpointing:
        found: Tensor = network._gradient_checkpointing_func(block, *inputs)
    else:
        found = block(*inputs)
    return found


def norm_groups(channels: int, most: int) -> int:
    """Groups of a norm: at most `most`, a divisor of `channels`, and of four channels or more, as in NCSN++.

    A norm subtracts what is added to all channels of a group alike: with one channel a group, t would vanish in it.
    """
    return math.gcd(min(most, max(1, channels // 4)), channels)


def attention(channels: int, head_dim: int | None, num_groups: int) -> Attention:
    """Self-attention over the pixels, (B, C, H, W) to the same, added to its input and divided by sqrt(2).

    Args:
        head_dim: channels of a head; None: one head.
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
    # a bias of the keys moves all logits of a query alike, so it has no gradient but rounding, which Adam would follow
    found.to_k = nn.Linear(channels, channels, bias=False)
    return found


class DiscriminatorBlock(nn.Module):
    """A residual block without norms, t added between the convolutions.

    Args:
        in_channels, out_channels: of the images.
        t_channels: of the embedding of t.
        down: whether it halves the image.
    """

    def __init__(self, in_channels: int, out_channels: int, *, t_channels: int, down: bool) -> None:
        super().__init__()
        self.resample = fir_downsample if down else nn.Identity()
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.time = nn.Linear(t_channels, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H', W')."""
        h = self.conv1(leaky_relu(x, SLOPE)) + self.time(t)[:, :, None, None]
        h = self.conv2(self.resample(leaky_relu(h, SLOPE)))
        found: Tensor = (self.shortcut(self.resample(x)) + h) / math.sqrt(2)
        return found


def minibatch_std(x: Tensor, group_size: int) -> Tensor:
    """x (B, C, H, W) with one channel more: how much a group of images differs, on average (Karras et al. 2018).

    Each group consists of neighbouring images, so that parts of a batch that hold whole groups, on other processes
    too, are judged as the whole batch is. A batch that the groups do not divide has smaller ones; one image differs by
    nothing.
    """
    group = math.gcd(len(x), group_size)
    grouped = x.view(len(x) // group, group, *x.shape[1:]).to(torch.promote_types(x.dtype, torch.float32))
    spread = (grouped.var(dim=1, correction=0) + 1e-8).sqrt().flatten(1).mean(dim=1)  # (B / group,)
    spread = spread.repeat_interleave(group).view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
    return torch.cat([x, spread.to(x.dtype)], dim=1)
