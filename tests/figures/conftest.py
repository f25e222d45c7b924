"""Pipelines of 20 to 100 steps for figures: exact denoisers of Gaussian data, and random networks."""

import pytest
import torch

M, S = 0.1, 0.3  # of every pixel


@pytest.fixture
def gaussian(make_gaussian_pipeline):
    """A pipeline whose network knows the truth for independent pixels N(mean, S^2): scheduler keywords -> pipeline."""

    def make(mean=M, **scheduler):
        return make_gaussian_pipeline(mean, S, **{"num_train_timesteps": 100, "beta_schedule": "cosine"} | scheduler)

    return make


@pytest.fixture
def pictures():
    """Images of Gaussian pixels: (how many, mean) -> (B, 1, 8, 8)."""

    def make(count=4, mean=M):
        noise = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(7))
        return (mean + S * noise).clamp(-1, 1)

    return make
