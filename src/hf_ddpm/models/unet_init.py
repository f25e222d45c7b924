"""The initial weights of the papers' UNets, which diffusers leaves at PyTorch's defaults.

Sources: DDPM's released code (`init_scale`), whose paper is arXiv 2006.11239; Improved DDPM, arXiv 2102.09672, and ADM,
arXiv 2105.05233, whose released code zeroes the closing layers.
"""

from typing import Literal

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import nn

from hf_ddpm.errors import UserError
from hf_ddpm.models.closing_layers import closing_layers, start_at_zero
from hf_ddpm.models.fan_avg import fan_avg, init_fan_avg

Init = Literal["fan_avg", "pytorch"]


@torch.no_grad()
def init_unet(model: UNet2DModel, init: Init) -> None:
    """Give a freshly built UNet its paper's initial weights, in place; the network then starts at (almost) zero.

    Every residual branch ends in a layer that starts at zero, so every block starts as the identity (or its 1x1
    shortcut); `conv_out` starts at zero too, so the first prediction is 0 and L_simple of epsilon starts at 1.

    - "fan_avg" (DDPM): all weights of convolutions and linear layers are uniform with variance `scale / fan_avg`,
      fan_avg = (fan_in + fan_out) / 2 with kernel sizes counted, biases are zero; `scale` is 1, and 1e-10 in the
      closing layers (appendix B's code calls it `init_scale`).
    - "pytorch" (Improved DDPM, ADM): PyTorch's own defaults, which the constructor drew, and exact zeros in the
      closing layers.

    Norms (1 and 0) and class embeddings (normal) keep PyTorch's defaults. Draws from torch's global generator;
    on the meta device there is nothing to draw.

    Raises:
        UserError: `init` is neither of the two.
    """
    if init not in ("fan_avg", "pytorch"):
        raise UserError(f"init must be 'fan_avg' or 'pytorch', not {init!r}")
    if init == "fan_avg":
        init_fan_avg(model)
    for layer in _closing_layers(model):
        if init == "fan_avg":
            fan_avg(layer, scale=1e-10)
        else:
            start_at_zero(layer)


def _closing_layers(model: UNet2DModel) -> list[nn.Module]:
    """The layers that start at zero: second convolution of residual blocks, output of attention, `conv_out`."""
    return [model.conv_out, *closing_layers(model)]
