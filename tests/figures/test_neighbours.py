"""Nearest neighbours: a training image finds itself, and distances are on the scale of grey levels."""

import pytest
import torch

from hf_ddpm.data import to_float
from hf_ddpm.errors import UserError
from hf_ddpm.figures import nearest_neighbours
from hf_ddpm.figures.neighbours import digit_features, nearest, pixels


@pytest.fixture
def training():
    return torch.randint(0, 200, (1100, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_training_image_is_its_own_nearest_neighbour(training):
    distances, indices = nearest(pixels(training[1040:1043]), pixels(training), 2)
    assert indices[:, 0].tolist() == [1040, 1041, 1042]
    assert distances[:, 0].tolist() == [0, 0, 0]
    assert (distances[:, 1] > 10).all()


def test_distances_are_grey_levels(training):
    brighter = training[:3] + 12
    distances, indices = nearest(pixels(brighter), pixels(training), 1)
    assert indices[:, 0].tolist() == [0, 1, 2]
    torch.testing.assert_close(distances[:, 0], torch.full((3,), 12.0), atol=1e-3, rtol=0)


def test_a_sample_finds_itself_among_the_training_images(make_pipeline, training):
    pipeline = make_pipeline({"num_train_timesteps": 20})
    first = nearest_neighbours(pipeline, training, num_images=2, steps=5)
    memorised = torch.cat([to_float(training), first.tensors["samples"]])
    figure = nearest_neighbours(pipeline, memorised, num_images=2, steps=5)
    assert figure.tensors["indices"][:, 0].tolist() == [1100, 1101]
    assert figure.numbers["nearest"] < 0.01 < 10 < figure.numbers["training_nearest"]
    assert first.numbers["nearest"] > 10
    assert "to the nearest of 1,100 images is" in first.sentence  # which may be another split than training's


def test_digits_have_neighbours_in_features_too(make_pipeline):
    pipeline = make_pipeline({"num_train_timesteps": 20}, sample_size=28)
    digits = torch.randint(0, 256, (30, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    distances, indices = nearest(digit_features(digits[4:6]), digit_features(digits), 1)
    assert indices[:, 0].tolist() == [4, 5] and distances.max() < 1e-3
    assert nearest_neighbours(pipeline, digits, num_images=1, steps=2).picture.width > 10 * 56


def test_training_images_of_another_size(make_pipeline, training):
    with pytest.raises(UserError, match=r"^images of shape .* must be at least 2 images of shape \(1, 8, 8\)"):
        nearest_neighbours(make_pipeline(), training[:, :, :4])
