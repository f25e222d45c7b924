"""Decode one stored image, of any mode and size, to an integer array (C, H, W) with the required channels and size.

Rules: the EXIF orientation is applied; palettes are looked up; colours become luminance (ITU-R 601-2) with 1 and 2
channels; grey is repeated with 3 and 4 channels; transparency is composited over white if the result has no alpha
channel, and a missing alpha channel is opaque; 16-bit grey keeps its 16 bits. The `notes` of an image report the
conversions.
"""

import io
import struct
import threading
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from hf_ddpm.data.resize import LARGEST, Crop, CropScale, Resize, fit

if TYPE_CHECKING:
    from PIL import Image

CHANNEL_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
REPEATED = "grey repeated in every colour channel"
LUMINANCE = "colours converted to luminance"
COMPOSITED = "transparency composited over white"
UPPER_BYTE = "16 bits per colour channel, of which Pillow reads the upper 8"
FIRST_PAGE = "several pages or frames, of which the first is used; save each in a separate file to use them all"
NOT_TURNED = "EXIF data that cannot be read, so that the image is not rotated"
MAX_PIXELS = 178_956_970  # Pillow's own limit, against decompression bombs
_BROKEN_FILE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
)  # what Pillow raises for a broken file

_PNG = b"\x89PNG\r\n\x1a\n"
_OF_ONE_PICTURE = {"MPO", "PSD"}  # formats whose further frames are a preview or layers
_OPENING = threading.Lock()


class UndecodableError(Exception):
    """A stored image cannot be decoded; the message is the reason, without the image's name and any folder."""


@dataclass(frozen=True)
class Undecodable:
    """The reason why a stored image cannot be decoded, and the path of its file, if that is known."""

    file: str | None
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}" if self.file else self.reason


class Decoded(NamedTuple):
    """Pixels (C, H, W), uint8 or uint16, and a short note for each conversion that changed the image's meaning."""

    pixels: np.ndarray
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ImageDecoder:
    """Decodes stored images to arrays (channels, *image_size).

    `crop_box` (left, top, right, bottom), in pixels of the upright image, is cropped first. `crop_scale` limits the
    size of a random crop; random crops are never cached, so it is not part of a fingerprint. Images with more than
    `max_pixels` pixels are rejected. `array_dtype` is the integer type of sources whose column contains arrays instead
    of image files; arrays are (H, W), (C, H, W) or (H, W, C) and must have exactly `channels` channels, which may be
    any number.
    """

    image_size: tuple[int, int]
    channels: int
    resize: Resize = "crop"
    crop_box: tuple[int, int, int, int] | None = None
    array_dtype: Literal["uint8", "uint16"] | None = None
    crop_scale: CropScale = field(default=LARGEST, repr=False)
    max_pixels: int = field(default=MAX_PIXELS, repr=False)

    def __call__(self, stored: Any, crop: Crop | None = None) -> Decoded:
        """Decode one value of the image column: {"bytes", "path"}, bytes, a path, or an array.

        `crop` places the window of "random_crop"; None is the largest window, at the centre. Raises `UndecodableError`.
        """
        from PIL import UnidentifiedImageError
        from PIL.Image import DecompressionBombError

        if stored is None:
            raise UndecodableError("it is missing (null)")
        try:
            if self.array_dtype is not None:
                return Decoded(self._fit(self._planes(stored), crop), ())
            return self._decode_file(stored, crop)
        except UnidentifiedImageError as error:
            raise UndecodableError("it is not an image that Pillow recognises") from error
        except (*_BROKEN_FILE, DecompressionBombError) as error:
            raise UndecodableError(_without_places(error)) from error

    def _decode_file(self, stored: Any, crop: Crop | None) -> Decoded:
        image, notes = open_image(stored, self.max_pixels)
        if image.mode.startswith("I"):
            planes, more = _sixteen_bits(image, self.channels)
            return Decoded(self._fit(planes, crop), notes + more)
        image, more = _convert(image, CHANNEL_MODES[self.channels])
        pixels = np.asarray(self._fitted(image, crop))
        planes = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
        return Decoded(np.ascontiguousarray(planes), notes + more)

    def _fit(self, planes: np.ndarray, crop: Crop | None) -> np.ndarray:
        """Resize planes (C, h, w) one by one in float32 and round, which keeps all 16 bits."""
        from PIL import Image

        largest = np.iinfo(planes.dtype).max
        fitted = [np.asarray(self._fitted(Image.fromarray(plane.astype(np.float32)), crop)) for plane in planes]
        return np.stack(fitted).round().clip(0, largest).astype(planes.dtype)

    def _fitted(self, image: "Image.Image", crop: Crop | None) -> "Image.Image":
        return fit(image, self.image_size, self.resize, crop, self.crop_box, self.crop_scale)

    def _planes(self, stored: Any) -> np.ndarray:
        array = np.asarray(stored, dtype=self.array_dtype)
        if array.ndim == 2:
            array = array[None]
        elif array.ndim == 3 and array.shape[-1] == self.channels:
            array = np.moveaxis(array, -1, 0)
        if array.ndim != 3 or array.shape[0] != self.channels:
            raise ValueError(f"an array with shape {array.shape} does not have {self.channels} channel(s)")
        return array


def open_image(stored: Any, max_pixels: int = MAX_PIXELS) -> "tuple[Image.Image, tuple[str, ...]]":
    """Load a stored image, upright: {"bytes", "path"}, bytes, or a path (local, or a URL that `datasets` can open).

    Only the first of several pages or frames is loaded. Data other than the pixels, such as EXIF data or a colour
    profile, may be damaged.
    """
    source = _source(stored)
    try:
        return _loaded(source, max_pixels)
    except _BROKEN_FILE:
        content = source.getvalue() if isinstance(source, io.BytesIO) else Path(source).read_bytes()
        if (pixels_alone := without_metadata(content)) is None:
            raise
    return _loaded(io.BytesIO(pixels_alone), max_pixels)


def _loaded(source: str | io.BytesIO, max_pixels: int) -> "tuple[Image.Image, tuple[str, ...]]":
    """Return the image, with its notes."""
    from PIL import Image, ImageOps

    with _OPENING:  # Pillow has one limit for the whole process
        bound, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(source)
        finally:
            Image.MAX_IMAGE_PIXELS = bound
    with image:
        if image.width * image.height > max_pixels:
            raise ValueError(
                f"it has {image.width}x{image.height} pixels, more than max_pixels={max_pixels:,}: make it "
                "smaller, or train with a larger --max_pixels if you trust it"
            )
        notes = []
        if image.mode in ("RGB", "RGBA", "LA") and any(";16" in str(tile[-1]) for tile in image.tile):
            notes.append(UPPER_BYTE)
        if image.format not in _OF_ONE_PICTURE and getattr(image, "is_animated", False):
            notes.append(FIRST_PAGE)
        image.load()
        try:
            ImageOps.exif_transpose(image, in_place=True)
        except (*_BROKEN_FILE, TypeError, KeyError):
            notes.append(NOT_TURNED)
        return image, tuple(notes)


def without_metadata(content: bytes) -> bytes | None:
    """Return a PNG or JPEG file with only what its pixels need; None for other files."""
    if content.startswith(_PNG):
        kept, start = [_PNG], len(_PNG)
        while start + 8 <= len(content):
            (size,), kind = struct.unpack(">I", content[start : start + 4]), content[start + 4 : start + 8]
            if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
                kept.append(content[start : start + size + 12])
            start += size + 12
        return b"".join(kept)
    if content.startswith(b"\xff\xd8"):
        kept, start = [content[:2]], 2
        while content[start : start + 1] == b"\xff" and content[start + 1] != 0xDA and start + 4 <= len(content):
            marker, (size,) = content[start + 1], struct.unpack(">H", content[start + 2 : start + 4])
            if not (0xE0 <= marker <= 0xEF and marker != 0xEE) and marker != 0xFE:  # APP14 defines the colours
                kept.append(content[start : start + size + 2])
            start += size + 2
        return b"".join([*kept, content[start:]])
    return None


def _source(stored: Any) -> str | io.BytesIO:
    """Return what Pillow can open: a local path or the bytes."""
    content = stored.get("bytes") if isinstance(stored, dict) else stored
    if isinstance(content, bytes):
        return io.BytesIO(content)
    path = stored_name(stored)
    if path is None:
        raise ValueError("it is missing (neither bytes nor a path)")
    return io.BytesIO(_download(path)) if "://" in path else path


def stored_name(stored: Any) -> str | None:
    """Return the file name of a stored image, if it has one."""
    path = stored.get("path") if isinstance(stored, dict) else stored
    return path if isinstance(path, str) else None


def stored_bytes(stored: Any) -> int:
    """Return the approximate memory that a stored image uses; 0 if it is only a path."""
    content = stored.get("bytes") if isinstance(stored, dict) else stored
    if isinstance(content, list):  # an array as nested lists
        return len(content) * max(stored_bytes(content[0]), 8) if content else 0
    if isinstance(content, np.ndarray):
        return content.nbytes
    return len(content) if isinstance(content, bytes) else 0


def _download(path: str) -> bytes:
    from datasets.utils.file_utils import xopen

    with xopen(path, "rb") as file:
        content: bytes = file.read()
    return content


def _convert(image: "Image.Image", mode: str) -> "tuple[Image.Image, tuple[str, ...]]":
    """Convert an 8-bit image to one of the modes of `CHANNEL_MODES`."""
    from PIL import Image

    if image.mode == "F":
        raise ValueError(
            "it contains floating-point values (mode F), which have no defined white; store 8 or 16-bit integers"
        )
    notes = []
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if not mode.endswith("A"):
            notes.append(COMPOSITED)
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif not grey:
        image = image.convert("RGB")  # palettes, CMYK and other colour spaces are converted to RGB first
    if grey and mode.startswith("RGB"):
        notes.append(REPEATED)
    if not grey and mode.startswith("L"):
        notes.append(LUMINANCE)
    return image if image.mode == mode else image.convert(mode), tuple(notes)


def _sixteen_bits(image: "Image.Image", channels: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Convert a mode I or I;16 image to uint16 planes (channels, h, w); Pillow's own conversion would clip at 255."""
    grey = np.asarray(image)
    if image.mode == "I" and (grey.min() < 0 or grey.max() > 65535):
        raise ValueError(f"its values {grey.min()}..{grey.max()} are outside 0..65535")
    planes = np.repeat(grey.astype(np.uint16)[None], channels, axis=0)
    if channels in (2, 4):
        planes[-1] = 65535
    return planes, (REPEATED,) if channels >= 3 else ()


def _without_places(error: BaseException) -> str:
    """Return the reason of an error on one line, without any path: the message of a library may contain one."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if "/" in said or "\\" in said:
        return f"it cannot be read ({type(error).__name__})"
    return " ".join(said.split())[:200] or type(error).__name__
