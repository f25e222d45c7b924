"""Every mode becomes the wanted channels with the right values; sizes are fitted on the integer grid."""

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from image_files import chunk, png_bytes, random_image, sixteen_bit_rgb_png
from PIL import Image

from hf_ddpm.data.decode import (
    COMPOSITED,
    FIRST_PAGE,
    LUMINANCE,
    NOT_TURNED,
    REPEATED,
    UPPER_BYTE,
    ImageDecoder,
    UndecodableError,
    without_metadata,
)
from hf_ddpm.data.raw import crops

RED, GREY = (255, 0, 0), 100
RED_LUMINANCE = 76  # 255 * 0.299


def stored(image: Image.Image, file_format: str = "PNG", **options: object) -> dict[str, object]:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return {"bytes": file.getvalue(), "path": None}


def first_pixel(image: dict[str, object], channels: int) -> list[int]:
    decoded = ImageDecoder((4, 4), channels)(image).pixels
    assert decoded.shape == (channels, 4, 4)
    return decoded[:, 0, 0].tolist()


def palette(transparent: bool) -> dict[str, object]:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 255, 0, *RED])
    return stored(image, **({"transparency": 1} if transparent else {}))


IMAGES = {
    "1": stored(Image.new("1", (4, 4), 1)),
    "L": stored(Image.new("L", (4, 4), GREY)),
    "LA": stored(Image.new("LA", (4, 4), (GREY, 0))),
    "RGB": stored(Image.new("RGB", (4, 4), RED)),
    "RGBA": stored(Image.new("RGBA", (4, 4), (*RED, 0))),
    "P": palette(transparent=False),
    "P transparent": palette(transparent=True),
    "L transparent": stored(Image.new("L", (4, 4), GREY), transparency=GREY),
    "CMYK": stored(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF"),
}
EXPECTED = {
    "1": {1: [255], 2: [255, 255], 3: [255] * 3, 4: [255] * 4},
    "L": {1: [GREY], 2: [GREY, 255], 3: [GREY] * 3, 4: [GREY] * 3 + [255]},
    "LA": {1: [255], 2: [GREY, 0], 3: [255] * 3, 4: [GREY] * 3 + [0]},
    "RGB": {1: [RED_LUMINANCE], 2: [RED_LUMINANCE, 255], 3: [*RED], 4: [*RED, 255]},
    "RGBA": {1: [255], 2: [RED_LUMINANCE, 0], 3: [255] * 3, 4: [*RED, 0]},
    "P": {1: [RED_LUMINANCE], 2: [RED_LUMINANCE, 255], 3: [*RED], 4: [*RED, 255]},
    "P transparent": {1: [255], 2: [RED_LUMINANCE, 0], 3: [255] * 3, 4: [*RED, 0]},
    "L transparent": {1: [255], 2: [GREY, 0], 3: [255] * 3, 4: [GREY] * 3 + [0]},
    "CMYK": {1: [RED_LUMINANCE], 2: [RED_LUMINANCE, 255], 3: [*RED], 4: [*RED, 255]},
}


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("mode", IMAGES)
def test_every_mode_becomes_every_channel_count(mode: str, channels: int) -> None:
    assert first_pixel(IMAGES[mode], channels) == EXPECTED[mode][channels]


def test_half_transparent_is_mixed_with_white() -> None:
    assert first_pixel(stored(Image.new("RGBA", (4, 4), (0, 0, 0, 51))), 3) == [204] * 3  # 255 * (1 - 51 / 255)


@pytest.mark.parametrize(
    ("mode", "channels", "notes"),
    [("L", 3, (REPEATED,)), ("RGB", 1, (LUMINANCE,)), ("RGBA", 3, (COMPOSITED,)), ("RGB", 3, ()), ("L", 1, ())],
)
def test_what_changes_an_image_is_noted(mode: str, channels: int, notes: tuple[str, ...]) -> None:
    assert ImageDecoder((4, 4), channels)(IMAGES[mode]).notes == notes


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_neither_clipped_nor_cut(file_format: str) -> None:
    grey = np.array([[0, 255, 256, 300], [1000, 30000, 65280, 65535]], dtype=np.uint16)
    decoded = ImageDecoder((2, 4), 1)(stored(Image.fromarray(grey), file_format)).pixels
    assert decoded.dtype == np.uint16
    assert np.array_equal(decoded[0], grey)


def test_sixteen_bit_grey_fills_the_other_channel_counts() -> None:
    image = stored(Image.fromarray(np.full((4, 4), 700, dtype=np.uint16)))
    assert [first_pixel(image, channels) for channels in (2, 3, 4)] == [[700, 65535], [700] * 3, [700] * 3 + [65535]]


def test_thirty_two_bit_integers_are_sixteen_bits_or_refused() -> None:
    fine, wild = (Image.fromarray(np.full((4, 4), value, dtype=np.int32)) for value in (40000, 70000))
    assert first_pixel(stored(fine, "TIFF"), 1) == [40000]
    with pytest.raises(UndecodableError, match=r"70000\.\.70000 are outside 0\.\.65535"):
        ImageDecoder((4, 4), 1)(stored(wild, "TIFF"))


def test_floating_point_images_are_refused() -> None:
    with pytest.raises(UndecodableError, match="floating-point values"):
        ImageDecoder((4, 4), 1)(stored(Image.new("F", (4, 4), 0.5), "TIFF"))


def test_sixteen_bit_colour_is_said_to_lose_its_lower_byte() -> None:
    image = {"bytes": sixteen_bit_rgb_png(np.full((4, 4, 3), 0x1280, dtype=np.uint16)), "path": None}
    decoded = ImageDecoder((4, 4), 3)(image)
    assert decoded.notes == (UPPER_BYTE,)
    assert decoded.pixels.max() == 0x12


def test_exif_orientation_is_applied() -> None:
    upright = random_image(0, (6, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored a quarter turn to the left; shown turned to the right
    turned = stored(upright.transpose(Image.Transpose.ROTATE_90), exif=exif)
    assert np.array_equal(ImageDecoder((4, 6), 3)(turned).pixels, np.moveaxis(np.asarray(upright), -1, 0))


def test_bytes_paths_and_dicts_are_the_same_image(tmp_path: Path) -> None:
    image = random_image(1, (4, 4))
    image.save(tmp_path / "a.png")
    decoder, content, path = ImageDecoder((4, 4), 3), png_bytes(image), str(tmp_path / "a.png")
    forms = [content, path, {"bytes": content, "path": "elsewhere.png"}, {"bytes": None, "path": path}]
    for form in forms:
        assert np.array_equal(decoder(form).pixels, np.moveaxis(np.asarray(image), -1, 0))


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (b"no image at all", "not an image that Pillow recognises"),
        (png_bytes(random_image(0, (64, 64)))[:900], "truncated|broken"),
        (b"", "not an image that Pillow recognises"),
        (None, "missing"),
        ({"bytes": None, "path": None}, "missing"),
        ("/nowhere/at/all.png", "No such file"),
    ],
)
def test_what_cannot_be_decoded_has_a_reason(broken: object, reason: str) -> None:
    with pytest.raises(UndecodableError, match=reason):
        ImageDecoder((4, 4), 3)(broken)


def columns_image() -> Image.Image:
    """6 wide, 4 high; the pixel in column c is 10 c."""
    return Image.fromarray(np.tile(np.arange(6, dtype=np.uint8) * 10, (4, 1)))


def decode_columns(resize: str, size: tuple[int, int], **options: object) -> np.ndarray:
    return ImageDecoder(size, 1, resize, **options)(stored(columns_image())).pixels[0]


def test_crop_takes_the_centre_and_touches_no_pixel_at_scale_one() -> None:
    assert decode_columns("crop", (4, 4)).tolist() == [[10, 20, 30, 40]] * 4


def test_random_crop_reaches_both_ends_and_the_centre_without_a_draw() -> None:
    decoder, image = ImageDecoder((4, 4), 1, "random_crop"), stored(columns_image())
    firsts = [int(decoder(image, (u, 0.5, 0.0)).pixels[0, 0, 0]) for u in (0.0, 0.33, 0.34, 0.67, 0.999)]
    assert firsts == [0, 0, 10, 20, 20]
    assert decoder(image).pixels[0, 0, 0] == 10


@pytest.mark.parametrize("bits", [8, 16])
def test_a_smaller_random_crop_is_a_part_of_the_image_scaled_up(bits: int) -> None:
    """As ADM has it: the shorter side becomes 32 / 0.8 = 40 pixels, of which 32 are cut out, k pixels from the edge."""
    grey = np.asarray(random_image(5, (32, 32), "L"))
    image = Image.fromarray(grey if bits == 8 else grey.astype(np.uint16) * 257)
    decoder = ImageDecoder((32, 32), 1, "random_crop", crop_scale=(0.8, 0.8))
    scaled = ImageDecoder((40, 40), 1)(stored(image)).pixels
    for k in (0, 3, 7):
        pixels = decoder(stored(image), (k / 8, (7 - k) / 8, 0.5)).pixels
        assert pixels.dtype == scaled.dtype == {8: np.uint8, 16: np.uint16}[bits]
        error = pixels.astype(int) - scaled[:, 7 - k : 39 - k, k : k + 32]
        assert np.abs(error).max() <= 1  # Pillow knows places to a millionth of a pixel
    assert np.array_equal(decoder(stored(image)).pixels[0], np.asarray(image))  # without a draw: the largest, untouched


def test_the_sizes_and_places_of_random_crops_are_uniform() -> None:
    """Of two ramps, which resizing leaves ramps: their slope tells the size, and their height the place."""
    width, height, count = 24, 40, 200
    y, x = np.mgrid[:height, :width].astype(np.uint16) * 1500
    decoder = ImageDecoder((16, 16), 1, "random_crop", crop_scale=(0.5, 0.9))
    draws = crops(seed=0, first=0, count=count)
    found = []
    for crop in draws:
        x_seen, y_seen = (decoder(stored(Image.fromarray(ramp), "TIFF"), crop).pixels[0] / 1500 for ramp in (x, y))
        first, last = (np.array([x_seen[:, i].mean(), y_seen[i].mean()]) for i in (5, 10))
        pixel = (last - first) / 5  # of the crop, in those of the image; the filter does not see its edges here
        left, top = first + 0.5 - 5.5 * pixel
        zoom = width / (16 * pixel[0])  # of the shorter side
        found.append((left / (width - 16 * pixel[0]), top / (height - 16 * pixel[1]), (zoom - 1 / 0.9) / (2 - 1 / 0.9)))
    assert np.abs(np.array(found) - draws).max() < 1e-2  # across, down, size
    assert np.abs(np.mean(found, axis=0) - 0.5).max() < 4 / np.sqrt(12 * count)  # four standard errors
    assert np.min(found, axis=0).max() < 0.03 and np.max(found, axis=0).min() > 0.97


def test_pad_centres_on_black_and_never_enlarges() -> None:
    padded = decode_columns("pad", (8, 8))
    assert padded[2:6, 1:7].tolist() == [[0, 10, 20, 30, 40, 50]] * 4
    assert padded.sum() == 4 * 150
    assert decode_columns("pad", (4, 4)).shape == (4, 4)


def test_crop_box_is_cut_before_resizing_and_checked() -> None:
    assert decode_columns("crop", (2, 2), crop_box=(3, 1, 5, 3)).tolist() == [[30, 40]] * 2
    with pytest.raises(UndecodableError, match="is not inside its 6x4 pixels"):
        decode_columns("crop", (2, 2), crop_box=(3, 1, 7, 3))


@pytest.mark.parametrize("resize", ["crop", "pad", "stretch", "random_crop"])
@pytest.mark.parametrize("mode", ["L", "I;16", "RGBA"])
def test_a_flat_image_stays_flat_at_any_size(resize: str, mode: str) -> None:
    flat = {"L": 77, "I;16": 40001, "RGBA": (9, 80, 200, 255)}[mode]
    channels = 4 if mode == "RGBA" else 1
    image = stored(Image.new(mode, (31, 17), flat), "TIFF")
    pixels = ImageDecoder((8, 13), channels, resize)(image).pixels
    inside = pixels[:, 4, :]  # "pad" has bars above and below
    assert inside.reshape(channels, -1).T.tolist() == [list(np.atleast_1d(flat))] * 13


def test_shrinking_is_antialiased() -> None:
    stripes = Image.fromarray(np.tile(np.array([0, 255], dtype=np.uint8), (64, 32)))
    small = ImageDecoder((8, 8), 1)(stored(stripes)).pixels
    assert np.abs(small[0, :, 1:-1].astype(int) - 127).max() <= 4  # without antialiasing: 0 or 255


def test_sixteen_bit_resizing_agrees_with_eight_bits_and_keeps_the_depth() -> None:
    grey = random_image(3, (32, 24), "L")
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    small, deep = (ImageDecoder((9, 11), 1)(stored(image)).pixels for image in (grey, wide))
    assert deep.dtype == np.uint16
    assert np.abs(deep / 257 - small).max() < 1.01  # eight bits are rounded twice
    assert np.unique(deep % 257).size > 10


@pytest.mark.parametrize("layout", ["hwc", "chw"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_arrays_may_have_any_number_of_channels(layout: str, dtype: str) -> None:
    array = np.random.default_rng(0).integers(0, 200, (7, 4, 6)).astype(dtype)
    given = np.moveaxis(array, 0, -1) if layout == "hwc" else array
    decoder = ImageDecoder((4, 6), 7, array_dtype=dtype)
    assert np.array_equal(decoder(given.tolist()).pixels, array)
    with pytest.raises(UndecodableError, match=r"does not have 5 channel\(s\)"):
        ImageDecoder((4, 6), 5, array_dtype=dtype)(given)


def segment(marker: int, content: bytes) -> bytes:
    """A segment of a JPEG file."""
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


BESIDE_PNG = {
    "EXIF of another size": chunk(b"eXIf", b"\0\x08\0\x02\x01\x12\0\x03"),
    "a profile that is none": chunk(b"iCCP", b"name\0\0no deflate"),
    "a text that inflates without end": chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(2**26))),
    "a wrong checksum": chunk(b"tEXt", b"key\0words")[:-4] + b"\0\0\0\0",
    "a physical size of no length": chunk(b"pHYs", b""),
    "an unknown chunk": chunk(b"prVt", b"\xff" * 100),
}
BESIDE_JPEG = {
    "EXIF of nothing": segment(0xE1, b"Exif\0\0"),
    "EXIF that points beyond": segment(0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff\0\1\x01\x12"),
    "a profile in parts that are missing": segment(0xE2, b"ICC_PROFILE\0\x02\x09ab"),
    "a resource of Photoshop cut short": segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\0"),
    "a comment in no encoding": segment(0xFE, b"\xff\xff"),
    "several frames of which one is there": segment(0xE2, b"MPF\0MM\0*\xff\xff\xff\xff"),
}


@pytest.mark.parametrize("beside", BESIDE_PNG)
def test_what_stands_beside_the_pixels_of_a_png_does_not_stop_them(beside: str) -> None:
    whole = png_bytes(random_image(0))
    expected = ImageDecoder((8, 8), 3)({"bytes": whole}).pixels
    damaged = whole[:33] + BESIDE_PNG[beside] + whole[33:]
    decoded = ImageDecoder((8, 8), 3)({"bytes": damaged})
    assert np.array_equal(decoded.pixels, expected)
    assert {*decoded.notes} <= {NOT_TURNED}


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("beside", BESIDE_JPEG)
def test_what_stands_beside_the_pixels_of_a_jpeg_does_not_stop_them(beside: str, mode: str) -> None:
    file = io.BytesIO()
    random_image(0, mode=mode).save(file, "JPEG")
    whole = file.getvalue()
    damaged = whole[:2] + BESIDE_JPEG[beside] + whole[2:]
    expected = ImageDecoder((8, 8), 3)({"bytes": whole}).pixels
    assert np.array_equal(ImageDecoder((8, 8), 3)({"bytes": damaged}).pixels, expected)
    assert np.array_equal(ImageDecoder((8, 8), 3)({"bytes": without_metadata(damaged)}).pixels, expected)


def test_damaged_pixels_stay_an_error() -> None:
    for file_format in ("PNG", "JPEG"):
        file = io.BytesIO()
        random_image(0, (64, 64)).save(file, file_format)
        with pytest.raises(UndecodableError):
            ImageDecoder((8, 8), 3)({"bytes": file.getvalue()[:-200]})
    assert without_metadata(b"GIF89a") is None


@pytest.mark.parametrize("file_format", ["TIFF", "GIF", "WEBP", "PNG"])
def test_of_several_pages_the_first_is_used_and_the_others_are_mentioned(file_format: str) -> None:
    pages = [Image.new("L", (4, 4), level) for level in (255, 0, 0)]
    several = stored(pages[0], file_format, save_all=True, append_images=pages[1:])
    decoded = ImageDecoder((4, 4), 1)(several)
    assert decoded.pixels.min() >= 250 and FIRST_PAGE in decoded.notes
    one = ImageDecoder((4, 4), 1)(stored(pages[0], file_format))
    assert FIRST_PAGE not in one.notes


def test_the_preview_in_a_photo_of_a_telephone_is_no_second_page() -> None:
    pages = [Image.new("RGB", (8, 8), RED), Image.new("RGB", (4, 4), RED)]
    decoded = ImageDecoder((8, 8), 3)(stored(pages[0], "MPO", save_all=True, append_images=pages[1:]))
    assert decoded.notes == ()


def test_very_large_images_have_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    large = stored(Image.new("L", (10, 10), GREY))
    assert ImageDecoder((4, 4), 1)(large).pixels.max() == GREY  # the bound of ours, not that of this process
    assert Image.MAX_IMAGE_PIXELS == 20
    with pytest.raises(
        UndecodableError,
        match="it has 10x10 pixels, more than max_pixels=99: make it smaller, or train with a larger --max_pixels",
    ):
        ImageDecoder((4, 4), 1, max_pixels=99)(large)
