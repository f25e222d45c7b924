"""Checks of weights that may come from a stranger: of headers before they are mapped, of completeness afterwards."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

MOST_HEADER = 2**24  # bytes: a name, a type and an offset for each of 100,000 tensors
KINDS_OF_WEIGHTS = ("F64", "F32", "F16", "BF16")
NOT_OF_ONE_MODEL = "config.json and the weights do not belong to the same model; restore both from the same copy"


def check_safetensors(file: Path, shown: str) -> None:
    """Reject weights that are truncated, are not safetensors, or have an invalid header, before they are mapped."""
    with file.open("rb") as opened:
        header = int.from_bytes(opened.read(8), "little")
    if MOST_HEADER < header <= file.stat().st_size:
        raise ValueError(f"{shown} has a header of {header} bytes, and at most {MOST_HEADER} are allowed")
    try:
        with safe_open(file, "pt") as weights:
            kinds = {name: weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118  # not a mapping
    except SafetensorError as error:
        raise ValueError(f"{shown} is truncated or damaged: restore it from another copy ({error})") from error
    for name, kind in kinds.items():
        if kind not in KINDS_OF_WEIGHTS:
            raise ValueError(
                f"{shown} has {name} with dtype {kind}, which must be one of {', '.join(KINDS_OF_WEIGHTS)}"
            )


def check_weights(network: nn.Module) -> None:
    """Reject a network some of whose weights were in no file, which diffusers leaves on the meta device.

    A network that a `device_map` distributes has such weights too, and is accepted.

    Raises:
        ValueError: If weights are missing; the message has their number and the name of one.
    """
    missing = [name for name, weight in network.named_parameters() if weight.is_meta]
    if missing and getattr(network, "hf_device_map", None) is None:
        raise ValueError(f"weights are missing ({len(missing)}, such as {missing[0]}): {NOT_OF_ONE_MODEL}")
