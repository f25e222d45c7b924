"""Only images on the grid, of the network's shape, are measured; what is off is one sentence."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_ddpm.data import ImageData, to_float
from hf_ddpm.errors import UserError
from hf_ddpm.likelihood import Network, draw_images, grid_images


@pytest.mark.parametrize("bit_depth", [1, 4, 8, 16])
def test_levels_come_back_exactly(bit_depth):
    largest = 2**bit_depth - 1
    levels = torch.randint(0, largest + 1, (3, 2, 5, 5))
    for x in ((2 * levels.double() / largest - 1), (levels.float() / (largest / 2) - 1)):
        images = grid_images(x, bit_depth=bit_depth)
        assert torch.equal(images.levels, levels.int())
        assert torch.equal(images.x_0(torch.arange(3)), (2 * levels.double() - largest) / largest)
    assert images.bin_width == 2 / largest


@pytest.mark.parametrize(
    ("x_0", "options", "sentence"),
    [
        (torch.zeros(2, 1, 4, 4), {}, "image 0 contains 0.0, which is not .* 256 levels 2 k / 255 - 1 for bit_depth=8"),
        (torch.full((1, 1, 2, 2), 1 / 255 + 3e-7), {}, "not one of the 256 levels"),
        (to_float(torch.full((1, 1, 2, 2), 7, dtype=torch.uint16)), {}, "not one of the 256 levels"),
        (torch.full((1, 1, 2, 2), 1.5), {}, r"from 1.5 to 1.5, outside \[-1, 1\]"),
        (torch.full((1, 1, 2, 2), torch.nan), {}, "outside"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.uint8), {}, "images must be a float32 or float64 tensor, not torch.uint8"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16), {}, "images must be .*, not torch.bfloat16"),
        (np.zeros((1, 1, 2, 2)), {}, "images must be .*, not ndarray"),
        (torch.ones(1, 2, 2), {}, r"images have shape \(1, 2, 2\)"),
        (torch.ones(0, 1, 2, 2), {}, r"images have shape \(0, 1, 2, 2\)"),
        (torch.ones(1, 1, 2, 2), {"bit_depth": 32}, "bit_depth=32 must be an integer from 1 to 16"),
        (torch.ones(2, 1, 2, 2), {"labels": torch.zeros(3).long()}, r"labels have shape \(3,\), but need \(2,\)"),
        (torch.ones(2, 1, 2, 2), {"indices": torch.tensor([4, 4])}, r"must be different integers of shape \(2,\)"),
    ],
)
def test_what_is_off(x_0, options, sentence):
    with pytest.raises(UserError, match=sentence) as stop:
        grid_images(x_0, **options)
    assert "\n" not in str(stop.value)


def test_bilinear_resizing_of_floats_is_caught():
    x_0 = to_float(torch.randint(0, 256, (1, 1, 8, 8), dtype=torch.uint8))
    smaller = torch.nn.functional.interpolate(x_0, size=6, mode="bilinear")
    with pytest.raises(UserError, match="resize before rounding to integers, never after"):
        grid_images(smaller)


@pytest.fixture
def folder(tmp_path):
    """Ten 16-bit images of 12x12."""
    draw = np.random.default_rng(0)
    for i in range(10):
        Image.fromarray(draw.integers(0, 65536, (12, 12), dtype=np.uint16)).save(tmp_path / f"{i}.png")
    return str(tmp_path)


def test_a_draw_is_a_fixed_part_of_the_data_at_its_own_depth(folder):
    data = ImageData(folder, image_size=8, cache="none")
    four, six = draw_images(data, 4, seed=1), draw_images(data, 6, seed=1)
    assert four.bit_depth == 16 and four.levels.max() > 255 and four.levels.shape == (4, 1, 8, 8)
    assert torch.equal(six.indices[:4], four.indices) and torch.equal(six.levels[:4], four.levels)
    assert len(six.indices.unique()) == 6
    assert not torch.equal(draw_images(data, 4, seed=2).indices, four.indices)


def test_more_images_than_there_are(folder):
    with pytest.raises(UserError, match=r"11 images are requested, but .* has 10: use another split"):
        draw_images(ImageData(folder, image_size=8), 11, seed=0)
    with pytest.raises(UserError, match="is a stream, from which no fixed set can be drawn"):
        draw_images(ImageData(folder, image_size=8, streaming=True), 2, seed=0)


@pytest.mark.parametrize(
    ("shape", "labels", "unet", "sentence"),
    [
        ((3, 8, 8), None, {}, r"the images have 3 channel\(s\), but the network needs 1"),
        ((1, 8, 12), None, {}, "the images are 8x12, but the network was trained on 8x8"),
        ((1, 8, 8), torch.tensor([0, 1]), {}, "must be omitted: this network was trained without classes"),
        ((1, 8, 8), None, {"num_class_embeds": 3}, "trained with 3 classes: pass the images' labels"),
        ((1, 8, 8), torch.tensor([0, 3]), {"num_class_embeds": 3}, r"labels 0..3 must lie within 0..2"),
    ],
)
def test_images_that_do_not_fit_the_network(shape, labels, unet, sentence, make_pipeline, random_images):
    pipeline = make_pipeline(**unet)
    with pytest.raises(UserError, match=sentence):
        Network(pipeline.unet, pipeline.scheduler).check(random_images(2, shape, labels=labels))


def test_another_scheduler_is_refused(make_pipeline):
    from diffusers import DPMSolverMultistepScheduler

    with pytest.raises(UserError, match="the checkpoint's scheduler is DPMSolverMultistepScheduler"):
        Network(make_pipeline().unet, DPMSolverMultistepScheduler())
