"""Conversion between integer pixels and the numbers that a model sees: the grid x = k / 127.5 - 1 and its inverse.

8-bit images have k = 0..255, 16-bit images k = 0..65535. Likelihoods assume that x lies exactly on the grid, so images
remain integers until the batch is created and become float32 here, by one correctly rounded division.
"""

import torch
from torch import Tensor


def to_float(pixels: Tensor) -> Tensor:
    """Return x = k / 127.5 - 1 for uint8, x = k / 32767.5 - 1 for uint16; any shape, result float32 in [-1, 1].

    It is computed as (2k - 255) / 255: numerator and denominator are exact in float32, so x is the float32 nearest to
    the true value, on every device. For the same reason an 8-bit image stored as 16 bits (k * 257) gives the same
    floats.
    """
    if pixels.dtype not in (torch.uint8, torch.uint16):
        raise ValueError(f"pixels have dtype {pixels.dtype}; it must be torch.uint8 or torch.uint16")
    levels = 255 if pixels.dtype == torch.uint8 else 65535
    return pixels.to(torch.float32).mul_(2).sub_(levels).div_(levels)


def to_uint8(x: Tensor) -> Tensor:
    """Return k = round((x + 1) * 127.5), clamped to 0..255, as uint8.

    x: float in [-1, 1], any shape. This undoes `to_float`.
    """
    return ((x.to(torch.float32) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
