"""The UNets of Improved DDPM and ADM that diffusers' `UNet2DModel` cannot hold, in diffusers' own blocks.

Improved DDPM: Nichol & Dhariwal 2021, arXiv 2102.09672. ADM: Dhariwal & Nichol 2021, arXiv 2105.05233, section 3 and
appendices C and I.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D, get_down_block, get_up_block
from torch import Tensor, nn
from torch.nn import functional as F

from hf_ddpm.models.checked_network import CheckedNetwork
from hf_ddpm.models.closing_layers import closing_layers, start_at_zero
from hf_ddpm.models.image_size import size_pair
from hf_ddpm.models.time_tables import table_of_sinusoids
from hf_ddpm.models.vae_networks import (
    check_groups,
    check_halving,
    check_heads,
    check_levels,
    check_shape,
    check_sizes,
    each_timestep,
)
from hf_ddpm.schedulers.annotations import check_arguments

DownBlock = Literal["DownBlock2D", "ResnetDownsampleBlock2D", "AttnDownBlock2D"]
UpBlock = Literal["UpBlock2D", "ResnetUpsampleBlock2D", "AttnUpBlock2D"]
Resampling = Literal["conv", "resnet"]
NORM_EPS = 1e-5


class ADMUNet(CheckedNetwork, ModelMixin, ConfigMixin):  # type: ignore[misc]  # they disagree on config_name
    """A UNet of Improved DDPM and ADM: heads per level, a width of t of its own, and a low-resolution image as input.

    Images are (B, C, H, W), in [-1, 1] before noise is added; t is in 0 .. T-1. The embeddings of t and of the class
    are added, and scale and shift the output of each group norm (adaptive group norm). Residual branches and the
    output start at zero, so the first prediction is 0. Most keywords are those of `UNet2DModel`; use that class where
    it suffices, because plain diffusers loads it.

    Args:
        sample_size: The image size (H, W), or one number for both; None for any size that the levels can halve.
        in_channels: The number of channels of x_t, C.
        out_channels: The number of output channels: C, or 2C with variances.
        block_out_channels: The widths of the levels.
        layers_per_block: The number of residual blocks per level on the way down; there is one more on the way up.
        down_block_types: The block type of each level, with or without attention; the middle always has attention.
        up_block_types: The same from the lowest resolution upwards.
        downsample_type, upsample_type: How levels are joined: "resnet" is a residual block that resamples inside (ADM),
            "conv" is a convolution (Improved DDPM).
        num_heads: The number of attention heads of every level; None if `attention_head_dim` is given.
        attention_head_dim: The number of channels per head; None if `num_heads` is given.
        norm_num_groups: The number of groups of the group norms.
        dropout: The dropout probability in residual blocks.
        time_embedding_channels: The number of sinusoids of t, a quarter of the width of its embedding; None is the
            width of the first level.
        time_embedding_type: "positional" for the sinusoids of t, "learned" for a table with those of 1000 t / T, which
            needs `num_train_timesteps`.
        num_train_timesteps: T, the number of rows of that table.
        num_class_embeds: The number of classes; None for a network without classes.
        low_res_channels: The number of channels of the low-resolution image of an upsampler; 0 for other networks.

    Raises:
        ValueError: If a choice is unknown, or sizes do not fit together.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 3,
        out_channels: int = 6,
        block_out_channels: tuple[int, ...] = (256, 256, 512, 768, 1024),
        layers_per_block: int = 2,
        down_block_types: tuple[DownBlock, ...] = ("ResnetDownsampleBlock2D",) * 2 + ("AttnDownBlock2D",) * 3,
        up_block_types: tuple[UpBlock, ...] = ("AttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",) * 2,
        downsample_type: Resampling = "resnet",
        upsample_type: Resampling = "resnet",
        num_heads: int | None = 4,
        attention_head_dim: int | None = None,
        norm_num_groups: int = 32,
        dropout: float = 0.0,
        time_embedding_channels: int | None = None,
        time_embedding_type: Literal["positional", "learned"] = "positional",
        num_train_timesteps: int | None = None,
        num_class_embeds: int | None = None,
        low_res_channels: int = 0,
    ) -> None:
        super().__init__()
        check_arguments(ADMUNet, self.config)
        _check_config(self.config)
        widths = block_out_channels
        t_channels = time_embedding_channels or widths[0]
        self.conv_in = nn.Conv2d(in_channels + low_res_channels, widths[0], kernel_size=3, padding=1)
        self.time_proj = _time_projection(t_channels, num_train_timesteps, time_embedding_type)
        self.time_embedding = TimestepEmbedding(t_channels, 4 * t_channels)
        self.class_embedding = None if num_class_embeds is None else nn.Embedding(num_class_embeds, 4 * t_channels)
        self.down_blocks, self.mid_block, self.up_blocks = _blocks(self.config, 4 * t_channels)
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, widths[0], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[0], out_channels, kernel_size=3, padding=1)
        for layer in (self.conv_out, *closing_layers(self)):
            start_at_zero(layer)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | int,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
        low_res: Tensor | None = None,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Predict what the network was trained to predict, and the variances if it learns them.

        Args:
            sample: x_t, (B, C, H, W).
            timestep: t in 0 .. T-1, one number for all images or (B,).
            class_labels: The classes (B,), of a network with classes.
            return_dict: Whether to return a `UNet2DOutput` instead of a tuple of the output.
            low_res: The low-resolution images (B, low_res_channels, h, w) of an upsampler, in [-1, 1]; they are
                enlarged to (H, W) with bilinear interpolation.

        Returns:
            UNet2DOutput | tuple: The output, (B, out_channels, H, W).

        Raises:
            ValueError: If the images, classes or timesteps are missing, not expected or have the wrong shape.
        """
        config = self.config
        check_shape("images", sample, ("B", config["in_channels"], "H", "W"))
        h = self.conv_in(torch.cat([sample, *self._enlarged(low_res, sample)], dim=1))
        embedding = self._embedding(timestep, class_labels, sample)
        skips = [h]
        for down in self.down_blocks:
            h, outputs = down(h, embedding)
            skips += outputs
        h = self.mid_block(h, embedding)
        for up in self.up_blocks:
            count = len(up.resnets)  # type: ignore[arg-type]
            h, skips = up(h, tuple(skips[-count:]), embedding), skips[:-count]
        output = self.conv_out(F.silu(self.conv_norm_out(h)))
        return UNet2DOutput(sample=output) if return_dict else (output,)

    def _embedding(self, timestep: Tensor | int, class_labels: Tensor | None, sample: Tensor) -> Tensor:
        """Embed t and the class, (B, 4 * time_embedding_channels)."""
        embedding: Tensor = self.time_embedding(self.time_proj(each_timestep(timestep, sample)).to(sample.dtype))
        if (class_labels is None) != (self.class_embedding is None):
            needs = "has no classes" if self.class_embedding is None else "has classes"
            raise ValueError(f"class_labels of type {type(class_labels).__name__} do not fit a network that {needs}")
        if self.class_embedding is not None and class_labels is not None:
            check_shape("class_labels", class_labels, (len(sample),))
            embedding = embedding + self.class_embedding(class_labels).to(sample.dtype)
        return embedding

    def _enlarged(self, low_res: Tensor | None, sample: Tensor) -> list[Tensor]:
        """Return the low-resolution images with the size of `sample`; an empty list for a network without them."""
        channels = self.config["low_res_channels"]
        if (low_res is None) != (channels == 0):
            needs = f"needs {channels} channels of them" if channels else "has no such input"
            raise ValueError(f"low_res of type {type(low_res).__name__} does not fit: this network {needs}")
        if low_res is None:
            return []
        check_shape("low_res", low_res, (len(sample), channels, "h", "w"))
        return [F.interpolate(low_res.to(sample.dtype), size=sample.shape[2:], mode="bilinear")]


def _time_projection(channels: int, num_timesteps: int | None, kind: str) -> nn.Module:
    """Return the sinusoids of t, or a table of those of 1000 t / T."""
    if kind == "positional":
        return Timesteps(channels, flip_sin_to_cos=True, downscale_freq_shift=0)
    return table_of_sinusoids(num_timesteps or 1, channels)  # checked: it is given


def _blocks(config: Mapping[str, Any], t_width: int) -> tuple[nn.ModuleList, nn.Module, nn.ModuleList]:
    """Build the way down, the middle and the way up."""
    widths, layers = config["block_out_channels"], config["layers_per_block"]
    shared: dict[str, Any] = {"temb_channels": t_width, "dropout": config["dropout"], "resnet_eps": NORM_EPS}
    shared |= {"resnet_act_fn": "silu", "resnet_groups": config["norm_num_groups"]}
    shared |= {"resnet_time_scale_shift": "scale_shift"}
    down, up, last = nn.ModuleList(), nn.ModuleList(), len(widths) - 1
    for i, width in enumerate(widths):
        down.append(
            get_down_block(
                config["down_block_types"][i],
                num_layers=layers,
                in_channels=widths[max(i - 1, 0)],
                out_channels=width,
                add_downsample=i < last,
                downsample_padding=1,
                downsample_type=config["downsample_type"],
                attention_head_dim=_head_dim(config, width),
                **shared,
            )
        )
    middle = UNetMidBlock2D(
        widths[-1], attn_groups=config["norm_num_groups"], attention_head_dim=_head_dim(config, widths[-1]), **shared
    )
    for i, width in enumerate(reversed(widths)):
        up.append(
            get_up_block(
                config["up_block_types"][i],
                num_layers=layers + 1,
                in_channels=widths[max(last - i - 1, 0)],
                out_channels=width,
                prev_output_channel=widths[min(last - i + 1, last)],
                add_upsample=i < last,
                upsample_type=config["upsample_type"],
                attention_head_dim=_head_dim(config, width),
                **shared,
            )
        )
    return down, middle, up


def _head_dim(config: Mapping[str, Any], width: int) -> int:
    """Return the number of channels per head in a level of this width."""
    heads = config["num_heads"]
    dim: int = config["attention_head_dim"] if heads is None else width // heads
    return dim


def _check_config(config: Mapping[str, Any]) -> None:
    """Reject numbers that do not fit together."""
    widths, down, up = (config[key] for key in ("block_out_channels", "down_block_types", "up_block_types"))
    check_levels(widths, down, up)
    names = ("in_channels", "out_channels", "block_out_channels", "layers_per_block", "norm_num_groups")
    optional = ("time_embedding_channels", "num_train_timesteps", "num_class_embeds", "num_heads", "attention_head_dim")
    given = [*names, *(key for key in optional if config[key] is not None)]
    check_sizes(**{key: config[key] for key in given})
    if config["low_res_channels"] < 0 or not 0 <= config["dropout"] < 1:
        raise ValueError(
            f"low_res_channels={config['low_res_channels']} must be at least 0, and dropout={config['dropout']} a "
            "probability in [0, 1)"
        )
    if config["sample_size"] is not None:
        check_halving(size_pair(config["sample_size"]), len(widths))
    check_groups(widths, config["norm_num_groups"])
    _check_heads(config, [*zip(widths, down, strict=True), *zip(reversed(widths), up, strict=True)])
    if (config["time_embedding_type"] == "learned") != (config["num_train_timesteps"] is not None):
        raise ValueError(
            f"time_embedding_type={config['time_embedding_type']!r} does not fit "
            f"num_train_timesteps={config['num_train_timesteps']}: only 'learned' is a table with T rows"
        )


def _check_heads(config: Mapping[str, Any], levels: Sequence[tuple[int, str]]) -> None:
    heads, dim = config["num_heads"], config["attention_head_dim"]
    if (heads is None) == (dim is None):
        raise ValueError(f"num_heads={heads} and attention_head_dim={dim}: exactly one of them must be given")
    attended = {width for width, kind in levels if "Attn" in kind} | {config["block_out_channels"][-1]}
    key = "attention_head_dim" if heads is None else "num_heads"
    check_heads(key, config[key], sorted(attended))
