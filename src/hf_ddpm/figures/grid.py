"""Grids of images with labelled rows and columns, drawn by Pillow alone."""

from collections.abc import Collection, Sequence
from functools import cache

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hf_ddpm.data import to_uint8
from hf_ddpm.data.decode import CHANNEL_MODES
from hf_ddpm.errors import UserError

TILE = 56  # the approximate size in pixels to which a small image is enlarged
_GAP, _WIDE_GAP, _LINE, _FONT_SIZE = 2, 12, 17, 12
_WHITE, _INK = 255, 0


def tiles(x_0: Tensor) -> list[Image.Image]:
    """Convert images (B, C, H, W) in [-1, 1], clipped, to PIL images on white; small ones are enlarged n times."""
    height, width = x_0.shape[2:]
    times = max(1, round(TILE / max(height, width)))
    images = pil_images(to_uint8(x_0))
    return [_on_white(image).resize((width * times, height * times), Image.Resampling.NEAREST) for image in images]


def pil_images(pixels: Tensor) -> list[Image.Image]:
    """Convert uint8 images (B, C, H, W) to PIL images with the mode of their number of channels."""
    channels = pixels.shape[1]
    if channels not in CHANNEL_MODES:
        raise UserError(f"images with {channels} channels cannot be drawn: figures need 1, 2, 3 or 4 channels")
    arrays = pixels.permute(0, 2, 3, 1).cpu().numpy()  # (B, H, W, C)
    return [Image.fromarray(array[:, :, 0] if channels == 1 else array, CHANNEL_MODES[channels]) for array in arrays]


def labelled_grid(
    rows: Sequence[Sequence[Image.Image]],
    *,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
    title: str = "",
    wide_gaps: Collection[int] = (),
) -> Image.Image:
    """Draw tiles of equal size in rows, on white.

    Args:
        rows: The rows of tiles, of equal length.
        row_labels: Labels to the left of each row.
        column_labels: Labels above each column.
        captions: Captions below each tile, with the same shape as `rows`.
        title: A title of one line above the grid.
        wide_gaps: The indices of columns with a wider gap in front of them.
    """
    first = rows[0][0]
    left = _GAP + _widest(row_labels)
    xs = [left + c * (first.width + _GAP) + _WIDE_GAP * sum(g <= c for g in wide_gaps) for c in range(len(rows[0]))]
    top = _LINE * (bool(title) + bool(column_labels)) + _GAP
    pitch = first.height + _GAP + _LINE * bool(captions)
    size = (max(xs[-1] + first.width, left + _widest([title])) + _GAP, top + pitch * len(rows))
    canvas = Image.new(first.mode, size, _WHITE if first.mode == "L" else (_WHITE,) * 3)
    draw = ImageDraw.Draw(canvas)
    if title:
        _text(draw, title, xs[0], 0)
    for x, label in zip(xs, column_labels, strict=False):
        _text(draw, label, x, _LINE * bool(title), within=first.width)
    for r, row in enumerate(rows):
        y = top + r * pitch
        if row_labels:
            _text(draw, row_labels[r], _GAP, y + (first.height - _LINE) // 2)
        for c, tile in enumerate(row):
            canvas.paste(tile, (xs[c], y))
            if captions:
                _text(draw, captions[r][c], xs[c], y + first.height, within=first.width)
    return canvas


def transposed(columns: Sequence[Sequence[Image.Image]]) -> list[list[Image.Image]]:
    """Transpose columns of tiles to rows."""
    return [list(row) for row in zip(*columns, strict=True)]


def _on_white(image: Image.Image) -> Image.Image:
    """Return L and RGB images unchanged, LA and RGBA images composed over white."""
    if image.mode in ("L", "RGB"):
        return image
    opaque = Image.new("RGBA", image.size, (_WHITE,) * 4)
    opaque.alpha_composite(image.convert("RGBA"))
    return opaque.convert("RGB")


def _text(draw: ImageDraw.ImageDraw, text: str, x: int, y: int, within: int = 0) -> None:
    """Draw text at (x, y), or centred above or below a tile that begins there and is `within` wide."""
    space = max(0.0, within - draw.textlength(text, font=_font()))
    draw.text((x + space / 2, y + 1), text, fill=_INK if draw.mode == "L" else (_INK,) * 3, font=_font())


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_FONT_SIZE)


def _widest(labels: Sequence[str]) -> int:
    """Return the width in pixels of the longest label and the space after it, 0 without labels."""
    return max((round(_font().getlength(label)) + 8 for label in labels if label), default=0)


def stacked(*images: Image.Image) -> Image.Image:
    """Stack pictures vertically on white."""
    width, height = max(image.width for image in images), sum(image.height + _WIDE_GAP for image in images)
    canvas = Image.new("RGB", (width, height - _WIDE_GAP), (_WHITE,) * 3)
    y = 0
    for image in images:
        canvas.paste(image, (0, y))
        y += image.height + _WIDE_GAP
    return canvas
