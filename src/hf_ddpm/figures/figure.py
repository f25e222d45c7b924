"""A figure as it leaves the mathematics, and as it is written: PNG or GIF, with its origin inside the file."""

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
    """What a figure function returns.

    picture: the PNG. tensors: what it shows, by the paper's names, float32 on the CPU, images in [-1, 1]. numbers:
    what was measured, ready for JSON; empty for a figure of images alone. sentence: the numbers in short. frames: the
    GIF, empty unless `motion` was asked for.
    """

    picture: Image
    tensors: dict[str, Tensor]
    numbers: dict[str, Any] = field(default_factory=dict)
    sentence: str = ""
    frames: tuple[Image, ...] = ()


def save_figure(figure: Figure, out: Path, origin: "Mapping[str, str]") -> list[Path]:
    """Write the picture, or the frames to a .gif, and the numbers to a .json of the same name.

    Args:
        figure: with frames if `out` is a .gif.
        out: ends in .png or .gif, in any case.
        origin: stands in the tEXt chunks of a PNG, in the comment of a GIF, and in the JSON.

    Returns:
        list: the files written.

    Raises:
        UserError: they cannot be written.
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
    """Grey frames in 16 levels, black and white among them: noise does not compress, and the file is half as large."""
    return frame.point([(value + 8) // 17 * 17 for value in range(256)]) if frame.mode == "L" else frame
