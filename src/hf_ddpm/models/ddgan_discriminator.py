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

CLASS_STD = 0.1  # the initial standard deviation of the embedding of classes


@dataclass
class DDGANDiscriminatorOutput(BaseOutput):
    """The output of `DDGANDiscriminator`.

    Attributes:
        logits: The logit of each image, (B,); above 0 the image is more likely real than fake.
    """

    logits: Tensor


class DDGANDiscriminator(CheckedNetwork, ModelMixin, ConfigMixin):  # type: ignore[misc]  # they disagree on config_name
    """A discriminator of real and fake x_{t-1}, given x_t and t: residual blocks without norms.

    Both images are noisy, (B, C, H, W); t is in 0 .. T-1. The minibatch standard deviation, which measures how much the
    images of a group differ, is an additional channel of the last level. The embedding of a class is added to that of
    t, and the inner product of another embedding and the features is added to the logit (arXiv 1802.05637). The
    defaults give a small discriminator for 28x28 digits.

    Args:
        sample_size: The image size (H, W), or one number for both.
        in_channels: The number of image channels, C.
        block_out_channels: The width of the first convolution, and the width of each block.
        down_blocks: Whether each block halves the images; odd sizes are rounded down.
        patch_size: The side of the square patches whose pixels become channels before the first convolution; 1 for no
            patches.
        group_size: The number of images per group of the minibatch standard deviation.
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
            nn.init.normal_(self.classes_in.weight, std=CLASS_STD)  # about the variation of the embedding of t
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
        """Compute the logits of pairs of images.

        Args:
            previous: x_{t-1}, real or fake, (B, C, H, W).
            sample: x_t, (B, C, H, W).
            timestep: t in 0 .. T-1, one number for all images or (B,).
            class_labels: The classes in 0 .. K-1, (B,), for a model with classes.
            full_precision: Whether to compute in float32 even within autocast, as a gradient penalty needs.
            return_dict: Whether to return a `DDGANDiscriminatorOutput` instead of a tuple of the logits.

        Raises:
            ValueError: If the images, timesteps or labels have the wrong shape, or the weights the wrong precision.
        """
        config = self.config
        check_shape("images", sample, ("B", config["in_channels"], *size_pair(config["sample_size"])))
        check_shape("previous images", previous, tuple(sample.shape))
        check_labels(class_labels, config["num_classes"], len(sample))
        if full_precision:
            wide = torch.promote_types(sample.dtype, torch.float32)
            if self.dtype != wide:
                raise ValueError(
                    f"full_precision=True requires weights in {wide}, not in {self.dtype}: train with mixed precision, "
                    "which keeps the weights in full precision"
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
    """Reject numbers that do not fit together."""
    size, widths, downs = size_pair(config["sample_size"]), config["block_out_channels"], config["down_blocks"]
    counts = ("in_channels", "patch_size", "group_size")
    check_sizes(sample_size=size, block_out_channels=widths or (0,), **{key: config[key] for key in counts})
    if config["num_classes"] is not None:
        check_sizes(num_classes=config["num_classes"])
    if len(downs) != len(widths) - 1:
        raise ValueError(
            f"the length of block_out_channels is {len(widths)} and that of down_blocks is {len(downs)}: "
            "block_out_channels needs the width of the first convolution, then one width for each entry of down_blocks"
        )
    if any(side % config["patch_size"] for side in size):
        raise ValueError(f"patch_size={config['patch_size']} must divide height and width, {size[0]} and {size[1]}")
    if any(side < config["patch_size"] * 2 ** sum(downs) for side in size):
        raise ValueError(
            f"images of size {size[0]}x{size[1]} with patch_size={config['patch_size']} are too small to be halved "
            f"{sum(downs)} time(s): set fewer entries of down_blocks to True, or use a smaller patch_size"
        )
