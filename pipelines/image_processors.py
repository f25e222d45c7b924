"""A differentiable version of the image processors of `transformers`."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from hf_ddpm.models.image_size import size_pair

PIL_BILINEAR = 2
WARPED_FROM = 384  # the shortest edge of ConvNext from which on images are not cropped
PICTURE = (48, 32)
MOST_APART = 0.03  # of the mean |difference|, in normalized units: resampling is .006, other processing .09 or more


def prepared(images: Tensor, processor: Any) -> Tensor:
    """Prepare images (B, C, H, W) in [-1, 1] like an image processor, as (B, 3, h, w), with their gradient."""
    x = ((images.float() + 1) / 2).expand(-1, 3, -1, -1)  # not clipped: values outside have a gradient too
    settings: dict[str, Any] = processor.to_dict()
    if settings.get("do_resize", True):
        mode = "bilinear" if settings.get("resample") == PIL_BILINEAR else "bicubic"
        size, cropped = _sizes(settings, x.shape[-2:])
        x = _center_cropped(interpolate(x, size=size, mode=mode, antialias=True), cropped)
    if settings.get("do_center_crop"):
        x = _center_cropped(x, _height_width(settings["crop_size"]))
    if settings.get("do_normalize", True):
        mean, std = (x.new_tensor(settings[name]).view(-1, 1, 1) for name in ("image_mean", "image_std"))
        x = (x - mean) / std
    return x


def check_processor(processor: Any, size: tuple[int, int] | None) -> None:
    """Reject an image processor that prepares an image differently from `prepared`.

    Args:
        processor: The image processor.
        size: (H, W) of the images; None for any size.

    Raises:
        ValueError: If it does; the message says what to use.
    """
    height, width = size or PICTURE
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    picture = np.stack([x, y, (1 - x) * y], axis=-1)  # all sides and all channels differ
    in_bytes = (255 * picture).round().astype(np.uint8)
    try:
        seen = torch.as_tensor(np.asarray(processor(in_bytes, return_tensors="np")["pixel_values"]))
        ours = prepared(torch.from_numpy(in_bytes / 127.5 - 1).permute(2, 0, 1).unsqueeze(0), processor)
        same = seen.shape == ours.shape and bool((seen - ours).abs().mean() < MOST_APART)
    except (KeyError, TypeError, ValueError, RuntimeError):  # other kinds of settings
        same = False
    if not same:
        raise ValueError(
            f"the classifier's {type(processor).__name__} does more than resize, crop and normalize, so no gradient "
            "passes through it: use a classifier with the image processor of ViT, CLIP or ConvNext"
        )


def _sizes(settings: dict[str, Any], shape: torch.Size) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the size that images are resized to, and the size that they are cropped to afterwards."""
    if "shortest_edge" not in settings["size"]:
        return _height_width(settings["size"]), _height_width(settings["size"])
    edge, share = settings["size"]["shortest_edge"], settings.get("crop_pct")
    if share is None:
        size = _resized(edge, shape)
        return size, size
    return (edge, edge) if edge >= WARPED_FROM else _resized(int(edge / share), shape), (edge, edge)


def _resized(edge: int, shape: torch.Size) -> tuple[int, int]:
    """Return the size of an image that is resized to the shorter edge `edge`."""
    ratio = edge / min(shape)
    return int(shape[0] * ratio), int(shape[1] * ratio)


def _center_cropped(images: Tensor, size: tuple[int, int]) -> Tensor:
    top, left = ((have - wanted) // 2 for have, wanted in zip(images.shape[-2:], size, strict=True))
    return images[..., top : top + size[0], left : left + size[1]]


def _height_width(size: dict[str, int]) -> tuple[int, int]:
    return size_pair([size["height"], size["width"]])
