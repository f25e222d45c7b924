"""The result of a figure function, and how it is saved: as PNG or GIF, with its origin inside the file."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL.Image import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from hf_ddpm.checkpoint import writing

if TYPE_CHECKING:
    from collections.abc import Mapping

FRAME_MS, LAST_FRAME_MS = 100, 1500


@dataclass(frozen=True)
class Figure:
    """The result of a figure function.

    picture: the image for the PNG. tensors: the data that it shows, with the paper's names, float32 on the CPU, images
    in [-1, 1]. numbers: the measured values, ready for JSON; empty for a figure that only shows images. sentence: a
    summary of the numbers. frames: the frames of the GIF, empty unless `motion` was requested.
    """

    picture: Image
    tensors: dict[str, Tensor]
    numbers: dict[str, Any] = field(default_factory=dict)
    sentence: str = ""
    frames: tuple[Image, ...] = ()


def save_figure(figure: Figure, out: Path, origin: "Mapping[str, str]") -> list[Path]:
    """Write the picture, or the frames to a .gif file, and the numbers to a .json file with the same name.

    Args:
        figure: The figure, with frames if `out` is a .gif file.
        out: The file, which ends with .png or .gif in lower or upper case.
        origin: The origin, which is written to the tEXt chunks of a PNG, to the comment of a GIF, and to the JSON.

    Returns:
        list: The files that were written.

    Raises:
        UserError: If the files cannot be written.
    """
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix.lower() == ".gif":
            _save_gif(figure.frames, out, "; ".join(f"{key}: {value}" for key, value in origin.items()))
        else:
            chunks = PngInfo()
            for key, value in origin.items():
                chunks.add_text(key, value)
            figure.picture.save(out, pnginfo=chunks, optimize=True)
        if not figure.numbers:
            return [out]
        table = out.with_suffix(".json")
        table.write_text(json.dumps({**origin, **figure.numbers}, indent=1) + "\n")
    return [out, table]


def _save_gif(frames: tuple[Image, ...], out: Path, comment: str) -> None:
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    first, *rest = (_coarser(frame) for frame in frames)
    first.save(out, save_all=True, append_images=rest, duration=durations, loop=0, comment=comment.encode())


def _coarser(frame: Image) -> Image:
    """Reduce grey frames to 16 levels, including black and white: noise compresses badly, and this halves the file."""
    return frame.point([(value + 8) // 17 * 17 for value in range(256)]) if frame.mode == "L" else frame
