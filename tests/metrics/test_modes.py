"""Mode coverage: counts of classes, their divergence from uniform, and digits stacked in three channels."""

import math

import pytest
import torch

from hf_ddpm.data import ImageData
from hf_ddpm.errors import UserError
from hf_ddpm.evaluation.report import shown
from hf_ddpm.metrics.extractors import digit_extractor, stacked_digit_extractor
from hf_ddpm.metrics.modes import ModeCounter


def one_hot(classes, count=5):
    return torch.nn.functional.one_hot(torch.tensor(classes), count).float()


def test_modes_are_counted_and_compared_with_uniform():
    counter = ModeCounter(5)
    counter.update(one_hot([0, 0, 1, 3]))
    found = counter.modes()
    shares = [0.5, 0.25, 0.25]
    assert found.found == 3
    assert found.divergence == pytest.approx(sum(p * math.log(5 * p) for p in shares))


def test_even_images_have_no_divergence_and_one_class_has_the_largest():
    counter = ModeCounter(5)
    counter.update(one_hot([0, 1, 2, 3, 4] * 3))
    assert counter.modes() == (5, pytest.approx(0, abs=1e-12))
    one = ModeCounter(5)
    one.update(one_hot([2] * 7))
    assert one.modes() == (1, pytest.approx(math.log(5)))


def test_parts_are_merged():
    whole, *parts = (ModeCounter(5) for _ in range(3))
    logits = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    whole.update(logits)
    for part, some in zip(parts, logits.split(17), strict=True):
        part.update(some)
    parts[0].merge(parts[1])
    assert torch.equal(parts[0].counts, whole.counts)


def test_stacked_digits_are_the_digits_of_each_channel():
    data = ImageData("digits", image_size=28, channels=1, cache="none", max_images=60)
    grey = data.pixels(torch.arange(60))  # (60, 1, 28, 28)
    stacked = grey.view(20, 3, 28, 28)
    alone, together = digit_extractor()(grey), stacked_digit_extractor()(stacked)
    assert torch.equal(together.pool, alone.pool.view(20, 192))
    digits = alone.logits.argmax(dim=1).view(20, 3)
    assert torch.equal(together.logits.argmax(dim=1), digits @ torch.tensor([100, 10, 1]))
    torch.testing.assert_close(together.logits.exp().sum(dim=1), torch.ones(20))


def test_images_without_three_channels_are_no_stacked_digits():
    with pytest.raises(UserError, match=r"images of shape \(1, 28, 28\) are not stacked digits: use 3 channels"):
        stacked_digit_extractor()(torch.zeros(2, 1, 28, 28, dtype=torch.uint8))


def test_a_count_is_shown_as_one():
    count = {"name": "modes found", "type": "modes_found", "value": 7.0}
    assert shown(count) == "7" and shown({**count, "value": 7.5}) == "7.500"
