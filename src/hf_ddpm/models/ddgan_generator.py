"""The generator of a denoising diffusion GAN (Xiao et al. 2022, arXiv 2112.07804): x_0 = G(x_t, z, t)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle, silu

from hf_ddpm.models.checked_network import CheckedNetwork
from hf_ddpm.models.ddgan_blocks import (
    NORM_EPS,
    AdaptiveBlock,
    MappingNetwork,
    TimeEmbedding,
    attention,
    fir_downsample,
    norm_groups,
    run_block,
)
from hf_ddpm.models.fan_avg import init_fan_avg
from hf_ddpm.models.image_size import size_pair
from hf_ddpm.models.vae_networks import check_halving, check_shape, check_sizes
from hf_ddpm.schedulers.annotations import check_arguments


@dataclass
class DDGANGeneratorOutput(BaseOutput):
    """The output of `DDGANGenerator`.

    Attributes:
        sample: The images x_0, (B, C, H, W) in [-1, 1].
    """

    sample: Tensor


class DDGANGenerator(CheckedNetwork, ModelMixin, ConfigMixin):  # type: ignore[misc]  # they disagree on config_name
    """A generator of images x_0 from x_t, a latent z and t: the UNet of NCSN++ with group norms modulated by w(z).

    Images are (B, C, H, W), in [-1, 1] before noise is added; t is in 0 .. T-1. Many x_0 are possible for one x_t, and
    z selects one of them: a mapping network maps it to w, which scales and shifts the norms of every block, and t is
    added between the convolutions. Residual blocks halve and double the image, and a pyramid of smaller and smaller
    images is added on the way down. The defaults give a small generator for 28x28 digits.

    Args:
        sample_size: The image size (H, W), or one number for both.
        in_channels: The number of image channels, C.
        block_out_channels: The widths of the levels; every level but the last halves the image.
        layers_per_block: The number of residual blocks per level.
        attention_resolutions: The image heights at which levels have attention.
        attention_head_dim: The number of channels per head; None for one head.
        norm_num_groups: The largest number of groups of a group norm; every group has at least four channels.
        dropout: The dropout probability in residual blocks.
        patch_size: The side of the square patches whose pixels become channels before the first level; 1 for no
            patches.
        latent_dim: The dimension of z; 0 for no z, so that there is one x_0 for each x_t, as in DDPM.
        mapping_channels: The number of channels of w.
        mapping_layers: The number of layers of the mapping network.
        num_classes: The number of classes, K; None for a model without classes.

    Raises:
        ValueError: If the sizes do not fit together.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 28,
        in_channels: int = 1,
        block_out_channels: tuple[int, ...] = (32,),
        layers_per_block: int = 1,
        attention_resolutions: tuple[int, ...] = (7,),
        attention_head_dim: int | None = None,
        norm_num_groups: int = 32,
        dropout: float = 0.0,
        patch_size: int = 4,
        latent_dim: int = 100,
        mapping_channels: int = 64,
        mapping_layers: int = 3,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        check_arguments(DDGANGenerator, self.config)
        _check_config(self.config)
        widths, self.gradient_checkpointing = block_out_channels, False
        t_channels, channels = 4 * widths[0], in_channels * patch_size**2
        self.mapping = MappingNetwork(latent_dim, mapping_channels, mapping_layers, num_classes)
        self.time = TimeEmbedding(widths[0], t_channels)
        self.conv_in = nn.Conv2d(channels, widths[0], kernel_size=3, padding=1)
        shared: dict[str, Any] = {"w_channels": mapping_channels, "t_channels": t_channels}
        shared |= {"num_groups": norm_num_groups, "dropout": dropout}
        attended = [height in attention_resolutions for height, _ in level_sizes(self.config)]
        heads = (attention_head_dim, norm_num_groups)
        self.down: Any = nn.ModuleList()  # of _Level
        skips = [widths[0]]
        for i, width in enumerate(widths):
            level = _Level(widths[max(i - 1, 0)], width, layers_per_block, attended[i], heads, shared)
            skips += [width] * layers_per_block
            if i + 1 < len(widths):
                level.resample = AdaptiveBlock(width, width, resample="down", **shared)
                level.pyramid = nn.Conv2d(channels if i == 0 else widths[i - 1], width, kernel_size=3, padding=1)
                skips.append(width)
            self.down.append(level)
        self.middle = nn.ModuleList(AdaptiveBlock(widths[-1], widths[-1], **shared) for _ in range(2))
        self.middle_attention = attention(widths[-1], *heads)
        self.up: Any = nn.ModuleList()  # of _Level
        below = widths[-1]
        for i, width in reversed([*enumerate(widths)]):
            count = layers_per_block + 1
            level = _Level(below, width, count, attended[i], heads, shared, [skips.pop() for _ in range(count)])
            if i > 0:
                level.resample = AdaptiveBlock(width, width, resample="up", **shared)
            self.up.append(level)
            below = width
        self.norm_out = nn.GroupNorm(norm_groups(widths[0], norm_num_groups), widths[0], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[0], channels, kernel_size=3, padding=1)
        init_fan_avg(self)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | int,
        z: Tensor,
        class_labels: Tensor | None = None,
        truncation: float = 1.0,
        return_dict: bool = True,
    ) -> DDGANGeneratorOutput | tuple[Tensor]:
        """Generate the images x_0 that z selects.

        Args:
            sample: x_t, (B, C, H, W).
            timestep: t in 0 .. T-1, one number for all images or (B,).
            z: Standard normal latents, (B, latent_dim).
            class_labels: The classes in 0 .. K-1, (B,), for a model with classes.
            truncation: The position between the mean of w, at 0, and w itself, at 1.
            return_dict: Whether to return a `DDGANGeneratorOutput` instead of a tuple of the images.

        Raises:
            ValueError: If the images, timesteps, latents or labels have the wrong shape, or `truncation` is not in
                [0, 1].
        """
        config = self.config
        check_shape("images", sample, ("B", config["in_channels"], *size_pair(config["sample_size"])))
        check_shape("z", z, (len(sample), config["latent_dim"]))
        _check_truncation(truncation)
        check_labels(class_labels, config["num_classes"], len(sample))
        t, w = self.time(timestep, sample), self.mapping(z.to(sample.dtype), class_labels, truncation)
        pyramid = pixel_unshuffle(sample, config["patch_size"])
        h = self.conv_in(pyramid)
        skips = [h]
        for level in self.down:
            for j in range(len(level.blocks)):
                h = self._asked(level, j, h, w, t)
                skips.append(h)
            if level.resample is not None:
                h, pyramid = run_block(self, level.resample, h, w, t), level.pyramid(fir_downsample(pyramid))
                h = pyramid = (h + pyramid) / math.sqrt(2)
                skips.append(h)
        h = self.middle_attention(run_block(self, self.middle[0], h, w, t))
        h = run_block(self, self.middle[1], h, w, t)
        for level in self.up:
            for j in range(len(level.blocks)):
                h = self._asked(level, j, torch.cat([h, skips.pop()], dim=1), w, t)
            if level.resample is not None:
                h = run_block(self, level.resample, h, w, t)
        x_0 = pixel_shuffle(self.conv_out(silu(self.norm_out(h))), config["patch_size"]).tanh()
        return DDGANGeneratorOutput(sample=x_0) if return_dict else (x_0,)

    def _asked(self, level: "_Level", number: int, h: Tensor, w: Tensor, t: Tensor) -> Tensor:
        """Run a residual block of a level, and its attention."""
        h = run_block(self, level.blocks[number], h, w, t)
        attended: Tensor = level.attentions[number](h)
        return attended


class _Level(nn.Module):
    """The residual blocks of a level; skip connections are concatenated to their inputs.

    Attention follows every block on the way down and the last one on the way up, as in NCSN++.
    """

    def __init__(
        self,
        below: int,
        width: int,
        count: int,
        attended: bool,
        heads: tuple[int | None, int],
        shared: Mapping[str, Any],
        skipped: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        inputs = [below, *[width] * (count - 1)]
        inputs = [one + more for one, more in zip(inputs, skipped or [0] * count, strict=True)]
        self.blocks: Any = nn.ModuleList(AdaptiveBlock(one, width, **shared) for one in inputs)
        last = [attention(width, *heads)] if attended else [nn.Identity()]
        others = [attention(width, *heads) if attended and skipped is None else nn.Identity() for _ in range(count - 1)]
        self.attentions: Any = nn.ModuleList([*others, *last])
        self.resample: nn.Module | None = None
        self.pyramid: nn.Module | None = None


def _check_truncation(truncation: object) -> None:
    """Reject a truncation that is not a number from 0 to 1.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(truncation, bool) or not isinstance(truncation, Real) or not 0 <= float(truncation) <= 1:
        raise ValueError(f"truncation={truncation!r} must be a number from 0 to 1; 1 disables truncation")


def level_sizes(config: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return the image size (H, W) of each level of a network with this configuration."""
    height, width = (side // config["patch_size"] for side in size_pair(config["sample_size"]))
    return [(height >> i, width >> i) for i in range(len(config["block_out_channels"]))]


def check_labels(class_labels: Tensor | None, num_classes: int | None, batch_size: int) -> None:
    """Reject labels for a network without classes, and missing or wrong labels for a network with classes.

    Raises:
        ValueError: If the labels do not fit.
    """
    if num_classes is None and class_labels is not None:
        raise ValueError("class_labels must be omitted: this network was created without num_classes")
    if num_classes is None:
        return
    if not isinstance(class_labels, Tensor) or class_labels.shape != (batch_size,):
        given = f"shape {tuple(class_labels.shape)}" if isinstance(class_labels, Tensor) else repr(class_labels)
        raise ValueError(
            f"this network has num_classes={num_classes}: pass class_labels of shape ({batch_size},), not {given}"
        )
    if class_labels.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"class_labels of dtype {class_labels.dtype} must be integers: convert them to torch.long")
    if class_labels.device.type == "cpu" and not torch.compiler.is_compiling():  # a GPU would have to be waited for
        least, most = class_labels.aminmax()
        if least < 0 or most >= num_classes:
            raise ValueError(
                f"class_labels {least}..{most} must lie within 0..{num_classes - 1}, the network's classes"
            )


def _check_config(config: Mapping[str, Any]) -> None:
    """Reject numbers that do not fit together."""
    size, widths = size_pair(config["sample_size"]), config["block_out_channels"]
    counts = ["in_channels", "layers_per_block", "norm_num_groups", "patch_size"]
    counts += ["mapping_channels", "mapping_layers"]
    check_sizes(sample_size=size, block_out_channels=widths or (0,), **{key: config[key] for key in counts})
    check_sizes(**{key: config[key] for key in ("num_classes", "attention_head_dim") if config[key] is not None})
    if config["latent_dim"] < 0:
        raise ValueError(f"latent_dim={config['latent_dim']} must be at least 0; 0 is a generator without z")
    if not 0 <= config["dropout"] < 1:
        raise ValueError(f"dropout={config['dropout']} must be a probability in [0, 1)")
    if any(side % config["patch_size"] for side in size):
        raise ValueError(f"patch_size={config['patch_size']} must divide height and width, {size[0]} and {size[1]}")
    sizes = level_sizes(config)
    check_halving(size, len(widths), config["patch_size"])
    heights = [height for height, _ in sizes]
    strangers = [height for height in config["attention_resolutions"] if height not in heights]
    if strangers:
        raise ValueError(
            f"attention_resolutions={list(config['attention_resolutions'])} contains {strangers[0]}, but the levels "
            f"have the image heights {', '.join(map(str, heights))}"
        )
    attended = {
        width for width, height in zip(widths, heights, strict=True) if height in config["attention_resolutions"]
    }
    odd = [width for width in sorted({*attended, widths[-1]}) if width % (config["attention_head_dim"] or 1)]
    if odd:
        raise ValueError(
            f"attention_head_dim={config['attention_head_dim']} must divide the channels of the last level and of "
            f"levels with attention, but it does not divide {odd[0]}"
        )
