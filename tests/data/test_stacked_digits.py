"""Stacked digits: each digit once in each channel, the same ones every time."""

import torch

from hf_ddpm.data import ImageData
from hf_ddpm.data.sources import open_source, origin_of


def pixels(source, channels):
    data = ImageData(source, image_size=28, channels=channels, cache="none")
    return data.pixels(torch.arange(data.num_images))


def test_every_digit_is_once_in_each_channel():
    grey, stacked = pixels("digits", 1), pixels("stacked-digits", 3)
    assert stacked.shape == (len(grey), 3, 28, 28)
    wanted = sorted(map(bytes, grey.flatten(1).numpy()))
    for channel in range(3):
        assert sorted(map(bytes, stacked[:, channel].flatten(1).numpy())) == wanted
    assert (stacked[:, 0] == stacked[:, 1]).all(dim=(1, 2)).float().mean() < 0.01  # they meet at random


def test_they_ship_with_the_package_and_are_the_same_every_time():
    assert origin_of("stacked-digits") == "package"
    one, other = (open_source("stacked-digits", split="train[:3]").rows for _ in range(2))
    assert [image.tobytes() for image in one["image"]] == [image.tobytes() for image in other["image"]]
