"""The two networks of denoising diffusion GANs as presets, each a pair under one name.

Source: arXiv 2112.07804, appendix C, and the settings that were published for its figures.
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
            "the small one of DDGAN, for CIFAR-10 32x32",
            **_PAPER,
            sample_size=32,
            block_out_channels=(128, 128, 256, 512, 512),
            down_blocks=(False, True, True, True),
        ),
        "celebahq-256": preset(27_704_449, "the large one of DDGAN, for CelebA-HQ 256x256", **_LARGE),
        "church-256": preset(27_704_449, "the large one of DDGAN, for LSUN church 256x256", **_LARGE),
    }
)


def generator_preset(name: str, **overrides: Any) -> DDGANGenerator:
    """Build a generator with NCSN++'s unit gain; the layers that begin at zero there do not, so that z counts at once.

    The weights are drawn from torch's global generator. Under `torch.device("meta")` nothing is drawn or allocated.

    Args:
        name: a key of `GENERATOR_PRESETS`.
        overrides: keywords of `DDGANGenerator` that replace the preset's; lists, as YAML has them, become tuples.

    Raises:
        UserError: unknown name or keyword, or what `DDGANGenerator` refuses.
    """
    return build_preset(DDGANGenerator, "generator", GENERATOR_PRESETS, name, overrides)


def discriminator_preset(name: str, **overrides: Any) -> DDGANDiscriminator:
    """Build a discriminator, as `generator_preset` does a generator.

    Args:
        name: a key of `DISCRIMINATOR_PRESETS`.
        overrides: keywords of `DDGANDiscriminator`.

    Raises:
        UserError: unknown name or keyword, or what `DDGANDiscriminator` refuses.
    """
    return build_preset(DDGANDiscriminator, "discriminator", DISCRIMINATOR_PRESETS, name, overrides)
