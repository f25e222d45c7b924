"""The networks and schedulers of hf_ddpm and diffusers that the flags of OpenAI's scripts stand for."""

from typing import Any

from hf_ddpm.conversion.openai_flags import Flags
from hf_ddpm.errors import UserError

NUM_GROUPS = 32


def network_keywords(flags: Flags, *, num_classes: int | None, channels: int = 3) -> tuple[str, dict[str, Any]]:
    """Return the class of the network and its keywords: `UNet2DModel` where it suffices, else `ADMUNet`.

    Raises:
        UserError: If neither can hold the network.
    """
    attended = {width for width, there in zip(flags.widths, flags.attention, strict=True) if there}
    attended.add(flags.widths[-1])  # of the middle
    key = "num_heads" if flags.num_head_channels == -1 else "num_head_channels"
    if any(width % getattr(flags, key) for width in attended):
        shown = ", ".join(map(str, sorted(attended)))
        raise UserError(f"--{key} {getattr(flags, key)} must divide the widths of levels with attention, {shown}")
    dims = {_head_dim(flags, width) for width in attended}
    one_head = flags.num_head_channels == -1 and flags.num_heads == 1
    suits = (len(dims) == 1 or one_head) and flags.widths[0] == flags.num_channels and not flags.is_upsampler
    plain = "ResnetDownsampleBlock2D" if flags.resblock_updown else "DownBlock2D"
    down = ["AttnDownBlock2D" if there else plain for there in flags.attention]
    keywords: dict[str, Any] = {
        "sample_size": flags.size,
        "in_channels": channels,
        "out_channels": channels * (2 if flags.learn_sigma else 1),
        "block_out_channels": flags.widths,
        "layers_per_block": flags.num_res_blocks,
        "down_block_types": tuple(down),
        "up_block_types": tuple(block.replace("Down", "Up") for block in down[::-1]),
        "dropout": flags.dropout,
        "norm_num_groups": NUM_GROUPS,
        "num_class_embeds": num_classes,
    }
    resampling = "resnet" if flags.resblock_updown else "conv"
    keywords |= {"downsample_type": resampling, "upsample_type": resampling}
    if flags.rescale_timesteps and flags.diffusion_steps != 1000:
        keywords |= {"time_embedding_type": "learned", "num_train_timesteps": flags.diffusion_steps}
    if suits:
        shift = "scale_shift" if flags.use_scale_shift_norm else "default"
        heads = None if one_head else dims.pop()
        keywords |= {"attention_head_dim": heads, "resnet_time_scale_shift": shift, "norm_eps": 1e-5}
        return "UNet2DModel", keywords | {"attn_norm_num_groups": NUM_GROUPS, "freq_shift": 0, "flip_sin_to_cos": True}
    if not flags.use_scale_shift_norm:
        raise UserError(
            "--use_scale_shift_norm False is only supported with one head, or heads of one width, and without an "
            "upsampler"
        )
    by_width = flags.num_head_channels != -1
    keywords |= {"num_heads": None if by_width else flags.num_heads, "time_embedding_channels": flags.num_channels}
    keywords |= {"attention_head_dim": flags.num_head_channels if by_width else None}
    return "ADMUNet", keywords | {"low_res_channels": channels if flags.is_upsampler else 0}


def classifier_keywords(flags: Flags, *, num_classes: int, pool: str, channels: int = 3) -> dict[str, Any]:
    """Return the keywords of `NoisyClassifier`.

    Raises:
        UserError: If it cannot hold the network.
    """
    if not (flags.use_scale_shift_norm and flags.resblock_updown) or flags.num_head_channels == -1:
        raise UserError(
            "a classifier is only supported with --classifier_use_scale_shift_norm True, --classifier_resblock_updown "
            "True and --num_head_channels, as in all published ones"
        )
    return {
        "sample_size": flags.size,
        "in_channels": channels,
        "num_classes": num_classes,
        "block_out_channels": flags.widths,
        "layers_per_block": flags.num_res_blocks,
        "down_block_types": tuple(
            "AttnDownBlock2D" if there else "ResnetDownsampleBlock2D" for there in flags.attention
        ),
        "attention_head_dim": flags.num_head_channels,
        "norm_num_groups": NUM_GROUPS,
        "pool": pool,
        "time_embedding_channels": None if flags.widths[0] == flags.num_channels else flags.num_channels,
    }


def scheduler_keywords(flags: Flags) -> dict[str, Any]:
    """Return the keywords of `HFDDPMScheduler`, with which the network samples as its authors do.

    Raises:
        UserError: If the schedule is unknown.
    """
    if flags.noise_schedule not in ("linear", "cosine"):
        raise UserError(f"--noise_schedule {flags.noise_schedule} must be linear or cosine")
    keywords: dict[str, Any] = {"num_train_timesteps": flags.diffusion_steps, "beta_schedule": flags.noise_schedule}
    if flags.noise_schedule == "linear":  # the same noise for every T
        scale = 1000 / flags.diffusion_steps
        keywords |= {"beta_start": 1e-4 * scale, "beta_end": 0.02 * scale}
    fixed = "fixed_small" if flags.sigma_small else "fixed_large"
    keywords["variance_type"] = "learned_range" if flags.learn_sigma else fixed
    keywords["prediction_type"] = "sample" if flags.predict_xstart else "epsilon"
    return keywords | {"clip_sample": True, "clip_after_guidance": False}


def _head_dim(flags: Flags, width: int) -> int:
    return flags.num_head_channels if flags.num_head_channels != -1 else width // flags.num_heads
