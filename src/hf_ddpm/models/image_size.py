"""The size of images, which configurations hold as one number or as a pair."""

from typing import Any


def size_pair(sample_size: Any) -> tuple[int, int]:
    """(H, W) of a number, whose images are square, or of a pair.

    Raises:
        ValueError: neither one whole number nor two.
    """
    pair = tuple(sample_size) if isinstance(sample_size, (list, tuple)) else (sample_size, sample_size)
    if len(pair) != 2 or not all(isinstance(side, int) for side in pair):
        raise ValueError(f"sample_size must be one whole number or (height, width), not {sample_size!r}")
    return pair
