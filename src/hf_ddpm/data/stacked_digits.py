"""Stacked digits: three random digits in the channels of an image, which have 1,000 modes.

Known as Stacked MNIST (Metz et al. 2017, arXiv 1611.02163; Lin et al. 2018, arXiv 1712.04086).
"""

from typing import TYPE_CHECKING

import torch
from PIL.Image import fromarray
from torch import Tensor

if TYPE_CHECKING:
    from datasets import Dataset


def stack_digits(digits: Tensor, seed: int) -> "Dataset":
    """Create as many images as there are digits, with each digit once in each channel.

    Args:
        digits: The digits, (N, 1, H, W) uint8.
        seed: The seed that decides which digits are combined.

    Returns:
        Dataset: A column `image` of N colour images, in memory.
    """
    from datasets import Dataset, Features, Image

    generator = torch.Generator().manual_seed(seed)
    three = torch.cat([digits[torch.randperm(len(digits), generator=generator)] for _ in range(3)], dim=1)
    pictures = [fromarray(picture) for picture in three.permute(0, 2, 3, 1).contiguous().numpy()]
    return Dataset.from_dict({"image": pictures}, features=Features({"image": Image()}))
