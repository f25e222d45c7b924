"""The noisy classifier of ADM (Dhariwal & Nichol 2021, arXiv 2105.05233, sec. 4 and appendix I): p(y | x_t, t)."""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D, get_down_block
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from hf_ddpm.models.checked_network import CheckedNetwork
from hf_ddpm.models.classifier_pools import NORM_EPS, Pool, make_pool
from hf_ddpm.models.closing_layers import closing_layers, start_at_zero
from hf_ddpm.models.image_size import side_unit, size_pair
from hf_ddpm.models.vae_networks import (
    check_groups,
    check_halving,
    check_heads,
    check_shape,
    check_sizes,
    each_timestep,
)
from hf_ddpm.schedulers.annotations import as_annotated, check_arguments, described

DownBlock = Literal["ResnetDownsampleBlock2D", "AttnDownBlock2D"]
SCHEDULE_KEYS: dict[str, Any] = {
    "num_train_timesteps": int,
    "beta_start": float,
    "beta_end": float,
    "beta_schedule": str,
    "trained_betas": Sequence[float] | None,
    "rescale_betas_zero_snr": bool,
}
"""The keywords of `HFDDPMScheduler` that determine alpha_bar, and their types: the keys of `noise_schedule`."""
LATENT_KEYS: dict[str, Any] = {"class": str, "scaling_factor": float}  # the keys of `latents`


@dataclass
class NoisyClassifierOutput(BaseOutput):
    """The output of `NoisyClassifier`.

    Attributes:
        logits: log p(y | x_t, t) up to a constant for each image, (B, K).
    """

    logits: Tensor


class NoisyClassifier(CheckedNetwork, ModelMixin, ConfigMixin):  # type: ignore[misc]  # they disagree on config_name
    """A classifier of noisy images, p(y | x_t, t): the encoder half of ADM's UNet in diffusers' blocks, and a pooling.

    Images are (B, C, H, W), in [-1, 1] before noise is added; t is in 0 .. T-1. The embedding of t scales and shifts
    the output of each group norm (adaptive group norm), and each level but the last halves the image inside a residual
    block. Residual branches start at zero. The defaults give a small classifier for 28x28 digits.

    Args:
        sample_size: The image size (H, W), or one number for both.
        in_channels: The number of image channels, C.
        num_classes: The number of classes, K, at least 2.
        block_out_channels: The widths of the levels.
        layers_per_block: The number of residual blocks per level.
        down_block_types: The block type of each level, with or without attention; the middle always has attention.
        attention_head_dim: The number of channels per head, in the levels and in the attention pool.
        norm_num_groups: The number of groups of the group norms.
        dropout: The dropout probability in residual blocks.
        pool: `adaptive` is the global mean, `attention` is CLIP's pooling, `spatial` and `spatial_v2` use the means of
            all stages; see `make_pool`.
        time_embedding_channels: The number of sinusoids of t; None is the width of the first level, from which ADM's
            512x512 classifier differs.
        noise_schedule: The keywords of `HFDDPMScheduler` that determine the alpha_bar of its training, `SCHEDULE_KEYS`.
        id2label: The names of classes by their number, which JSON converts to a string.
        latents: For a classifier of latents instead of pixels, the `class` of their VAE, and the `scaling_factor` by
            which they were multiplied.

    Raises:
        ValueError: If a choice is unknown, sizes do not fit together, or a class that does not exist has a name.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 28,
        in_channels: int = 1,
        num_classes: int = 10,
        block_out_channels: tuple[int, ...] = (16, 32, 64),
        layers_per_block: int = 1,
        down_block_types: tuple[DownBlock, ...] = (
            "ResnetDownsampleBlock2D",
            "ResnetDownsampleBlock2D",
            "AttnDownBlock2D",
        ),
        attention_head_dim: int = 16,
        norm_num_groups: int = 8,
        dropout: float = 0.0,
        pool: Pool = "attention",
        time_embedding_channels: int | None = None,
        noise_schedule: dict | None = None,
        id2label: dict | None = None,
        latents: dict | None = None,
    ) -> None:
        super().__init__()
        check_arguments(NoisyClassifier, self.config)
        _check_config(self.config)
        if id2label is not None:
            self.register_to_config(id2label={str(number): name for number, name in id2label.items()})
        widths = block_out_channels
        t_channels = time_embedding_channels or widths[0]
        self.time_proj = Timesteps(t_channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(t_channels, 4 * t_channels)
        block: dict[str, Any] = {"temb_channels": 4 * t_channels, "dropout": dropout, "resnet_groups": norm_num_groups}
        block |= {"attention_head_dim": attention_head_dim, "resnet_time_scale_shift": "scale_shift"}
        block |= {"resnet_eps": NORM_EPS, "resnet_act_fn": "silu"}
        self.conv_in = nn.Conv2d(in_channels, widths[0], kernel_size=3, padding=1)
        self.down_blocks = _down_blocks(self.config, **block)
        self.mid_block = UNetMidBlock2D(widths[-1], attn_groups=norm_num_groups, **block)
        for layer in closing_layers(self):
            start_at_zero(layer)
        height, width = (side // side_unit(len(widths)) for side in size_pair(sample_size))
        self.head = make_pool(
            pool,
            channels=widths[-1],
            size=(height, width),
            stage_channels=widths[0] + (layers_per_block + 1) * sum(widths),  # the middle counts as a downsampler
            num_classes=num_classes,
            head_dim=attention_head_dim,
            num_groups=norm_num_groups,
        )

    @property
    def class_names(self) -> list[str]:
        """The names of the K classes; a class without a name has its number."""
        names = self.config["id2label"] or {}
        return [names.get(str(number), str(number)) for number in range(self.config["num_classes"])]

    def forward(
        self, sample: Tensor, timestep: Tensor | int, return_dict: bool = True
    ) -> NoisyClassifierOutput | tuple[Tensor]:
        """Compute the logits of noisy images.

        Args:
            sample: x_t, (B, C, H, W).
            timestep: t in 0 .. T-1, one number for all images or (B,).
            return_dict: Whether to return a `NoisyClassifierOutput` instead of a tuple of the logits (B, K).

        Raises:
            ValueError: If the images or the timesteps have the wrong shape.
        """
        check_shape("images", sample, ("B", self.config["in_channels"], *size_pair(self.config["sample_size"])))
        embedding = self.time_embedding(self.time_proj(each_timestep(timestep, sample)).to(sample.dtype))
        h = self.conv_in(sample)
        stages = [h]
        for block in self.down_blocks:
            h, outputs = block(h, embedding)
            stages += outputs
        h = self.mid_block(h, embedding)
        if self.config["pool"] in ("spatial", "spatial_v2"):
            h = torch.cat([stage.mean(dim=(2, 3)) for stage in (*stages, h)], dim=1)  # (B, stage_channels)
        logits = self.head(h)
        return NoisyClassifierOutput(logits=logits) if return_dict else (logits,)


def _down_blocks(config: Mapping[str, Any], **block: Any) -> nn.ModuleList:
    """Build the levels; every level but the last ends in a residual block that halves the image."""
    widths, types = config["block_out_channels"], config["down_block_types"]
    return nn.ModuleList(
        get_down_block(
            types[i],
            num_layers=config["layers_per_block"],
            in_channels=widths[max(i - 1, 0)],
            out_channels=widths[i],
            add_downsample=i < len(widths) - 1,
            downsample_type="resnet",
            **block,
        )
        for i in range(len(widths))
    )


def _check_config(config: Mapping[str, Any]) -> None:
    """Reject numbers that do not fit together."""
    size, widths, types = size_pair(config["sample_size"]), config["block_out_channels"], config["down_block_types"]
    one = ("in_channels", "layers_per_block", "attention_head_dim", "norm_num_groups")
    check_sizes(sample_size=size, block_out_channels=widths or (0,), **{key: config[key] for key in one})
    check_sizes(time_embedding_channels=config["time_embedding_channels"] or 1)
    if config["num_classes"] < 2:
        raise ValueError(f"num_classes={config['num_classes']} must be at least 2: one class leaves nothing to learn")
    if not 0 <= config["dropout"] < 1:
        raise ValueError(f"dropout={config['dropout']} must be a probability in [0, 1)")
    if len(types) != len(widths):
        raise ValueError(
            f"the length of block_out_channels is {len(widths)} and that of down_block_types is {len(types)}: both "
            "must have one entry for each level"
        )
    check_halving(size, len(widths))
    check_groups(widths, config["norm_num_groups"])
    attended = [width for width, kind in zip(widths, types, strict=True) if kind == "AttnDownBlock2D"]
    check_heads("attention_head_dim", config["attention_head_dim"], [*attended, widths[-1]])
    _check_keys("noise_schedule", config["noise_schedule"] or {}, SCHEDULE_KEYS)
    _check_keys("latents", config["latents"] or {}, LATENT_KEYS)
    _check_names(config["id2label"] or {}, config["num_classes"])


def _check_keys(name: str, given: Mapping[str, Any], allowed: Mapping[str, Any]) -> None:
    for key, value in given.items():
        if key not in allowed:
            raise ValueError(f"{name} has the unknown key {key!r}: use only {', '.join(allowed)}")
        if as_annotated(value, allowed[key]) is NotImplemented:
            raise ValueError(f"{name} has {key}={reprlib.repr(value)}, which must be {described(allowed[key])}")


def _check_names(names: Mapping[Any, Any], num_classes: int) -> None:
    numbers = [str(number) for number in range(num_classes)]
    for number, name in names.items():
        if str(number) not in numbers or not isinstance(name, str):
            raise ValueError(
                f"id2label has the name {name!r} for class {number!r}: the classes are 0 to {num_classes - 1}, and a "
                "name must be a string"
            )
