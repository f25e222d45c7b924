"""Images that users hand to a pipeline, as the x_0 that the noise process starts from; and what they get back."""

from collections.abc import Sequence, Sized
from typing import Any

import torch
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor, is_valid_image
from torch import Tensor

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # of 8 bits a channel, by number of channels
Images = PipelineImageInput  # of which PIL images and tensors are taken


def to_x_0(images: Images, channels: int, size: Sequence[int] | None, *, noisy: bool = False) -> Tensor:
    """Images as float32 (B, C, H, W) in [-1, 1] on their own device.

    Args:
        images: a PIL image or a list of them, or a tensor (B, C, H, W): uint8, or floating in [-1, 1].
        channels, size: C and (H, W) of the network; a network without a size takes any.
        noisy: floating images are x_t instead, whose values may lie beyond [-1, 1].

    Raises:
        ValueError: another type, mode, shape or range, said in one sentence.
    """
    x_0 = images if isinstance(images, Tensor) else _from_pil(images, channels)
    wanted = (channels, *(x_0.shape[2:] if size is None else size))
    if x_0.ndim != 4 or tuple(x_0.shape[1:]) != wanted or len(x_0) == 0:
        raise ValueError(
            f"images of shape {tuple(x_0.shape)} must have shape (B, {', '.join(map(str, wanted))}): "
            "resize and convert them first"
        )
    if x_0.dtype == torch.uint8:
        return x_0.float() / 127.5 - 1
    if not x_0.is_floating_point():
        raise ValueError(f"images of dtype {x_0.dtype} must be uint8, or floating in [-1, 1]")
    low, high = x_0.min().item(), x_0.max().item()
    if noisy:
        if not bool(x_0.isfinite().all()):
            raise ValueError("images hold values that are not finite: mend what made them")
        return x_0.float()
    if not (low >= -1.001 and high <= 1.001):  # NaN fails too
        raise ValueError(
            f"images with values from {low:g} to {high:g} must lie in [-1, 1]: x / 127.5 - 1 maps 0..255 there"
        )
    return x_0.float()


def to_images(x_0: Tensor, output_type: str) -> Any:
    """x_0 (B, C, H, W) in [-1, 1], clipped to it, as a pipeline returns it.

    Args:
        output_type: `pil`, by `round((x + 1) * 127.5)`; `np` (B, H, W, C) in [0, 1]; or `pt` (B, C, H, W) in [0, 1].

    Raises:
        ValueError: NaN, which a picture would show as black; `pt` keeps it.
    """
    images = (x_0 / 2 + 0.5).clamp(0, 1)
    if output_type == "pt":
        return images
    if images.isnan().any():
        raise ValueError("the images hold NaN: weights or latents have diverged, take an earlier checkpoint")
    arrays = images.float().cpu().permute(0, 2, 3, 1).numpy()  # (B, H, W, C)
    return VaeImageProcessor.numpy_to_pil(arrays) if output_type == "pil" else arrays


def to_mask(mask: Tensor, x_0: Tensor) -> Tensor:
    """A mask of 0 and 1 that broadcasts to `x_0`, as its dtype; 1 marks what is painted anew.

    Raises:
        ValueError: other values, or a shape that does not fit.
    """
    if not isinstance(mask, Tensor):
        raise ValueError(f"mask of type {type(mask).__name__} must be a tensor of 0 (keep) and 1 (paint anew)")
    values = mask.to(x_0.device, x_0.dtype)
    if not ((values == 0) | (values == 1)).all():
        raise ValueError("mask must hold 0 (keep) and 1 (paint anew) only")
    try:
        return values.broadcast_to(x_0.shape)
    except RuntimeError as error:
        raise ValueError(f"mask of shape {tuple(mask.shape)} must broadcast to {tuple(x_0.shape)}") from error


def _from_pil(images: Any, channels: int) -> Tensor:
    """float32 (B, C, H, W) in [-1, 1]."""
    items: list[Any] = list(images) if isinstance(images, Sequence) else [images]
    # a PIL image is the only valid one without a length
    others = [type(item).__name__ for item in items if not is_valid_image(item) or isinstance(item, Sized)]
    if others or not items:
        raise ValueError(
            f"images of type {others[0] if others else 'empty list'} are not known: "
            "give PIL images, or a tensor (B, C, H, W) in [-1, 1]"
        )
    for image in items:
        if image.mode != MODES.get(channels):
            way = f"image.convert({MODES[channels]!r})" if channels in MODES else "no mode has that many, give a tensor"
            if image.mode.startswith(("I", "F")):  # convert() would cut the values off at 255
                way = "scale it to 8 bits, or give a tensor in [-1, 1]"
            elif image.mode in ("LA", "PA", "RGBA"):
                way = f"paste it on a background, then {way}"
            raise ValueError(f"an image of mode {image.mode} does not fit a network of {channels} channels: {way}")
    if len({image.size for image in items}) > 1:
        raise ValueError("images of different sizes make no batch: resize them to the network's size first")
    arrays = torch.from_numpy(VaeImageProcessor.pil_to_numpy(items))  # (B, H, W) or (B, H, W, C) in [0, 1]
    return arrays.reshape(*arrays.shape[:3], channels).permute(0, 3, 1, 2) * 2 - 1
