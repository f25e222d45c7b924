"""What a call of a pipeline may ask for, and one sentence where it may not."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_ddpm.schedulers.annotations import check_count

Generators = torch.Generator | list[torch.Generator] | None
StepCallback = Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None]  # of diffusers


def check_call(batch_size: int, generator: object, output_type: str) -> None:
    """Refuse a batch, generators or an output that cannot be.

    Raises:
        ValueError: which of them, and what is allowed.
    """
    check_count("batch_size", batch_size)
    each = generator if isinstance(generator, list) else [generator]
    if generator is not None and not all(isinstance(one, torch.Generator) for one in each):
        raise ValueError(
            f"generator={generator!r} must be a torch.Generator or a list of them: torch.Generator().manual_seed(0)"
        )
    if isinstance(generator, list) and len(generator) != batch_size:
        raise ValueError(f"{len(generator)} generators for batch_size={batch_size}: give one, or one for each image")
    if output_type not in ("pil", "np", "pt"):
        raise ValueError(f"output_type={output_type!r} is not known, allowed are 'pil', 'np' and 'pt'")


def finite_numbers(name: str, values: Sequence[float]) -> Tensor:
    """Numbers as (n,) in float64.

    Raises:
        ValueError: no list of finite numbers, or an empty one.
    """
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        numbers = []
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name}={values!r} must be a list of finite numbers, such as [-2, -1, 0, 1, 2]")
    return torch.tensor(numbers, dtype=torch.float64)


def check_solver(name: str, scheduler: Mapping[str, Any], channels: int) -> None:
    """Refuse a DPM-Solver that takes a learned variance to mean six channels, of which it keeps three.

    Raises:
        ValueError: `name` is one, and there are more than three channels.
    """
    variance_type = str(scheduler.get("variance_type"))
    if variance_type.startswith("learned") and channels > 3 and name.startswith("DPMSolver"):
        raise ValueError(
            f"{name} keeps 3 of {channels} channels for variance_type={variance_type!r}: "
            "make it by from_config(config, variance_type=None)"
        )
