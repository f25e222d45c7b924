"""Presets of the UNets of the DDPM family: a configuration of `UNet2DModel` and the paper's initialisation.

A preset consists only of constructor keywords and the name of an initialisation. Where diffusers' `UNet2DModel` can
hold the network, `unet_preset` returns a stock model: `save_pretrained` saves it, and plain diffusers loads it. The
others are `ADMUNet`s. docs/unet.md describes how t enters the network and what the skip connections carry, docs/adm.md
what the parts of ADM's networks are and cost.

Sources: DDPM, arXiv 2006.11239, appendix B; DDIM, arXiv 2010.02502, appendix D; Improved DDPM, arXiv 2102.09672,
appendix A; ADM (guided diffusion), arXiv 2105.05233, section 3 and appendix I; and the configurations that the authors
released with their code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from diffusers.models.unets.unet_2d import UNet2DModel

from hf_ddpm.errors import UserError, as_user_error, did_you_mean
from hf_ddpm.models.adm_unet import ADMUNet
from hf_ddpm.models.unet_checks import check_divisors, check_sample_size, check_time_embedding, check_unet_levels
from hf_ddpm.models.unet_init import Init, init_unet
from hf_ddpm.schedulers.annotations import parameters_of


@dataclass(frozen=True)
class UNetPreset:
    """One row of a paper's table of architectures.

    Attributes:
        config: The keywords of `network`. Read-only: `unet_preset(name, **overrides)` builds variants.
        init: The initialisation of a `UNet2DModel`, see `init_unet`; an `ADMUNet` always has the one of its papers.
        parameters: The number of weights without overrides; a test counts them.
        about: The model, its data and its paper in one line.
        network: The class of the network.
    """

    config: Mapping[str, Any]
    init: Init
    parameters: int
    about: str
    network: type[UNet2DModel] | type[ADMUNet] = UNet2DModel


def _levels(count: int, attention: tuple[int, ...], down: str, up: str) -> dict[str, Any]:
    """Return the block types of `count` levels; level 0 has the image's size, level i is 2**i times smaller."""
    return {
        "down_block_types": tuple("AttnDownBlock2D" if i in attention else down for i in range(count)),
        "up_block_types": tuple("AttnUpBlock2D" if i in attention else up for i in reversed(range(count))),
    }


def _conv_levels(count: int, attention: tuple[int, ...]) -> dict[str, Any]:
    """Return levels joined by a strided convolution downwards, by nearest neighbour and a convolution upwards."""
    return _levels(count, attention, "DownBlock2D", "UpBlock2D")


def _resnet_levels(count: int, attention: tuple[int, ...]) -> dict[str, Any]:
    """Return levels joined by residual blocks that resample inside (ADM, after BigGAN). `DownBlock2D` has none."""
    blocks = _levels(count, attention, "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
    return {**blocks, "downsample_type": "resnet", "upsample_type": "resnet"}


def _channels(base: int, *multipliers: int) -> dict[str, Any]:
    return {"block_out_channels": tuple(base * m for m in multipliers)}


# The configuration of google/ddpm-cifar10-32 and google/ddpm-celebahq-256; each preset adds the paper's dropout.
_DDPM: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "attention_head_dim": None,  # one head, as wide as its level
    "downsample_padding": 0,  # TensorFlow's SAME: one row and one column of zeros, right and below
    "flip_sin_to_cos": False,
    "freq_shift": 1,  # the slowest frequency is exactly 1/10000
    "norm_num_groups": 32,
    "norm_eps": 1e-6,
}

# Improved DDPM and ADM: scale and shift after the norm, 64 channels per head, 2C outputs (prediction and variance).
_OPENAI: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 6,
    "layers_per_block": 3,
    "attention_head_dim": 64,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "norm_num_groups": 32,
    "attn_norm_num_groups": 32,  # without it `scale_shift` leaves the middle attention without its norm
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "scale_shift",
}

_SMALL: dict[str, Any] = {
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "norm_eps": 1e-5,
}


def _preset(init: Init, parameters: int, about: str, *blocks: Mapping[str, Any], **keywords: Any) -> UNetPreset:
    config: dict[str, Any] = {}
    for block in (*blocks, keywords):
        config.update(block)
    return UNetPreset(MappingProxyType(config), init, parameters, about)


def _adm_preset(parameters: int, about: str, *blocks: Mapping[str, Any], **keywords: Any) -> UNetPreset:
    """Create a preset of an `ADMUNet`."""
    return replace(_preset("pytorch", parameters, about, *blocks, **keywords), network=ADMUNet)


_IDDPM_64: dict[str, Any] = {
    **_conv_levels(4, (2, 3)),
    "downsample_type": "conv",
    "upsample_type": "conv",
    "layers_per_block": 3,
    "sample_size": 64,
    "dropout": 0.0,
}
_ADM_256 = {**_OPENAI, **_channels(256, 1, 1, 2, 2, 4, 4), **_resnet_levels(6, (3, 4, 5)), "layers_per_block": 2}

UNET_PRESETS: Mapping[str, UNetPreset] = MappingProxyType(
    {
        "tiny": _preset(
            "pytorch",
            11_621,
            "for tests: 8x8 grey images, attention at 4x4; no paper's row",
            {**_SMALL, **_channels(4, 1, 2), **_conv_levels(2, (1,))},
            sample_size=8,
            attention_head_dim=4,
            norm_num_groups=2,
        ),
        "mnist": _preset(
            "pytorch",
            507_961,
            "the default job: 28x28 handwritten digits on a laptop, attention in the middle alone; no paper's row",
            {**_SMALL, **_channels(8, 1, 2, 8), **_conv_levels(3, ())},
            sample_size=28,
            attention_head_dim=None,
            norm_num_groups=4,
        ),
        "ddpm-cifar10": _preset(
            "fan_avg",
            35_746_307,
            "CIFAR-10 32x32 of DDPM (Ho et al. 2020), attention at 16x16",
            {**_DDPM, **_channels(128, 1, 2, 2, 2), **_conv_levels(4, (1,))},
            sample_size=32,
            dropout=0.1,
        ),
        "ddpm-256": _preset(
            "fan_avg",
            113_673_219,
            "LSUN and CelebA-HQ 256x256 of DDPM (Ho et al. 2020), attention at 16x16",
            {**_DDPM, **_channels(128, 1, 1, 2, 2, 4, 4), **_conv_levels(6, (4,))},
            sample_size=256,
            dropout=0.0,
        ),
        "ddim-celeba64": _preset(
            "fan_avg",
            78_700_803,
            "CelebA 64x64 of DDIM (Song et al. 2020), attention at 16x16",
            {**_DDPM, **_channels(128, 1, 2, 2, 2, 4), **_conv_levels(5, (2,))},
            sample_size=64,
            dropout=0.1,
        ),
        "iddpm-cifar10": _preset(
            "pytorch",
            52_546_438,
            "CIFAR-10 32x32 of Improved DDPM (Nichol and Dhariwal 2021), cosine schedule, attention at 16x16 and 8x8",
            {**_OPENAI, **_channels(128, 1, 2, 2, 2), **_conv_levels(4, (1, 2))},
            sample_size=32,
            dropout=0.3,  # 0.1 with the linear schedule
        ),
        "adm-64": _preset(
            "pytorch",
            295_904_454,
            "ImageNet 64x64 of ADM (Dhariwal and Nichol 2021), class-conditional, attention at 32, 16 and 8",
            {**_OPENAI, **_channels(192, 1, 2, 3, 4), **_resnet_levels(4, (1, 2, 3))},
            sample_size=64,
            dropout=0.1,
            num_class_embeds=1000,
        ),
        "adm-256": _preset(
            "pytorch",
            553_838_086,
            "ImageNet 256x256 of ADM (Dhariwal and Nichol 2021), class-conditional, attention at 32, 16 and 8",
            _ADM_256,
            sample_size=256,
            dropout=0.0,
            num_class_embeds=1000,
        ),
        "adm-lsun-256": _preset(
            "pytorch",
            552_814_086,
            "LSUN 256x256 of ADM (Dhariwal and Nichol 2021), attention at 32, 16 and 8",
            _ADM_256,
            sample_size=256,
            dropout=0.1,
        ),
        "iddpm-lsun-256": _preset(
            "pytorch",
            113_676_678,
            "LSUN 256x256 of Improved DDPM (Nichol and Dhariwal 2021), one head, attention at 16x16",
            {**_OPENAI, **_channels(128, 1, 1, 2, 2, 4, 4), **_conv_levels(6, (4,))},
            sample_size=256,
            dropout=0.0,
            layers_per_block=2,
            attention_head_dim=None,
            resnet_time_scale_shift="default",
        ),
        "iddpm-imagenet-64": _adm_preset(
            121_063_942,
            "ImageNet 64x64 of Improved DDPM (Nichol and Dhariwal 2021), four heads, attention at 16x16 and 8x8",
            {**_IDDPM_64, **_channels(128, 1, 2, 3, 4)},
        ),
        "iddpm-imagenet-64-conditional": _adm_preset(
            273_049_350,
            "the class-conditional ImageNet 64x64 of Improved DDPM (Nichol and Dhariwal 2021), four heads",
            {**_IDDPM_64, **_channels(192, 1, 2, 3, 4)},
            num_class_embeds=1000,
        ),
        "adm-128": _adm_preset(
            421_529_606,
            "ImageNet 128x128 of ADM (Dhariwal and Nichol 2021), class-conditional, four heads at 32, 16 and 8",
            {**_channels(256, 1, 1, 2, 3, 4), **_resnet_levels(5, (2, 3, 4))},
            sample_size=128,
            dropout=0.0,
            num_class_embeds=1000,
        ),
        "adm-512": _adm_preset(
            558_997_638,
            "ImageNet 512x512 of ADM (Dhariwal and Nichol 2021), class-conditional, attention at 32, 16 and 8",
            {**_channels(128, 1, 2, 2, 4, 4, 8, 8), **_resnet_levels(7, (4, 5, 6))},
            sample_size=512,
            dropout=0.0,
            num_heads=None,
            attention_head_dim=64,
            time_embedding_channels=256,
            num_class_embeds=1000,
        ),
        "upsampler-64-256": _adm_preset(
            311_795_910,
            "the upsampler of ADM (Dhariwal and Nichol 2021) from 64x64 to 256x256, class-conditional, four heads",
            {**_channels(192, 1, 1, 2, 2, 4, 4), **_resnet_levels(6, (3, 4, 5))},
            sample_size=256,
            dropout=0.0,
            num_class_embeds=1000,
            low_res_channels=3,
        ),
        "upsampler-128-512": _adm_preset(
            308_835_270,
            "the upsampler of ADM (Dhariwal and Nichol 2021) from 128x128 to 512x512, class-conditional",
            {**_channels(192, 1, 1, 2, 2, 4, 4), **_resnet_levels(6, (4, 5))},
            sample_size=512,
            dropout=0.0,
            num_heads=None,
            attention_head_dim=64,
            num_class_embeds=1000,
            low_res_channels=3,
        ),
    }
)


def unet_preset(name: str, **overrides: Any) -> UNet2DModel | ADMUNet:
    """Build the UNet of a paper, with the paper's initialisation.

    Two keywords follow others unless they are passed too: `out_channels` keeps its ratio to `in_channels` (C, or 2C if
    the preset learns the variance), and `attn_norm_num_groups` is set to `norm_num_groups`.

    The weights are drawn from torch's global generator, as in diffusers' constructor: `torch.manual_seed` before the
    call makes them reproducible. Under `torch.device("meta")` nothing is drawn or allocated.

    Args:
        name: A key of `UNET_PRESETS`.
        overrides: Keywords of the network that replace those of the preset. `sample_size` is an int or (height,
            width); lists, as in YAML, become tuples.

    Returns:
        The network in training mode, a `UNet2DModel` unless only an `ADMUNet` can hold it: (B, in_channels, H, W) and
        t of shape (B,) -> (B, out_channels, H, W).

    Raises:
        UserError: If the name or a keyword is unknown, the levels do not match, groups or heads do not divide the
            channels, the levels cannot halve `sample_size`, or a group has one channel (which cancels an added
            embedding of t).
    """
    if name not in UNET_PRESETS:
        raise UserError(
            f"there is no UNet preset {name!r}; use one of {', '.join(UNET_PRESETS)}{did_you_mean(name, UNET_PRESETS)}"
        )
    preset = UNET_PRESETS[name]
    config = _override(preset, overrides)
    if preset.network is ADMUNet:
        with as_user_error():
            return ADMUNet(**config)
    if not 0 <= config["dropout"] < 1:
        raise UserError(f"dropout={config['dropout']} must be a probability in [0, 1)")
    check_unet_levels(config)
    check_divisors(config)
    check_sample_size(config)
    check_time_embedding(config)
    model = UNet2DModel(**config)
    init_unet(model, preset.init)
    return model


def _override(preset: UNetPreset, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return all keywords of the network: its defaults, overridden by the preset's, then by the user's."""
    network: Any = preset.network
    config, known = preset.config, {key: parameter.default for key, parameter in parameters_of(network).items()}
    for key in overrides:
        if key not in known:
            name = preset.network.__name__
            raise UserError(f"{name} has no keyword {key!r}; it has {', '.join(known)}{did_you_mean(key, known)}")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in overrides.items()}
    merged = {**known, **config, **given}
    if "out_channels" not in given:
        ratio = {**known, **config}["out_channels"] // {**known, **config}["in_channels"]
        merged["out_channels"] = ratio * merged["in_channels"]
    if "attn_norm_num_groups" not in given and "attn_norm_num_groups" in config:
        merged["attn_norm_num_groups"] = merged["norm_num_groups"]
    return merged
