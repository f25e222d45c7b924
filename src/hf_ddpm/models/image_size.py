"""The size of images: what configurations hold, and what the levels of a network need."""

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


def side_unit(levels: int) -> int:
    """2**(levels - 1), which both sides of an image must be multiples of: every level but the last halves it."""
    return 2 ** (levels - 1)
