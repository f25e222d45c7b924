"""Tables of time embeddings, with which a network receives rescaled timesteps."""

from typing import Any

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import nn


@torch.no_grad()
def fill_with_sinusoids(table: nn.Embedding, *, flip_sin_to_cos: bool, freq_shift: float) -> None:
    """Embed t as the sinusoids of 1000 t / T, in place, and do not train the table of T rows.

    These are the rescaled timesteps of Improved DDPM (Nichol & Dhariwal 2021, arXiv 2102.09672), whose networks with
    T = 4000 receive t / 4.

    Args:
        table: The table, T rows of D numbers.
        flip_sin_to_cos, freq_shift: As in a network whose `time_embedding_type` is "positional".
    """
    weight: Any = table.weight
    num_timesteps, width = weight.shape
    t = torch.arange(num_timesteps, device=weight.device) * (1000 / num_timesteps)
    weight.copy_(get_timestep_embedding(t, width, flip_sin_to_cos=flip_sin_to_cos, downscale_freq_shift=freq_shift))
    weight.requires_grad_(False)


def table_of_sinusoids(num_timesteps: int, channels: int) -> nn.Embedding:
    """Return such a table for the T timesteps of a network of Improved DDPM or ADM."""
    table = nn.Embedding(num_timesteps, channels)
    fill_with_sinusoids(table, flip_sin_to_cos=True, freq_shift=0)
    return table
