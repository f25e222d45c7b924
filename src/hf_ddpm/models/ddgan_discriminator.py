"""The discriminator of a denoising diffusion GAN (Xiao et al. 2022, arXiv 2112.07804): D(x_{t-1}, x_t, t)."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, pixel_unshuffle

from hf_ddpm.models.checked_network import CheckedNetwork
from hf_ddpm.models.ddgan_blocks import SLOPE, DiscriminatorBlock, TimeEmbedding, minibatch_std, run_block
from hf_ddpm.models.ddgan_generator import check_labels
from hf_ddpm.models.fan_avg import init_fan_avg
from hf_ddpm.models.image_size import size_pair
from hf_ddpm.models.vae_networks import check_shape, check_sizes
from hf_ddpm.schedulers.annotations import check_arguments

CLASS_STD = 0.1  # of a class's embedding at first


@dataclass
class DDGANDiscriminatorOutput(BaseOutput):
    """What a forward pass finds.

    Attributes:
        logits: of each image, (B,); above 0 it is rather real.
    """

    logits: Tensor


class DDGANDiscriminator(CheckedNetwork, ModelMixin, ConfigMixin):  # type: ignore[misc]  # they disagree on config_name
    """Whether x_{t-1} is one step before x_t of a real image: residual blocks without norms.

    Both images are (B, C, H, W), in the range of noisy ones; t is in 0 .. T-1. How much the images of a group differ is
    one of the last level's channels (minibatch standard deviation). A class goes in beside t, and is asked for by the
    inner product of another embedding and the features (arXiv 1802.05637). Without arguments it is a small one for
    28x28 digits.

    Args:
        sample_size: (H, W), or one number for both.
        in_channels: C.
        block_out_channels: the width of the first convolution, and that of each block.
        down_blocks: of each block whether it halves the images, an odd side rounded down.
        patch_size: side of the squares whose pixels become channels before the first convolution; 1: none do.
        group_size: images of a group of the minibatch standard deviation.
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
        block_out_channels: tuple[int, ...] = (48, 96, 128),
        down_blocks: tuple[bool, ...] = (True, True),
        patch_size: int = 4,
        group_size: int = 4,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        check_arguments(DDGANDiscriminator, self.config)
        _check_config(self.config)
        widths, last = block_out_channels, block_out_channels[-1]
        t_channels = 2 * widths[0]
        self.time = TimeEmbedding(widths[0], t_channels)
        self.conv_in = nn.Conv2d(2 * in_channels * patch_size**2, widths[0], kernel_size=1)
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(below, width, t_channels=t_channels, down=down)
            for (below, width), down in zip(pairwise(widths), down_blocks, strict=True)
        )
        self.conv_out = nn.Conv2d(last + 1, last, kernel_size=3, padding=1)
        self.head = nn.Linear(last, 1)
        self.classes = None if num_classes is None else nn.Embedding(num_classes, last)
        self.classes_in = None if num_classes is None else nn.Embedding(num_classes, t_channels)
        init_fan_avg(self)
        if self.classes is not None and self.classes_in is not None:
            nn.init.normal_(self.classes_in.weight, std=CLASS_STD)  # beside t, whose embedding differs by about as much
            nn.init.zeros_(self.classes.weight)

    def forward(
        self,
        previous: Tensor,
        sample: Tensor,
        timestep: Tensor | int,
        class_labels: Tensor | None = None,
        full_precision: bool = False,
        return_dict: bool = True,
    ) -> DDGANDiscriminatorOutput | tuple[Tensor]:
        """The logits of pairs of images.

        Args:
            previous: x_{t-1}, real or fake, (B, C, H, W).
            sample: x_t, (B, C, H, W).
            timestep: t in 0 .. T-1, a number for all images or (B,).
            class_labels: in 0 .. K-1, (B,), of a model with classes.
            full_precision: computes in float32 whatever the autocast around it, as a gradient penalty needs.
            return_dict: `DDGANDiscriminatorOutput`, or a tuple of the logits (B,).

        Raises:
            ValueError: images, timesteps or labels of another shape.
        """
        config = self.config
        check_shape("images", sample, ("B", config["in_channels"], *size_pair(config["sample_size"])))
        check_shape("previous images", previous, tuple(sample.shape))
        check_labels(class_labels, config["num_classes"], len(sample))
        if full_precision:
            wide = torch.promote_types(sample.dtype, torch.float32)
            if self.dtype != wide:
                raise ValueError(
                    f"full_precision=True needs weights of {wide}, not of {self.dtype}: train with mixed precision, "
                    "which keeps them"
                )
            with torch.autocast(sample.device.type, enabled=False):
                logits = self._logits(previous.to(wide), sample.to(wide), timestep, class_labels)
        else:
            logits = self._logits(previous, sample, timestep, class_labels)
        return DDGANDiscriminatorOutput(logits=logits) if return_dict else (logits,)

    def _logits(self, previous: Tensor, sample: Tensor, timestep: Tensor | int, class_labels: Tensor | None) -> Tensor:
        t = self.time(timestep, sample)
        t = leaky_relu(t if self.classes_in is None else t + self.classes_in(class_labels).to(t.dtype), SLOPE)
        h = self.conv_in(pixel_unshuffle(torch.cat([previous, sample], dim=1), self.config["patch_size"]))
        for block in self.blocks:
            h = run_block(self, block, h, t)
        h = self.conv_out(minibatch_std(leaky_relu(h, SLOPE), self.config["group_size"]))
        features = leaky_relu(h, SLOPE).sum(dim=(2, 3))  # (B, C)
        logits: Tensor = self.head(features).squeeze(1)
        if self.classes is not None:
            logits = logits + (self.classes(class_labels) * features).sum(dim=1)
        return logits


def _check_config(config: Mapping[str, Any]) -> None:
    """Refuse numbers that do not fit together."""
    size, widths, downs = size_pair(config["sample_size"]), config["block_out_channels"], config["down_blocks"]
    counts = ("in_channels", "patch_size", "group_size")
    check_sizes(sample_size=size, block_out_channels=widths or (0,), **{key: config[key] for key in counts})
    if config["num_classes"] is not None:
        check_sizes(num_classes=config["num_classes"])
    if len(downs) != len(widths) - 1:
        raise ValueError(
            f"block_out_channels has {len(widths)} widths and down_blocks {len(downs)}: give the width of the first "
            "convolution, then one width and one entry of down_blocks for each block"
        )
    if any(side % config["patch_size"] for side in size):
        raise ValueError(f"patch_size={config['patch_size']} must divide the image's sides, {size[0]} and {size[1]}")
    if any(side < config["patch_size"] * 2 ** sum(downs) for side in size):
        raise ValueError(
            f"images of {size[0]}x{size[1]} in patches of {config['patch_size']} are too small to be halved "
            f"{sum(downs)} times: set fewer entries of down_blocks to True, or take a smaller patch_size"
        )
