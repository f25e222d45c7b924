"""The size of images in configurations, and the sizes that the levels of a network need."""

from typing import Any


def size_pair(sample_size: Any) -> tuple[int, int]:
    """Return (H, W) for one number, which means square images, or for a pair.

    Raises:
        ValueError: If the size is neither one whole number nor two.
    """
    pair = tuple(sample_size) if isinstance(sample_size, (list, tuple)) else (sample_size, sample_size)
    if len(pair) != 2 or not all(isinstance(side, int) for side in pair):
        raise ValueError(f"sample_size must be one whole number or (height, width), not {sample_size!r}")
    return pair


def side_unit(levels: int) -> int:
    """Return 2**(levels - 1), which must divide both sides of an image: every level but the last halves it."""
    return 2 ** (levels - 1)
