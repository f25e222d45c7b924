"""Images that users pass to a pipeline, as the x_0 that the noise process starts from; and what they get back."""

from collections.abc import Sequence, Sized
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor, is_valid_image
from torch import Tensor

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # the 8-bit mode for each number of channels
Images = PipelineImageInput
_TOLERANCE = 1e-3  # how far values may lie beyond their range


def to_x_0(images: Images, channels: int, size: Sequence[int] | None, *, noisy: bool = False) -> Tensor:
    """Convert images to float32 (B, C, H, W) in [-1, 1] on their own device.

    Everything that a pipeline returns is accepted, one image as well as a list or a batch of them:

    - PIL images;
    - tensors (B, C, H, W) or (C, H, W), uint8 or floating point;
    - NumPy arrays (B, H, W, C) or (H, W, C), uint8 or floating point.

    Floating-point images are in [-1, 1] if one of their values is negative, else in [0, 1], like the outputs `pt` and
    `np`. This is the rule of diffusers' `VaeImageProcessor`.

    Args:
        images: The images.
        channels: C of the network.
        size: (H, W) of the network; None for a network that takes any size.
        noisy: Whether the images are x_t, whose values may lie beyond [-1, 1].

    Raises:
        ValueError: The images have another type, mode, shape or range.
    """
    x_0 = _batched(images, channels)
    wanted = (channels, *(x_0.shape[2:] if size is None else size))
    if x_0.ndim != 4 or tuple(x_0.shape[1:]) != wanted or len(x_0) == 0:
        raise ValueError(
            f"images of shape {tuple(x_0.shape)} must have shape (B, {', '.join(map(str, wanted))}): "
            "resize and convert them first"
        )
    if x_0.dtype == torch.uint8:
        return x_0.float() / 127.5 - 1
    if not x_0.is_floating_point():
        raise ValueError(f"images of dtype {x_0.dtype} must be uint8 in [0, 255], or floating point in [0, 1]")
    low, high = x_0.min().item(), x_0.max().item()
    if low >= -_TOLERANCE and high <= 1 + _TOLERANCE:
        return x_0.float() * 2 - 1
    if not bool(x_0.isfinite().all()):
        raise ValueError("the images have values that are not finite: check how they were computed")
    if noisy:
        return x_0.float()
    if not (low >= -1 - _TOLERANCE and high <= 1 + _TOLERANCE):
        raise ValueError(
            f"images with values from {low:g} to {high:g} must lie in [0, 1] or in [-1, 1]: divide by 255 what lies in "
            "[0, 255]"
        )
    return x_0.float()


def to_images(x_0: Tensor, output_type: str) -> Any:
    """Convert x_0 (B, C, H, W), clipped to [-1, 1], to what a pipeline returns.

    Args:
        x_0: The images.
        output_type: `pil`, by `round((x + 1) * 127.5)`; `np` (B, H, W, C) in [0, 1]; or `pt` (B, C, H, W) in [0, 1].

    Raises:
        ValueError: The images contain NaN, which a picture would show as black; `pt` keeps it.
    """
    images = (x_0 / 2 + 0.5).clamp(0, 1)
    if output_type == "pt":
        return images
    if images.isnan().any():
        raise ValueError("the images contain NaN: the weights or the latents have diverged, use an earlier checkpoint")
    arrays = images.float().cpu().permute(0, 2, 3, 1).numpy()  # (B, H, W, C)
    return VaeImageProcessor.numpy_to_pil(arrays) if output_type == "pil" else arrays


def to_mask(mask: Tensor, x_0: Tensor) -> Tensor:
    """Return a mask of 0 and 1 with the shape and dtype of `x_0`; 1 marks the pixels that are repainted.

    Raises:
        ValueError: The mask has other values, or a shape that does not broadcast to that of `x_0`.
    """
    if not isinstance(mask, Tensor):
        raise ValueError(f"mask of type {type(mask).__name__} must be a tensor of 0 (keep) and 1 (repaint)")
    values = mask.to(x_0.device, x_0.dtype)
    if not ((values == 0) | (values == 1)).all():
        raise ValueError("the values of the mask must be 0 (keep) or 1 (repaint)")
    try:
        return values.broadcast_to(x_0.shape)
    except RuntimeError as error:
        raise ValueError(f"mask of shape {tuple(mask.shape)} must broadcast to {tuple(x_0.shape)}") from error


def _batched(images: Any, channels: int) -> Tensor:
    """The images as one tensor, (B, C, H, W) unless their shape is wrong; floating point as it was given."""
    items: list[Any] = list(images) if isinstance(images, Sequence) else [images]
    if not items or not all(isinstance(item, Tensor | np.ndarray) for item in items):
        return _from_pil(items, channels)
    tensors = [item if isinstance(item, Tensor) else _channels_first(item) for item in items]
    batches = [tensor[None] if tensor.ndim == 3 else tensor for tensor in tensors]
    if len({(batch.shape[1:], batch.dtype, batch.device) for batch in batches}) > 1:
        raise ValueError("the images have different sizes, types or devices: make them alike before they are one batch")
    return torch.cat(batches)


def _channels_first(array: np.ndarray) -> Tensor:
    """An array (H, W, C) or (B, H, W, C) as a tensor (C, H, W) or (B, C, H, W)."""
    if array.ndim not in (3, 4) or array.dtype.kind not in "uif":
        raise ValueError(
            f"a NumPy array of shape {array.shape} and type {array.dtype} must have shape (B, H, W, C), uint8 or float"
        )
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, -3)))


def _from_pil(items: list[Any], channels: int) -> Tensor:
    """PIL images as float32 (B, C, H, W) in [0, 1]."""
    # a PIL image is the only valid one without a length
    others = [type(item).__name__ for item in items if not is_valid_image(item) or isinstance(item, Sized)]
    if others or not items:
        raise ValueError(
            f"images of type {others[0] if others else 'empty list'} are not supported: "
            "pass only PIL images, only tensors (B, C, H, W) or only NumPy arrays (B, H, W, C)"
        )
    for image in items:
        if image.mode != MODES.get(channels):
            way = f"image.convert({MODES[channels]!r})" if channels in MODES else "no mode has that many, pass a tensor"
            if image.mode.startswith(("I", "F")):  # convert() would cut the values off at 255
                way = "scale it to 8 bits, or pass a tensor in [0, 1]"
            elif image.mode == "LAB":  # which convert() does not support
                way = "convert it to RGB with PIL.ImageCms"
            elif image.mode == "La":
                way = "use image.convert('LA'), and paste it on a background"
            elif image.mode in ("LA", "PA", "RGBA", "RGBa"):
                way = f"paste it on a background, then {way}"
            raise ValueError(f"an image in mode {image.mode} does not fit a network with {channels} channels: {way}")
    if len({image.size for image in items}) > 1:
        raise ValueError("the images have different sizes: resize them to the size of the network first")
    arrays = torch.from_numpy(VaeImageProcessor.pil_to_numpy(items))  # (B, H, W) or (B, H, W, C) in [0, 1]
    return arrays.reshape(*arrays.shape[:3], channels).permute(0, 3, 1, 2)
