"""Real image files and data sets, made on the spot."""

import io
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def random_image(seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    """An image of random pixels: (width, height), any 8-bit mode."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (size[1], size[0], channels)[: 3 if channels > 1 else 2]
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), mode)


def png_bytes(image: Image.Image) -> bytes:
    """The image as a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def chunk(tag: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))


def sixteen_bit_rgb_png(pixels: np.ndarray) -> bytes:
    """A PNG with 16 bits per colour channel from (H, W, 3) uint16, which Pillow can read but not write."""

    height, width, _ = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def write_folder(folder: Path, num_images: int = 12, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """An image folder: `num_images` random 8x8 RGB PNGs, dealt out to the class sub-folders."""
    for number in range(num_images):
        file = folder / classes[number % len(classes)] / f"{number:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        random_image(number).save(file)
    return folder


def write_shards(folder: Path, num_images: int = 12, num_shards: int = 2) -> Path:
    """webdataset shards: 00000.png, 00000.cls and so on; class = number modulo 3."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(num_shards):
        with tarfile.open(folder / f"shard-{shard:03d}.tar", "w") as tar:
            for number in range(shard, num_images, num_shards):
                add_file(tar, f"{number:05d}.png", png_bytes(random_image(number)))
                add_file(tar, f"{number:05d}.cls", str(number % 3).encode())
    return folder


def add_file(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add one file to an open archive."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
