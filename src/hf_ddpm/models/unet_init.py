"""The initial weights of the papers' UNets, for which diffusers uses PyTorch's defaults.

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
from hf_ddpm.models.time_tables import fill_with_sinusoids

Init = Literal["fan_avg", "pytorch"]


@torch.no_grad()
def init_unet(model: UNet2DModel, init: Init) -> None:
    """Initialise a new UNet as in its paper, in place; its output is then (almost) zero.

    The last layer of every residual branch is (almost) zero, so every block starts as the identity (or its 1x1
    shortcut); so is `conv_out`, so the first prediction is 0 and L_simple of epsilon starts at 1.

    - "fan_avg" (DDPM): all weights of convolutions and linear layers are uniform with variance `scale / fan_avg`,
      fan_avg = (fan_in + fan_out) / 2 including kernel sizes, and biases are zero; `scale` is 1, and 1e-10 in the
      closing layers (the code of appendix B calls it `init_scale`).
    - "pytorch" (Improved DDPM, ADM): PyTorch's own defaults, which the constructor drew, and exact zeros in the
      closing layers.

    A table of time embeddings (`time_embedding_type="learned"` with T rows) is filled with the sinusoids of 1000 t / T
    and is not trained: its weights do not require a gradient. These are the rescaled timesteps of Improved DDPM, whose
    networks with T = 4000 receive t / 4.

    Norms (1 and 0) and class embeddings (normal) keep PyTorch's defaults. The weights are drawn from torch's global
    generator; on the meta device nothing is drawn.

    Raises:
        UserError: If `init` is neither of the two.
    """
    if init not in ("fan_avg", "pytorch"):
        raise UserError(f"init must be 'fan_avg' or 'pytorch', not {init!r}")
    if init == "fan_avg":
        init_fan_avg(model)
    if isinstance(model.time_proj, nn.Embedding):
        flip, shift = model.config["flip_sin_to_cos"], model.config["freq_shift"]
        fill_with_sinusoids(model.time_proj, flip_sin_to_cos=flip, freq_shift=shift)
    for layer in _closing_layers(model):
        if init == "fan_avg":
            fan_avg(layer, scale=1e-10)
        else:
            start_at_zero(layer)


def _closing_layers(model: UNet2DModel) -> list[nn.Module]:
    """Return the layers that start at zero: the last ones of residual blocks and of attention, and `conv_out`."""
    return [model.conv_out, *closing_layers(model)]
