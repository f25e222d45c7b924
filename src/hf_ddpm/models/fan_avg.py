"""Initial weights of unit gain, as DDPM and NCSN++ have: Var = scale / fan_avg, fan_avg = (fan_in + fan_out) / 2."""

import torch
from torch import nn


@torch.no_grad()
def init_fan_avg(network: nn.Module) -> None:
    """Draw the weights of all convolutions and linear layers anew, in place."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_avg(module, scale=1.0)


def fan_avg(layer: nn.Module, scale: float) -> None:
    """Weights uniform with Var = scale / fan_avg (torch's `gain` is a factor of the deviation), biases zero."""
    for parameter in layer.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter, gain=scale**0.5)
        else:
            nn.init.zeros_(parameter)
