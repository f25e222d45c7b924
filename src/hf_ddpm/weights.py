"""The SHA-256 of a network's weights, by which a measurement names the checkpoint that it is of."""

import hashlib
from pathlib import Path

from torch import nn

WEIGHTS = "diffusion_pytorch_model.safetensors"


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 of the safetensors file that `save_pretrained` writes for the network in one piece."""
    from safetensors.torch import save

    weights = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    return hashlib.sha256(save(weights, metadata={"format": "pt"})).hexdigest()


def weights_of(folder: Path) -> dict[str, str]:
    """SHA-256 of the weights in a checkpoint's folder, by component; those of no variant."""
    return {file.parent.name: file_sha256(file) for file in folder.glob(f"*/{WEIGHTS}")}


def weights_of_model(folder: Path) -> dict[str, str]:
    """SHA-256 of the weights in the folder of a model alone, of diffusers or of transformers, by file."""
    return {file.name: file_sha256(file) for file in folder.glob("*.safetensors")}


def file_sha256(file: Path) -> str:
    """SHA-256 of a file, which is read in pieces."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
