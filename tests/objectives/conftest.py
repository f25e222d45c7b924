"""A model that answers as it is told, and a batch to ask it about."""

import pytest
import torch
from torch import Tensor, nn


class Answer(nn.Module):
    """A model that always answers `value`, and remembers what it was asked."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value, self.calls = value, 0

    def forward(self, x_t, t, class_labels=None):
        self.asked, self.calls = (x_t, t, class_labels), self.calls + 1
        return type("Output", (), {"sample": self.value})


@pytest.fixture
def says():
    """A value -> the model that answers it."""
    return Answer


@pytest.fixture
def make_batch():
    """x_0 on the grid of 8-bit levels, t >= 1 and noise, each of `size`."""

    def make(size: int = 6, num_steps: int = 1000):
        g = torch.Generator().manual_seed(0)
        x_0 = torch.randint(256, (size, 2, 4, 4), generator=g).double() / 127.5 - 1
        noise = torch.randn(size, 2, 4, 4, generator=g, dtype=torch.float64)
        return x_0, torch.randint(1, num_steps - 1, (size,), generator=g), noise

    return make
