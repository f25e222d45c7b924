"""Which timesteps a sampler visits: strictly descending lists of integers in [0, T-1]."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch

TimestepSpacing = Literal["leading", "trailing", "linspace"]


def spaced_timesteps(spacing: TimestepSpacing, num_steps: int, num_train: int, offset: int = 0) -> list[int]:
    """S timesteps out of T, the highest first (the three spacings of arXiv 2305.08891, Table 2).

    `leading` takes every (T // S)-th step from 0 (shifted by `offset`) and never reaches T-1 unless S = T;
    `trailing` counts down from T-1; `linspace` contains both 0 and T-1.

    Raises:
        ValueError: S outside [1, T], or an offset that leaves [0, T-1].
    """
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or not 1 <= num_steps <= num_train:
        raise ValueError(
            f"num_inference_steps={num_steps} must be a whole number from 1 to {num_train}, "
            "the number of steps the model was trained with"
        )
    if spacing == "leading":
        ascending = [i * (num_train // num_steps) + offset for i in range(num_steps)]
        return check_timesteps(ascending[::-1], num_train)
    if spacing == "trailing":
        stride = num_train / num_steps
        return [round(num_train - i * stride) - 1 for i in range(num_steps)]
    return torch.linspace(0, num_train - 1, num_steps, dtype=torch.float64).round().long().tolist()[::-1]


def check_timesteps(timesteps: Sequence[int], num_train: int) -> list[int]:
    """`timesteps` as a list, or a `ValueError` unless it descends strictly within [0, T-1]."""
    steps = [int(t) for t in timesteps]
    descends = all(later < earlier for earlier, later in pairwise(steps))
    if not steps or not descends or steps[0] >= num_train or steps[-1] < 0:
        shown = f"{steps[:3]}...{steps[-1:]}" if len(steps) > 4 else steps
        raise ValueError(f"timesteps {shown} must be a non-empty, strictly descending list within 0..{num_train - 1}")
    return steps
