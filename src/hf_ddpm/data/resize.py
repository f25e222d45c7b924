"""Fit an image into the model's size: where the window lies, and antialiased resampling by Pillow."""

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from PIL import Image

Resize = Literal["crop", "pad", "stretch", "random_crop", "none"]
Crop = tuple[float, float, float]  # the draws of a random crop, each in [0, 1): its place across and down, its size
CropScale = tuple[float, float]  # the least and the largest side of a random crop, of the largest that fits
LARGEST: CropScale = (1.0, 1.0)


class Window(NamedTuple):
    """The part of the source (left, top, right, bottom), the (width, height) it becomes, and where that is put."""

    box: tuple[float, float, float, float]
    size: tuple[int, int]
    corner: tuple[int, int]


def fit(
    image: "Image.Image",
    image_size: tuple[int, int],
    resize: Resize,
    crop: Crop | None = None,
    crop_box: tuple[int, int, int, int] | None = None,
    crop_scale: CropScale = LARGEST,
) -> "Image.Image":
    """The image in `image_size` = (H, W), same mode; untouched where its size already fits.

    "crop": scaled to cover the target, centre cut out. "random_crop": the same, cut at `crop`, or the centre when None;
    a `crop_scale` below 1 first scales it up further, even an image whose size fits. "stretch": both sides scaled.
    "pad": scaled down where too large, never up, and centred on zeros (black, transparent). "none": an image of another
    size is an error. Pillow's bicubic filter is antialiased when it scales down. Raises `ValueError` for a `crop_box`
    outside the image, and for "none".
    """
    from PIL import Image

    if crop_box is not None:
        image = _cut(image, crop_box)
    height, width = image_size
    zoom = 1.0 if resize != "random_crop" or crop is None else _zoom(crop_scale, crop[2])
    if image.size == (width, height) and zoom == 1:
        return image
    if resize == "none":
        raise ValueError(f"it has {image.height}x{image.width} pixels where {height}x{width} are asked for")
    window = _window(image.size, (width, height), resize, crop, zoom)
    fitted = image.resize(window.size, Image.Resampling.BICUBIC, box=window.box)
    if window.size == (width, height):
        return fitted
    canvas = Image.new(image.mode, (width, height), 0)
    canvas.paste(fitted, window.corner)
    return canvas


def _zoom(crop_scale: CropScale, u: float) -> float:
    """How much larger than the target the scaled image is: uniform in [1 / high, 1 / low] for u uniform in [0, 1).

    As the classifiers of ADM are trained (Dhariwal & Nichol 2021, arXiv 2105.05233, sec. 4), but that their code rounds
    sizes and places to whole pixels of the scaled image.
    """
    least, most = 1 / crop_scale[1], 1 / crop_scale[0]
    return least + (most - least) * u


def _window(source: tuple[int, int], target: tuple[int, int], resize: Resize, crop: Crop | None, zoom: float) -> Window:
    (width, height), (wide, high) = source, target
    if resize == "stretch":
        return Window((0, 0, width, height), target, (0, 0))
    if resize == "pad":
        scale = min(1.0, wide / width, high / height)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        return Window((0, 0, width, height), size, ((wide - size[0]) // 2, (high - size[1]) // 2))
    scale = zoom * max(wide / width, high / height)
    across, down = min(wide / scale, width), min(high / scale, height)  # size of the window in source pixels
    if crop is not None and zoom > 1:
        left, top = (width - across) * crop[0], (height - down) * crop[1]
    elif resize == "crop" or crop is None:
        left, top = int((width - across) / 2), int((height - down) / 2)
    else:  # by whole pixels: an image that is not scaled keeps its own
        left, top = int((int(width - across) + 1) * crop[0]), int((int(height - down) + 1) * crop[1])
    return Window((left, top, left + across, top + down), target, (0, 0))


def _cut(image: "Image.Image", box: tuple[int, int, int, int]) -> "Image.Image":
    left, top, right, bottom = box
    if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
        raise ValueError(f"crop_box {box} does not lie inside its {image.width}x{image.height} pixels")
    return image.crop(box)
