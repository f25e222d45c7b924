"""From the last features of an encoder to logits: the four poolings of ADM's classifiers (arXiv 2105.05233, sec. 4).

The attention pool is that of CLIP's image encoder (Radford et al. 2021, arXiv 2103.00020, sec. 2.4).
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from hf_ddpm.models.closing_layers import start_at_zero

Pool = Literal["adaptive", "attention", "spatial", "spatial_v2"]
HIDDEN, HIDDEN_GROUPS = 2048, 32  # of the two spatial poolings
MOST_POSITIONS = 2**14  # of an attention pool, 128x128; the published classifiers have 8x8
NORM_EPS = 1e-5


class AttentionPool(nn.Module):
    """One token, the mean of all, asks all tokens by attention; what it is told is projected to the logits.

    Every position of the image is a token, and each token has a learned positional embedding.

    Args:
        channels: C, the width of a token.
        size: (h, w) of the features.
        num_classes: K.
        head_dim: channels of a head, which divide C.

    Raises:
        ValueError: more positions than an embedding should hold.
    """

    def __init__(self, channels: int, size: tuple[int, int], num_classes: int, head_dim: int) -> None:
        super().__init__()
        positions = size[0] * size[1]
        if positions > MOST_POSITIONS:
            raise ValueError(
                f"an attention pool over {size[0]}x{size[1]} positions is more than {MOST_POSITIONS}: take more levels "
                "in block_out_channels, or pool='adaptive'"
            )
        self.heads = channels // head_dim
        self.positional_embedding = nn.Parameter(torch.randn(channels, positions + 1) / channels**0.5)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, K) of features (B, C, h, w)."""
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
    """A pooling and the layer that gives logits.

    Args:
        pool: `adaptive` and `attention` see the last features (B, C, h, w); `spatial` and `spatial_v2` the spatial
            means of all stages' outputs, beside each other, (B, stage_channels).
        channels: C.
        size: (h, w).
        stage_channels: the sum of all stages' channels.
        num_classes: K.
        head_dim, num_groups: of the attention's heads and of the norm before it.

    Returns:
        nn.Sequential: to logits (B, K).
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
