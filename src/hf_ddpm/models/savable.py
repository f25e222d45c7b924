"""What can be saved in the place of a network, and the types of weights that a network can be loaded in."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

DTYPES = ("float32", "float16", "bfloat16", "float64")


def with_dtypes(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of `from_pretrained` with the name of a dtype, such as "float16", replaced by the dtype.

    Raises:
        ValueError: If there is no such dtype.
    """
    return {**keywords, **{key: _dtype(keywords[key]) for key in ("dtype", "torch_dtype") if key in keywords}}


def _dtype(given: Any) -> Any:
    if isinstance(given, Mapping):
        return {name: _dtype(one) for name, one in given.items()}
    if not isinstance(given, str):
        return given
    if given.removeprefix("torch.") not in DTYPES:
        raise ValueError(f"dtype={given!r} must be one of {', '.join(DTYPES)}")
    return getattr(torch, given.removeprefix("torch."))


def check_savable(name: str, network: nn.Module) -> None:
    """Reject what would be saved without an error but could not be loaded again.

    Args:
        name: The name of the network in the message.
        network: A network of diffusers, hf_ddpm or transformers, which may be compiled.

    Raises:
        ValueError: If this is a module of another kind, or if its weights are not those of its config.
    """
    network = getattr(network, "_orig_mod", network)  # of torch.compile
    if any(kind.__name__ == "PreTrainedModel" for kind in type(network).__mro__):
        return  # transformers saves it
    if not isinstance(network, ModelMixin):
        raise ValueError(
            f"{name} of type {type(network).__name__} cannot be saved: replace it with the network that it contains"
        )
    if getattr(network, "hf_quantizer", None) is not None:
        return  # diffusers saves it with the config of its quantization
    weights = network.state_dict()
    if any(isinstance(weight, Tensor) and weight.is_meta for weight in weights.values()):
        raise ValueError(f"{name} has weights that are not in memory, because it is offloaded: save it before that")
    kind: Any = type(network)
    with torch.device("meta"):
        described = kind.from_config({k: v for k, v in network.config.items() if k[0] != "_"}).state_dict()
    shapes, needed = (
        {key: getattr(weight, "shape", None) for key, weight in each.items()} for each in (weights, described)
    )
    others = sorted(key for key in shapes.keys() | needed.keys() if shapes.get(key) != needed.get(key))
    if others:
        raise ValueError(
            f"{name} has been changed and cannot be saved: {len(others)} of its weights, such as {others[0]}, are not "
            "described by its config; merge or remove adapters, pruning, quantization and parametrizations first"
        )
