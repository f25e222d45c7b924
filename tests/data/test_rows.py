"""Single rows of a data set, and images that are held back from training."""

import numpy as np
import pytest
import torch
from image_files import random_image, write_folder
from PIL import Image

from hf_ddpm.data import ImageData, to_uint8
from hf_ddpm.errors import UserError


def test_rows_are_the_images_of_the_batches():
    data = ImageData("digits", label_column="auto", max_images=40, horizontal_flip=False)
    batch = next(data.batches(batch_size=10, seed=3))
    assert torch.equal(data.pixels(batch.indices), to_uint8(batch.x_0))
    assert torch.equal(data.labels(batch.indices), batch.labels)
    assert ImageData("digits").labels(torch.tensor([0])) is None


def test_rows_that_cannot_be_had(tmp_path):
    folder = write_folder(tmp_path / "images")
    stream = ImageData(str(folder), image_size=8, channels=3, streaming=True)
    with pytest.raises(UserError, match="is a stream, whose images are not numbered: set streaming to false"):
        stream.pixels(torch.tensor([0]))
    (folder / "dog" / "zz.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"image 12 .* cannot be used: .*zz.png"):
        ImageData(str(folder), image_size=8, channels=3).pixels(torch.tensor([0, 12]))
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(folder / "dog" / "zz.png")
    with pytest.raises(UserError, match=r"image 12 .* has 16 bits, but must have 8"):
        ImageData(str(folder), image_size=8, channels=3).pixels(torch.tensor([12]))


def test_a_size_that_must_fit(tmp_path):
    folder = write_folder(tmp_path / "images")
    data = ImageData(str(folder), image_size=8, channels=3, resize="none")
    assert data.pixels(torch.arange(12)).shape == (12, 3, 8, 8)
    random_image(0, (8, 9)).save(folder / "dog" / "zz.png")
    with pytest.raises(UserError, match="it has 9x8 pixels, but must have 8x8"):
        next(ImageData(str(folder), image_size=8, channels=3, resize="none").batches(batch_size=13, seed=0))


def test_images_that_are_held_back_are_the_others():
    """Drawn from all of the data set, always the same ones, and never among those that are trained on."""
    every = ImageData("digits", max_images=200)
    rest, held = (ImageData("digits", max_images=200, held_back=50, part=part) for part in ("rest", "held_back"))
    again = ImageData("digits", max_images=200, held_back=50, part="held_back")
    assert (rest.num_images, held.num_images) == (150, 50)
    images = [{one.numpy().tobytes() for one in d.pixels(torch.arange(d.num_images))} for d in (every, rest, held)]
    assert not images[1] & images[2] and images[1] | images[2] == images[0]
    assert torch.equal(held.pixels(torch.arange(50)), again.pixels(torch.arange(50)))
    assert held.fingerprint == again.fingerprint != rest.fingerprint != every.fingerprint
    first = {one.numpy().tobytes() for one in every.pixels(torch.arange(50))}
    assert len(first & images[2]) < 30  # not a run of rows, which may be one class


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"held_back": -1}, "held_back is -1; it must be an integer of at least 0"),
        (
            {"held_back": 200},
            "held_back is 200; it must be less than 200, the number of images of the dataset 'digits'",
        ),
        ({"part": "held_back"}, "part is 'held_back', but held_back is 0: set held_back to the number of images"),
        ({"held_back": 5, "part": "test"}, "part is 'test'; it must be one of rest, held_back"),
        (
            {"held_back": 5, "streaming": True},
            "held_back is 5, but 'digits' is a stream, whose images are not numbered",
        ),
    ],
)
def test_what_cannot_be_held_back(options, sentence):
    with pytest.raises(UserError, match=sentence):
        ImageData("digits", max_images=200, **options)
