"""Grids, the most square one and one column for each class; and which classes are drawn."""

import numpy as np
import pytest
from PIL import Image

from hf_ddpm import HFDDPMPipeline, HFDDPMScheduler
from hf_ddpm.evaluation.images import Drawn, class_order
from hf_ddpm.sampling import image_grid, sample_images

WHITE = 255


def levels_of(grid, side=2):
    """The grey level of each tile, row by row; tiles are of one level."""
    pixels = np.asarray(grid.convert("L"))
    tiles = pixels.reshape(pixels.shape[0] // side, side, pixels.shape[1] // side, side)
    assert (tiles.min(axis=(1, 3)) == tiles.max(axis=(1, 3))).all()
    return tiles[:, 0, :, 0].tolist()


def images(count, mode="L"):
    """Image i is of grey level i."""
    return [Image.new("L", (2, 2), i).convert(mode) for i in range(count)]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA"])
def test_classes_in_turn_have_one_column_each_and_the_last_row_ends_in_white(mode):
    assert levels_of(image_grid(images(7, mode), 3)) == [[0, 1, 2], [3, 4, 5], [6, WHITE, WHITE]]
    assert levels_of(image_grid(iter(images(6, mode)), 3)) == [[0, 1, 2], [3, 4, 5]]


def test_fewer_images_than_classes_are_one_row():
    assert levels_of(image_grid(images(4), 10)) == [[0, 1, 2, 3]]


@pytest.mark.parametrize("num_classes", [None, 1, 17, 1000])
def test_without_classes_or_with_many_the_grid_is_the_most_square_one(num_classes):
    assert levels_of(image_grid(images(6), num_classes)) == [[0, 1, 2], [3, 4, 5]]
    assert image_grid(images(64), num_classes).size == (16, 16)


def test_sixteen_classes_still_have_their_columns():
    assert image_grid(images(64), 16).size == (32, 8)


@pytest.mark.parametrize("how", [None, "in-turn", "balanced"])
def test_the_class_for_no_label_is_never_drawn(how, make_pipeline):
    """What `hf-ddpm sample` and `hf-ddpm evaluate` ask the network for."""
    unet, asked = make_pipeline(num_class_embeds=4).unet, []
    pipeline = HFDDPMPipeline(unet, HFDDPMScheduler(), null_class=3)
    pipeline.set_progress_bar_config(disable=True)
    unet.register_forward_pre_hook(
        lambda _network, _arguments, keywords: asked.extend(keywords["class_labels"].tolist()), with_kwargs=True
    )
    class_of = None if how is None else class_order(how, pipeline.num_classes, seed=0)
    list(Drawn(pipeline, sample_images, 0, 5, {"num_inference_steps": 1}, class_of).pictures(range(12)))
    assert sorted(asked) == [0] * 4 + [1] * 4 + [2] * 4
