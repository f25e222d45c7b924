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
    """What a forward pass finds.

    Attributes:
        sample: the images x_0, (B, C, H, W) in [-1, 1].
    """

    sample: Tensor


class DDGANGenerator(CheckedNetwork, ModelMixin, ConfigMixin):  # type: ignore[misc]  # they disagree on config_name
    """Images x_0 of noisy ones, a latent and t: the UNet of NCSN++, whose group norms are scaled and shifted by w(z).

    Images are (B, C, H, W) in [-1, 1] before they were noised, t is in 0 .. T-1. Of one x_t many x_0 are possible, and
    z says which: it goes through a mapping network into the norms of every block, t is added between its convolutions.
    The image is halved and doubled inside residual blocks, and a pyramid of smaller and smaller images is added on the
    way down. Without arguments it is a small one for 28x28 digits.

    Args:
        sample_size: (H, W), or one number for both.
        in_channels: C.
        block_out_channels: widths of the levels; every level but the last halves the image.
        layers_per_block: residual blocks of a level.
        attention_resolutions: heights of the images that attention sees, as a level has them.
        attention_head_dim: channels of a head; None: one head.
        norm_num_groups: the largest number of groups of a group norm; every group has at least four channels.
        dropout: in residual blocks.
        patch_size: side of the squares whose pixels become channels before the first level; 1: none do.
        latent_dim: of z; 0: none, so that one x_0 belongs to each x_t, as in DDPM.
        mapping_channels: of w.
        mapping_layers: of the mapping network.
        num_classes: K; None: a model without classes.

    Raises:
        ValueError: sizes that do not fit together.
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
        """The images x_0 that z chooses.

        Args:
            sample: x_t, (B, C, H, W).
            timestep: t in 0 .. T-1, a number for all images or (B,).
            z: latents, standard normal, (B, latent_dim).
            class_labels: in 0 .. K-1, (B,), of a model with classes.
            truncation: how far to go from the mean of w, 0, to w, 1.
            return_dict: `DDGANGeneratorOutput`, or a tuple of the images.

        Raises:
            ValueError: images, timesteps, latents or labels of another shape.
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
        """A residual block of a level, and its attention."""
        h = run_block(self, level.blocks[number], h, w, t)
        attended: Tensor = level.attentions[number](h)
        return attended


class _Level(nn.Module):
    """The residual blocks of a level; what is skipped to them comes in as further channels.

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
    """Refuse what is no share.

    Raises:
        ValueError: the value, and what is allowed.
    """
    if isinstance(truncation, bool) or not isinstance(truncation, Real) or not 0 <= float(truncation) <= 1:
        raise ValueError(f"truncation={truncation!r} must be a number from 0 to 1, where 1 truncates nothing")


def level_sizes(config: Mapping[str, Any]) -> list[tuple[int, int]]:
    """(H, W) that each level of a network of this configuration sees."""
    height, width = (side // config["patch_size"] for side in size_pair(config["sample_size"]))
    return [(height >> i, width >> i) for i in range(len(config["block_out_channels"]))]


def check_labels(class_labels: Tensor | None, num_classes: int | None, batch_size: int) -> None:
    """Refuse labels of a network without classes, and a network with classes without labels.

    Raises:
        ValueError: which, and how many are needed.
    """
    if num_classes is None and class_labels is not None:
        raise ValueError("class_labels were given, but this network was made without num_classes: leave them out")
    if num_classes is None:
        return
    if not isinstance(class_labels, Tensor) or class_labels.shape != (batch_size,):
        given = f"shape {tuple(class_labels.shape)}" if isinstance(class_labels, Tensor) else repr(class_labels)
        raise ValueError(
            f"this network has {num_classes} classes: give class_labels of shape ({batch_size},), not {given}"
        )
    if class_labels.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"class_labels of {class_labels.dtype} must be whole numbers: torch.long")
    if class_labels.device.type == "cpu" and not torch.compiler.is_compiling():  # a GPU would have to be waited for
        least, most = class_labels.aminmax()
        if least < 0 or most >= num_classes:
            raise ValueError(
                f"class_labels {least}..{most} must lie within 0..{num_classes - 1}, the network's classes"
            )


def _check_config(config: Mapping[str, Any]) -> None:
    """Refuse numbers that do not fit together."""
    size, widths = size_pair(config["sample_size"]), config["block_out_channels"]
    counts = ["in_channels", "layers_per_block", "norm_num_groups", "patch_size"]
    counts += ["mapping_channels", "mapping_layers"]
    check_sizes(sample_size=size, block_out_channels=widths or (0,), **{key: config[key] for key in counts})
    check_sizes(**{key: config[key] for key in ("num_classes", "attention_head_dim") if config[key] is not None})
    if config["latent_dim"] < 0:
        raise ValueError(f"latent_dim={config['latent_dim']} must be at least 0, which is a generator without z")
    if not 0 <= config["dropout"] < 1:
        raise ValueError(f"dropout={config['dropout']} must be a probability in [0, 1)")
    if any(side % config["patch_size"] for side in size):
        raise ValueError(f"patch_size={config['patch_size']} must divide the image's sides, {size[0]} and {size[1]}")
    sizes = level_sizes(config)
    check_halving(sizes[0], len(widths))
    heights = [height for height, _ in sizes]
    strangers = [height for height in config["attention_resolutions"] if height not in heights]
    if strangers:
        raise ValueError(
            f"attention_resolutions={list(config['attention_resolutions'])}: no level sees images of height "
            f"{strangers[0]}, they see {', '.join(map(str, heights))}"
        )
    attended = {
        width for width, height in zip(widths, heights, strict=True) if height in config["attention_resolutions"]
    }
    odd = [width for width in sorted({*attended, widths[-1]}) if width % (config["attention_head_dim"] or 1)]
    if odd:
        raise ValueError(
            f"attention_head_dim={config['attention_head_dim']} must divide the channels of the levels with attention "
            f"and of the last, and does not divide {odd[0]}"
        )
