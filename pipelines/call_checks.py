"""Checks of the arguments of a pipeline's call."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_ddpm.schedulers.annotations import check_count

Generators = torch.Generator | list[torch.Generator] | None
StepCallback = Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None]  # as in diffusers


def check_call(batch_size: int, generator: object, output_type: str) -> None:
    """Check the batch size, the generators and the output type of a call.

    Raises:
        ValueError: If one of them is invalid; the message names what is allowed.
    """
    check_count("batch_size", batch_size)
    each = generator if isinstance(generator, list) else [generator]
    if generator is not None and not all(isinstance(one, torch.Generator) for one in each):
        raise ValueError(
            f"generator={generator!r} must be a torch.Generator or a list of them: torch.Generator().manual_seed(0)"
        )
    if isinstance(generator, list) and len(generator) != batch_size:
        raise ValueError(
            f"a list of {len(generator)} generator(s) does not fit batch_size={batch_size}: pass one generator, or a "
            "list with one for each image"
        )
    if output_type not in ("pil", "np", "pt"):
        raise ValueError(f"output_type={output_type!r} must be one of 'pil', 'np', 'pt'")


def finite_numbers(name: str, values: Sequence[float]) -> Tensor:
    """Return numbers as a tensor (n,) in float64.

    Raises:
        ValueError: If they are not a list of finite numbers, or the list is empty.
    """
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        numbers = []
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name}={values!r} must be a list of finite numbers, such as [-2, -1, 0, 1, 2]")
    return torch.tensor(numbers, dtype=torch.float64)


def check_solver(name: str, scheduler: Mapping[str, Any], channels: int) -> None:
    """Reject a DPM-Solver that assumes six output channels for a learned variance, and keeps three of them.

    Raises:
        ValueError: If `name` is one, and there are more than three channels.
    """
    variance_type = str(scheduler.get("variance_type"))
    if variance_type.startswith("learned") and channels > 3 and name.startswith("DPMSolver"):
        raise ValueError(
            f"{name} keeps 3 of {channels} channels if variance_type={variance_type!r}: "
            "create it with from_config(config, variance_type=None)"
        )
