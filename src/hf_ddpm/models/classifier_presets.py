"""Presets of noisy classifiers: keywords of `NoisyClassifier`.

Sources: ADM, arXiv 2105.05233, appendix I, and the configurations that the authors released with their code.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from hf_ddpm.models.noisy_classifier import NoisyClassifier
from hf_ddpm.models.presets import NetworkPreset, build_preset, preset


def _levels(base: int, multipliers: tuple[float, ...], attention: tuple[int, ...]) -> dict[str, Any]:
    """Return widths and block types; level i is 2**i times smaller than the image."""
    levels = range(len(multipliers))
    return {
        "block_out_channels": tuple(int(base * m) for m in multipliers),
        "down_block_types": tuple("AttnDownBlock2D" if i in attention else "ResnetDownsampleBlock2D" for i in levels),
    }


_ADM: dict[str, Any] = {
    "in_channels": 3,
    "num_classes": 1000,
    "layers_per_block": 2,
    "attention_head_dim": 64,
    "norm_num_groups": 32,
    "pool": "attention",
}

CLASSIFIER_PRESETS: Mapping[str, NetworkPreset] = MappingProxyType(
    {
        "tiny": preset(
            6_514,
            "for tests: 8x8 grey images in 10 classes, attention at 4x4; no paper's row",
            **_levels(4, (1, 2), (1,)),
            sample_size=8,
            attention_head_dim=4,
            norm_num_groups=2,
        ),
        "mnist": preset(
            341_354,
            "28x28 handwritten digits on a laptop, attention at 7x7; no paper's row",
            **_levels(16, (1, 2, 4), (2,)),
            sample_size=28,
            attention_head_dim=16,
            norm_num_groups=8,
        ),
        "cifar10": preset(
            4_339_210,
            "CIFAR-10 32x32, attention at 16x16 and 8x8, ADM's blocks; no paper's row",
            **_levels(64, (1, 2, 2, 2), (1, 2)),
            **{**_ADM, "num_classes": 10},
            sample_size=32,
        ),
        "adm-classifier-64": preset(
            65_438_568,
            "ImageNet 64x64 of ADM (Dhariwal and Nichol 2021), attention at 32, 16 and 8",
            **_levels(128, (1, 2, 3, 4), (1, 2, 3)),
            **{**_ADM, "layers_per_block": 4},
            sample_size=64,
        ),
        "adm-classifier-128": preset(
            42_568_040,
            "ImageNet 128x128 of ADM (Dhariwal and Nichol 2021), attention at 32, 16 and 8",
            **_levels(128, (1, 1, 2, 3, 4), (2, 3, 4)),
            **_ADM,
            sample_size=128,
        ),
        "adm-classifier-256": preset(
            54_096_360,
            "ImageNet 256x256 of ADM (Dhariwal and Nichol 2021), attention at 32, 16 and 8",
            **_levels(128, (1, 1, 2, 2, 4, 4), (3, 4, 5)),
            **_ADM,
            sample_size=256,
        ),
        "adm-classifier-512": preset(
            54_448_360,
            "ImageNet 512x512 of ADM (Dhariwal and Nichol 2021), attention at 32, 16 and 8",
            **_levels(128, (0.5, 1, 1, 2, 2, 4, 4), (4, 5, 6)),
            **_ADM,
            sample_size=512,
            time_embedding_channels=128,
        ),
    }
)


def classifier_preset(name: str, **overrides: Any) -> NoisyClassifier:
    """Build a classifier with ADM's initialisation: residual branches start at zero, the rest is PyTorch's default.

    The weights are drawn from torch's global generator. Under `torch.device("meta")` nothing is drawn or allocated.

    Args:
        name: A key of `CLASSIFIER_PRESETS`.
        overrides: Keywords of `NoisyClassifier` that replace those of the preset; lists, as in YAML, become tuples.

    Returns:
        NoisyClassifier: The classifier, in training mode.

    Raises:
        UserError: If the name or a keyword is unknown, or `NoisyClassifier` raises a `ValueError`.
    """
    return build_preset(NoisyClassifier, "classifier", CLASSIFIER_PRESETS, name, overrides)
