"""Grids put tiles where they belong, enlarged without blur, with labels beside them and never over them."""

import numpy as np
import pytest
import torch

from hf_ddpm.errors import UserError
from hf_ddpm.figures.grid import TILE, labelled_grid, stacked, tiles, transposed


def test_tiles_are_enlarged_by_a_whole_number_and_clipped():
    x_0 = torch.linspace(-1.5, 1.5, 64).view(1, 1, 8, 8)
    tile = np.asarray(tiles(x_0)[0])
    assert tile.shape == (TILE, TILE)
    assert np.array_equal(tile, np.kron(tile[::7, ::7], np.ones((7, 7), dtype=np.uint8)))
    assert (tile.min(), tile.max()) == (0, 255)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "RGB"), (3, "RGB"), (4, "RGB")])
def test_every_kind_of_image_is_drawn(channels, mode):
    x_0 = -torch.ones(1, channels, 64, 96)
    tile = tiles(x_0)[0]
    assert (tile.mode, tile.size) == (mode, (96, 64))
    transparent = channels in (2, 4)
    assert np.asarray(tile).max() == (255 if transparent else 0)


def test_images_of_five_channels_cannot_be_drawn():
    with pytest.raises(UserError, match="images with 5 channels cannot be drawn"):
        tiles(torch.zeros(1, 5, 8, 8))


def test_the_grid_holds_its_tiles_and_labels_stay_outside():
    x_0 = torch.linspace(-1, 0.5, 6).view(6, 1, 1, 1).expand(6, 1, 8, 8)
    own = tiles(x_0)
    rows = [own[:3], own[3:]]
    bare = np.asarray(labelled_grid(rows))
    labels = {"row_labels": ["up", "down"], "column_labels": ["a", "b", "c"], "title": "all", "wide_gaps": [1]}
    labelled = np.asarray(labelled_grid(rows, **labels, captions=[["1", "2", "3"], ["4", "5", "6"]]))
    for grid in (bare, labelled):
        for tile in own:  # each grey fills exactly one tile
            assert (grid == np.asarray(tile)[0, 0]).sum() >= TILE * TILE
    assert (labelled[: 2 * 17] < 100).any() and (labelled[:, :20] < 100).any()
    assert not (bare[:2] < 255).any()


def test_transposed_and_stacked():
    a, b, c, d = tiles(torch.linspace(-1, 1, 4).view(4, 1, 1, 1).expand(4, 1, 8, 8))
    assert transposed([[a, b], [c, d]]) == [[a, c], [b, d]]
    both = stacked(a, b)
    assert both.width == TILE
    assert [both.getpixel((0, y)) for y in (0, both.height - 1)] == [(0, 0, 0), (85, 85, 85)]
