"""Weights that a stranger may have written: their headers before they are mapped, their completeness afterwards."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

MOST_HEADER = 2**24  # bytes; a name, a type and a place for each tensor: 100,000 of them
KINDS_OF_WEIGHTS = ("F64", "F32", "F16", "BF16")
NOT_OF_ONE_MODEL = "config.json and the weights are not of one model, restore both from one copy"


def check_safetensors(file: Path, shown: str) -> None:
    """Refuse weights that are cut short, that are no safetensors, or whose header is a lie, before they are mapped."""
    with file.open("rb") as opened:
        header = int.from_bytes(opened.read(8), "little")
    if MOST_HEADER < header <= file.stat().st_size:
        raise ValueError(f"{shown} has a header of {header} bytes, and no network needs more than {MOST_HEADER}")
    try:
        with safe_open(file, "pt") as weights:
            kinds = {name: weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118  # no mapping
    except SafetensorError as error:
        raise ValueError(f"{shown} is cut short or damaged: copy it again ({error})") from error
    for name, kind in kinds.items():
        if kind not in KINDS_OF_WEIGHTS:
            raise ValueError(f"{shown} has {name} of {kind}, allowed are {', '.join(KINDS_OF_WEIGHTS)}")


def check_weights(network: nn.Module) -> None:
    """Refuse a network of which some weights were in no file: diffusers goes on and leaves them without memory.

    A network that a `device_map` spread has none of its own either, and passes.

    Raises:
        ValueError: how many, and one of them.
    """
    missing = [name for name, weight in network.named_parameters() if weight.is_meta]
    if missing and getattr(network, "hf_device_map", None) is None:
        raise ValueError(f"{len(missing)} weights, such as {missing[0]}, are in no file: {NOT_OF_ONE_MODEL}")
