"""The SHA-256 of a network's weights, which identifies the checkpoint of a measurement."""

import hashlib
from pathlib import Path

from torch import nn

WEIGHTS = "diffusion_pytorch_model.safetensors"


def weights_sha256(module: nn.Module) -> str:
    """Return the SHA-256 of the safetensors file that `save_pretrained` writes for the network without shards."""
    from safetensors.torch import save

    weights = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    return hashlib.sha256(save(weights, metadata={"format": "pt"})).hexdigest()


def weights_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the weights in a checkpoint's folder, by component; variants are ignored."""
    return {file.parent.name: file_sha256(file) for file in folder.glob(f"*/{WEIGHTS}")}


def weights_of_model(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the weights in the folder of a single model of diffusers or transformers, by file."""
    return {file.name: file_sha256(file) for file in folder.glob("*.safetensors")}


def file_sha256(file: Path) -> str:
    """Return the SHA-256 of a file, which is read in pieces."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
