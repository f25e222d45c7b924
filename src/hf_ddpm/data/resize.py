"""Fit an image to the model's size: the position of the window, and antialiased resampling by Pillow."""

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from PIL import Image

Resize = Literal["crop", "pad", "stretch", "random_crop", "none"]
Crop = tuple[float, float, float]  # of a random crop, each in [0, 1): its position across and down, its size
CropScale = tuple[float, float]  # the smallest and largest side of a random crop, as fractions of the largest
LARGEST: CropScale = (1.0, 1.0)


class Window(NamedTuple):
    """The part of the source (left, top, right, bottom), its final (width, height), and its position in the result."""

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
    """Return the image in the size `image_size` = (H, W) and in the same mode, unchanged if its size already fits.

    "crop": Scale it to cover the target, and crop the centre. "random_crop": The same, but crop at `crop`, or the
    centre if it is None; a `crop_scale` below 1 first scales the image up further, even if its size fits. "stretch":
    Scale both sides. "pad": Scale it down if it is too large, never up, and centre it on zeros (black, transparent).
    "none": An image of another size is an error. Pillow's bicubic filter is antialiased when it scales down. Raises
    `ValueError` for a `crop_box` outside the image, and for "none" if the size does not fit.
    """
    from PIL import Image

    if crop_box is not None:
        image = _cut(image, crop_box)
    height, width = image_size
    zoom = 1.0 if resize != "random_crop" or crop is None else _zoom(crop_scale, crop[2])
    if image.size == (width, height) and zoom == 1:
        return image
    if resize == "none":
        found, wanted = f"{image.height}x{image.width}", f"{height}x{width}"
        raise ValueError(f"it has {found} pixels, but must have {wanted}: use another resize, such as crop")
    window = _window(image.size, (width, height), resize, crop, zoom)
    fitted = image.resize(window.size, Image.Resampling.BICUBIC, box=window.box)
    if window.size == (width, height):
        return fitted
    canvas = Image.new(image.mode, (width, height), 0)
    canvas.paste(fitted, window.corner)
    return canvas


def _zoom(crop_scale: CropScale, u: float) -> float:
    """Return the scaled image's size relative to the target: uniform in [1 / high, 1 / low] for uniform u in [0, 1).

    ADM's classifiers are trained like this (Dhariwal & Nichol 2021, arXiv 2105.05233, sec. 4), except that their code
    rounds sizes and positions to whole pixels of the scaled image.
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
    else:  # whole pixels, so that an image that is not scaled keeps its own
        left, top = int((int(width - across) + 1) * crop[0]), int((int(height - down) + 1) * crop[1])
    return Window((left, top, left + across, top + down), target, (0, 0))


def _cut(image: "Image.Image", box: tuple[int, int, int, int]) -> "Image.Image":
    left, top, right, bottom = box
    if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
        raise ValueError(
            f"crop_box {box} is not inside its {image.width}x{image.height} pixels: use another "
            "one, or none (null in a recipe, --crop-box none in a command)"
        )
    return image.crop(box)
