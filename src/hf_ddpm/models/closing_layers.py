"""The last layers of residual branches, which ADM and DDPM initialise to zero: a block then starts as its shortcut."""

from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import nn


def closing_layers(network: nn.Module) -> list[nn.Module]:
    """Return the second convolution of each residual block and the output projection of each attention, in order."""
    layers: list[nn.Module] = []
    for module in network.modules():
        if isinstance(module, ResnetBlock2D):
            layers.append(module.conv2)
        elif isinstance(module, Attention) and module.to_out is not None:
            layers.append(module.to_out[0])
    return layers


def start_at_zero(layer: nn.Module) -> None:
    """Set all weights of a layer to zero, in place."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
