"""Poolings from the features of an encoder to logits: the four of ADM's classifiers (arXiv 2105.05233, sec. 4).

The attention pool is that of CLIP's image encoder (Radford et al. 2021, arXiv 2103.00020, sec. 2.4).
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from hf_ddpm.models.closing_layers import start_at_zero

Pool = Literal["adaptive", "attention", "spatial", "spatial_v2"]
HIDDEN, HIDDEN_GROUPS = 2048, 32  # of the two spatial poolings
MOST_POSITIONS = 2**14  # the limit of an attention pool, 128x128; the published classifiers have 8x8
NORM_EPS = 1e-5


class AttentionPool(nn.Module):
    """Attention from one token, the mean of all tokens, to all tokens; its output is projected to the logits.

    Every position of the image is a token, and each token has a learned positional embedding.

    Args:
        channels: C, the width of a token.
        size: (h, w) of the features.
        num_classes: K.
        head_dim: The number of channels per head, which must divide C.

    Raises:
        ValueError: If there are more than `MOST_POSITIONS` positions.
    """

    def __init__(self, channels: int, size: tuple[int, int], num_classes: int, head_dim: int) -> None:
        super().__init__()
        positions = size[0] * size[1]
        if positions > MOST_POSITIONS:
            raise ValueError(
                f"an attention pool over {size[0]}x{size[1]} positions exceeds the limit of {MOST_POSITIONS}: use more "
                "levels in block_out_channels, or pool='adaptive'"
            )
        self.heads = channels // head_dim
        self.positional_embedding = nn.Parameter(torch.randn(channels, positions + 1) / channels**0.5)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits (B, K) of features (B, C, h, w)."""
        tokens = features.flatten(2)  # (B, C, hw)
        tokens = torch.cat([tokens.mean(dim=2, keepdim=True), tokens], dim=2) + self.positional_embedding
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, hw + 1, C / heads)
            for part in self.qkv(tokens.mT).chunk(3, dim=2)
        )
        first = scaled_dot_product_attention(q[:, :, :1], k, v)  # (B, heads, 1, C / heads)
        return self.out(first.flatten(1))


def make_pool(
    pool: Pool,
    *,
    channels: int,
    size: tuple[int, int],
    stage_channels: int,
    num_classes: int,
    head_dim: int,
    num_groups: int,
) -> nn.Sequential:
    """Build a pooling and the layer that returns the logits.

    Args:
        pool: `adaptive` and `attention` use the last features (B, C, h, w); `spatial` and `spatial_v2` use the
            concatenated spatial means of the outputs of all stages, (B, stage_channels).
        channels: C.
        size: (h, w).
        stage_channels: The sum of all stages' channels.
        num_classes: K.
        head_dim: The number of channels per head of `attention`.
        num_groups: The number of groups of the norm in `adaptive` and `attention`.

    Returns:
        nn.Sequential: The layers, which return logits (B, K).
    """
    match pool:
        case "adaptive":
            out = nn.Conv2d(channels, num_classes, kernel_size=1)
            start_at_zero(out)
            return nn.Sequential(*_norm_silu(channels, num_groups), nn.AdaptiveAvgPool2d(1), out, nn.Flatten())
        case "attention":
            attention = AttentionPool(channels, size, num_classes, head_dim)
            return nn.Sequential(*_norm_silu(channels, num_groups), attention)
        case "spatial":
            return nn.Sequential(nn.Linear(stage_channels, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, num_classes))
        case "spatial_v2":
            hidden = nn.Linear(stage_channels, HIDDEN), *_norm_silu(HIDDEN, HIDDEN_GROUPS)
            return nn.Sequential(*hidden, nn.Linear(HIDDEN, num_classes))


def _norm_silu(channels: int, groups: int) -> tuple[nn.Module, nn.Module]:
    return nn.GroupNorm(groups, channels, eps=NORM_EPS), nn.SiLU()
