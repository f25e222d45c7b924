"""Checks of the configuration of a UNet: image sizes, levels, groups and heads."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers.models.unets.unet_2d import UNet2DModel

from hf_ddpm.errors import UserError, as_user_error, did_you_mean
from hf_ddpm.models.image_size import side_unit, size_pair
from hf_ddpm.models.vae_networks import check_levels

DOWN_BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
TIME_EMBEDDINGS = ("positional", "learned")  # "fourier" is for continuous times, and not finite at t = 0
UP_BLOCKS = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")


def check_image_size(model: UNet2DModel | Mapping[str, Any], height: int, width: int) -> None:
    """Reject an image size that the levels cannot halve without a remainder.

    Every level but the last halves the image, and the way up doubles it: an odd size would come back one pixel off and
    would not match the skip connection. So both sides must be multiples of 2**(levels - 1). They may differ.

    Args:
        model: The network, or its configuration with at least `block_out_channels`.
        height, width: The size of the images in pixels.

    Raises:
        UserError: If a side is not a positive multiple of 2**(levels - 1).
    """
    config = model if isinstance(model, Mapping) else model.config
    levels = len(config["block_out_channels"])
    multiple = side_unit(levels)
    sides = (height, width)
    if all(side > 0 and side % multiple == 0 for side in sides):
        return
    below = [max(side // multiple, 1) * multiple for side in sides]
    above = [max(-(-side // multiple), 1) * multiple for side in sides]
    sizes = dict.fromkeys(f"{h}x{w}" for h, w in (below, above))
    raise UserError(
        f"image size {height}x{width} does not fit this UNet: its {levels} levels halve it {levels - 1} time(s), so "
        f"height and width must be multiples of {multiple}; resize, crop or pad to {' or '.join(sizes)}"
    )


def check_sample_size(config: Mapping[str, Any]) -> None:
    """Reject a `sample_size` that is invalid or that the levels cannot halve; None is any size.

    Raises:
        UserError: If it is; the message names the allowed sizes.
    """
    if config["sample_size"] is None:
        return
    with as_user_error():
        height, width = size_pair(config["sample_size"])
    check_image_size(config, height, width)


def check_unet_levels(config: Mapping[str, Any]) -> None:
    """Reject widths and block types that are not one per level, or that are not supported."""
    channels, down, up = (config[k] for k in ("block_out_channels", "down_block_types", "up_block_types"))
    with as_user_error():
        check_levels(channels, down, up)
    for key, known in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
        for block in config[key]:
            if block not in known:
                raise UserError(f"{key} contains {block!r}; use one of {', '.join(known)}{did_you_mean(block, known)}")
    if not all(isinstance(width, int) and width > 0 for width in channels):
        raise UserError(f"block_out_channels must be positive whole numbers, not {channels!r}")


def check_time_embedding(config: Mapping[str, Any]) -> None:
    """Reject an unknown type of time embedding, and a table of time embeddings without a length.

    Raises:
        UserError: If the type is unknown, or the length is missing.
    """
    kind, rows = config["time_embedding_type"], config["num_train_timesteps"]
    if kind not in TIME_EMBEDDINGS:
        allowed = f"{', '.join(TIME_EMBEDDINGS)}{did_you_mean(kind, TIME_EMBEDDINGS)}"
        raise UserError(f"time_embedding_type={kind!r} must be one of {allowed}")
    if kind == "learned" and not (isinstance(rows, int) and rows > 0):
        raise UserError(
            f"num_train_timesteps={rows!r} must be the number of timesteps of the scheduler, because "
            "time_embedding_type='learned' is a table with one row for each"
        )


def check_divisors(config: Mapping[str, Any]) -> None:
    """Check that groups divide the channels of every level, and heads those of every level with attention."""
    channels = config["block_out_channels"]
    levels = [*zip(channels, config["down_block_types"], strict=True)]
    levels += zip(reversed(channels), config["up_block_types"], strict=True)
    attended = {width for width, block in levels if "Attn" in block}
    if config["mid_block_type"] is not None and config["add_attention"]:
        attended.add(channels[-1])
    t_before_norm = config["resnet_time_scale_shift"] == "default"
    _check_divides("norm_num_groups", config["norm_num_groups"], channels, refused=channels if t_before_norm else ())
    if config["attn_norm_num_groups"] is not None:
        _check_divides("attn_norm_num_groups", config["attn_norm_num_groups"], channels[-1:])
    if attended and config["attention_head_dim"] is not None:
        _check_divides("attention_head_dim", config["attention_head_dim"], sorted(attended))
    if t_before_norm and config["norm_num_groups"] in channels:
        # the shift that t adds to a channel is constant over the image, so a norm over this channel alone subtracts it
        groups = config["norm_num_groups"]
        raise UserError(
            f"norm_num_groups={groups} normalises each channel of the level with {groups} channels separately, which "
            "cancels the time embedding added to them; use fewer groups or more channels"
        )


def _check_divides(key: str, divisor: Any, widths: Sequence[int], refused: Sequence[int] = ()) -> None:
    if isinstance(divisor, int) and divisor > 0 and all(width % divisor == 0 for width in widths):
        return
    allowed = [d for d in range(1, min(widths) + 1) if d not in refused and all(width % d == 0 for width in widths)]
    remedy = f"use one of {', '.join(map(str, allowed))}, or other channels" if allowed else "use other channels"
    raise UserError(
        f"{key}={divisor} does not divide the channels {', '.join(map(str, widths))} of block_out_channels; {remedy}"
    )
