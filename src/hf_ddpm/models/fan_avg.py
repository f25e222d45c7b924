"""Initial weights with unit gain, as in DDPM and NCSN++: Var = scale / fan_avg, fan_avg = (fan_in + fan_out) / 2."""

import torch
from torch import nn


@torch.no_grad()
def init_fan_avg(network: nn.Module) -> None:
    """Initialise the weights of all convolutions and linear layers, in place."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_avg(module, scale=1.0)


def fan_avg(layer: nn.Module, scale: float) -> None:
    """Draw uniform weights with Var = scale / fan_avg (torch's `gain` scales the deviation), and set biases to zero."""
    for parameter in layer.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter, gain=scale**0.5)
        else:
            nn.init.zeros_(parameter)
