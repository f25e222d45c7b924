"""What a call of a pipeline may ask for, and one sentence where it may not."""

import math
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

Generators = torch.Generator | list[torch.Generator] | None


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


def check_count(name: str, value: int) -> None:
    """Refuse a number of things that is none.

    Raises:
        ValueError: `name` is no whole number of at least 1.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number of at least 1")


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


def check_variances(scheduler: Mapping[str, Any], unet: Mapping[str, Any]) -> None:
    """Refuse a network without the variances that the scheduler reads, given both configs.

    Raises:
        ValueError: the output is not twice as many channels.
    """
    channels, given, variance_type = unet["in_channels"], unet["out_channels"], str(scheduler["variance_type"])
    if variance_type.startswith("learned") and given != 2 * channels:
        raise ValueError(
            f"variance_type={variance_type!r} reads {2 * channels} output channels and the network has {given}: "
            "take the one that it was trained with, such as 'fixed_small'"
        )


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


def labels_of(
    unet: Mapping[str, Any], class_labels: int | Sequence[int] | Tensor | None, batch_size: int
) -> Tensor | None:
    """Class labels as (batch_size,), or None for a network without classes; `unet` is its config.

    Raises:
        ValueError: labels that are missing, too many, no whole numbers, or none of the network's.
    """
    num_classes = unet["num_class_embeds"]
    if num_classes is None and unet["class_embed_type"] is None:
        if class_labels is not None:
            raise ValueError("class_labels were given, but this network was trained without classes: leave them out")
        return None
    if class_labels is None:
        raise ValueError(f"this network was trained with {num_classes} classes: give class_labels")
    try:
        labels = torch.as_tensor(class_labels)
    except (TypeError, ValueError) as error:
        raise ValueError(f"class_labels={class_labels!r} must be whole numbers") from error
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"class_labels={class_labels!r} must be whole numbers")
    if labels.ndim == 0:
        labels = labels.expand(batch_size)
    if labels.shape != (batch_size,):
        raise ValueError(f"class_labels of shape {tuple(labels.shape)} do not fit batch_size={batch_size}")
    if num_classes is not None and not ((labels >= 0) & (labels < num_classes)).all():
        raise ValueError(f"class_labels {labels.tolist()} must lie within 0..{num_classes - 1}")
    return labels
