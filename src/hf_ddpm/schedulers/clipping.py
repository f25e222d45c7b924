"""Clipping and thresholding of a predicted x_0 to the range of images."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def check_clipping(config: Mapping[str, Any]) -> None:
    """Raise a `ValueError` if a range or a ratio in the config is invalid."""
    if config["clip_sample_range"] <= 0 or config["sample_max_value"] < 1:
        raise ValueError(
            f"clip_sample_range={config['clip_sample_range']} must be positive and "
            f"sample_max_value={config['sample_max_value']} must be at least 1"
        )
    if not 0 < config["dynamic_thresholding_ratio"] <= 1:
        raise ValueError(f"dynamic_thresholding_ratio={config['dynamic_thresholding_ratio']} must lie in (0, 1]")


def clip_(x_0: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Threshold `x_0`, clip it in place, or return it unchanged, as a scheduler's config says."""
    if config["thresholding"]:
        return dynamic_threshold(x_0, config["dynamic_thresholding_ratio"], config["sample_max_value"])
    if config["clip_sample"]:
        return x_0.clamp_(-config["clip_sample_range"], config["clip_sample_range"])
    return x_0


def dynamic_threshold(x_0: Tensor, ratio: float, max_value: float) -> Tensor:
    """Clip to the `ratio`-quantile of |x_0| of each image, within [1, max_value], then divide by it.

    Imagen, arXiv 2205.11487, sec. 2.3.
    """
    limit = torch.quantile(x_0.flatten(1).abs(), ratio, dim=1)
    limit = limit.clamp(1, max_value).view(-1, *[1] * (x_0.ndim - 1))
    return torch.clamp(x_0, -limit, limit) / limit
