"""Presets of the two networks of denoising diffusion GANs; a generator and its discriminator have the same name.

Source: arXiv 2112.07804, appendix C, and the settings that were published for its results.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from hf_ddpm.models.ddgan_discriminator import DDGANDiscriminator
from hf_ddpm.models.ddgan_generator import DDGANGenerator
from hf_ddpm.models.presets import NetworkPreset, build_preset, preset

_PAPER: dict[str, Any] = {"in_channels": 3, "patch_size": 1}
_OF_256: dict[str, Any] = {
    **_PAPER,
    "sample_size": 256,
    "block_out_channels": (64, 64, 128, 128, 256, 256),
    "layers_per_block": 2,
    "attention_resolutions": (16,),
    "mapping_channels": 256,
    "mapping_layers": 4,
}

GENERATOR_PRESETS: Mapping[str, NetworkPreset] = MappingProxyType(
    {
        "tiny": preset(
            15_216,
            "for tests: 8x8 grey images; no paper's row",
            sample_size=8,
            block_out_channels=(4, 8),
            attention_resolutions=(2,),
            norm_num_groups=2,
            patch_size=2,
            latent_dim=4,
            mapping_channels=8,
            mapping_layers=2,
        ),
        "mnist": preset(243_248, "28x28 handwritten digits on a laptop, in patches of 4x4; no paper's row"),
        "cifar10": preset(
            48_431_491,
            "CIFAR-10 32x32 of DDGAN, attention at 16x16",
            **_PAPER,
            sample_size=32,
            block_out_channels=(128, 256, 256, 256),
            layers_per_block=2,
            attention_resolutions=(16,),
            mapping_channels=256,
            mapping_layers=5,
        ),
        "celebahq-256": preset(39_725_955, "CelebA-HQ 256x256 of DDGAN, attention at 16x16", **_OF_256),
        "church-256": preset(39_725_955, "LSUN church 256x256 of DDGAN, attention at 16x16", **_OF_256),
    }
)
_LARGE: dict[str, Any] = {
    **_PAPER,
    "sample_size": 256,
    "block_out_channels": (128, 256, 512, 512, 512, 512, 512),
    "down_blocks": (True,) * 6,
}
DISCRIMINATOR_PRESETS: Mapping[str, NetworkPreset] = MappingProxyType(
    {
        "tiny": preset(
            1_797,
            "for tests: 8x8 grey images; no paper's row",
            sample_size=8,
            block_out_channels=(4, 8),
            down_blocks=(True,),
            patch_size=2,
        ),
        "mnist": preset(586_001, "28x28 handwritten digits on a laptop, in patches of 4x4; no paper's row"),
        "cifar10": preset(
            12_708_865,
            "the small discriminator of DDGAN, for CIFAR-10 32x32",
            **_PAPER,
            sample_size=32,
            block_out_channels=(128, 128, 256, 512, 512),
            down_blocks=(False, True, True, True),
        ),
        "celebahq-256": preset(27_704_449, "the large discriminator of DDGAN, for CelebA-HQ 256x256", **_LARGE),
        "church-256": preset(27_704_449, "the large discriminator of DDGAN, for LSUN church 256x256", **_LARGE),
    }
)


def generator_preset(name: str, **overrides: Any) -> DDGANGenerator:
    """Build a generator with the unit gain of NCSN++, but without its zero layers, so that z has an effect at once.

    The weights are drawn from torch's global generator. Under `torch.device("meta")` nothing is drawn or allocated.

    Args:
        name: A key of `GENERATOR_PRESETS`.
        overrides: Keywords of `DDGANGenerator` that replace those of the preset; lists, as in YAML, become tuples.

    Raises:
        UserError: If the name or a keyword is unknown, or `DDGANGenerator` raises a `ValueError`.
    """
    return build_preset(DDGANGenerator, "generator", GENERATOR_PRESETS, name, overrides)


def discriminator_preset(name: str, **overrides: Any) -> DDGANDiscriminator:
    """Build a discriminator, in the same way as `generator_preset` builds a generator.

    Args:
        name: A key of `DISCRIMINATOR_PRESETS`.
        overrides: Keywords of `DDGANDiscriminator` that replace those of the preset.

    Raises:
        UserError: If the name or a keyword is unknown, or `DDGANDiscriminator` raises a `ValueError`.
    """
    return build_preset(DDGANDiscriminator, "discriminator", DISCRIMINATOR_PRESETS, name, overrides)
