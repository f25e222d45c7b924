"""Checks of the `data:` options that need no data: each error is one sentence with the value and what is allowed."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

from hf_ddpm.data.resize import LARGEST, CropScale, Resize
from hf_ddpm.errors import UserError, did_you_mean

OnBadImage = Literal["error", "skip"]
Cache = Literal["auto", "memory", "device", "none"]


def at_least(name: str, value: int, lowest: int) -> int:
    """Check an integer from `lowest` up, and return it."""
    if not _is_int(value) or value < lowest:
        raise UserError(f"{name} is {value!r}; it must be an integer of at least {lowest}")
    return value


def one_of(name: str, value: Any, choices: Any) -> Any:
    """Check a value of a `Literal`, and return it."""
    allowed = get_args(choices)
    if value not in allowed:
        raise UserError(
            f"{name} is {value!r}; it must be one of {', '.join(allowed)}{did_you_mean(str(value), allowed)}"
        )
    return value


def size_of(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Return (H, W) from a number or a pair, each at least 1."""
    pair = (image_size, image_size) if isinstance(image_size, int) else image_size
    if not isinstance(pair, Sequence) or len(pair) != 2 or not all(_is_int(side) and side >= 1 for side in pair):
        raise UserError(
            f"image_size is {image_size!r}; it must be a positive number of pixels, or a pair [height, width]"
        )
    return (pair[0], pair[1])


def box_of(crop_box: Sequence[int]) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of a box that is not empty."""
    if len(crop_box) != 4 or not all(_is_int(edge) and edge >= 0 for edge in crop_box):
        raise UserError(f"crop_box is {crop_box!r}; it must be [left, top, right, bottom] in pixels, each at least 0")
    left, top, right, bottom = crop_box
    if left >= right or top >= bottom:
        raise UserError(
            f"crop_box {list(crop_box)} is empty; it must be [left, top, right, bottom], left < right and top < bottom"
        )
    return (left, top, right, bottom)


def crop_scale_of(crop_scale: Sequence[float], resize: Resize) -> CropScale:
    """Return (low, high) with 0 < low <= high <= 1, which must both be 1 unless crops are random."""
    ends: list[Any] = [*crop_scale] if isinstance(crop_scale, list | tuple) else [crop_scale]
    numbers = len(ends) == 2 and all(isinstance(side, (int, float)) for side in ends)
    if not numbers or not 0 < ends[0] <= ends[1] <= 1:
        raise UserError(
            f"crop_scale is {ends}; it must be [low, high] with 0 < low <= high <= 1, as fractions of the largest "
            "crop that fits"
        )
    low, high = ends
    if (low, high) != LARGEST and resize != "random_crop":
        raise UserError(
            f"crop_scale is [{low}, {high}], the size of random crops, but resize is {resize!r}; use 'random_crop', "
            "or crop_scale [1,1]"
        )
    return (low, high)


def cache_choice(cache: Cache, streaming: bool, resize: Resize) -> Cache:
    """Return the cache to use: streams and random crops are decoded each time they are used."""
    if cache in ("memory", "device") and (streaming or resize == "random_crop"):
        what = "of a stream" if streaming else "with resize 'random_crop'"
        raise UserError(f"cache is {cache!r}, but images {what} are decoded each time; use 'auto' or 'none'")
    return "none" if streaming or resize == "random_crop" else cache


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
