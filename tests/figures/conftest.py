"""Pipelines of 20 to 100 steps for figures: exact denoisers of Gaussian data, and random networks."""

import pytest
import torch

M, S = 0.1, 0.3  # of every pixel


@pytest.fixture
def gaussian(make_pipeline):
    """A pipeline whose network knows the truth for independent pixels N(mean, S^2): scheduler keywords -> pipeline."""

    def make(mean=M, **scheduler):
        defaults = {"num_train_timesteps": 100, "beta_schedule": "cosine", "clip_sample": False}
        pipeline = make_pipeline(defaults | scheduler)
        abar = pipeline.scheduler.alphas_cumprod

        class Exact(type(pipeline.unet)):
            def forward(self, x, t, class_labels=None):
                a = abar[int(t)]
                eps = (1 - a).sqrt() * (x - a.sqrt() * mean) / (a * S**2 + 1 - a)
                return type("Output", (), {"sample": eps.to(x.dtype)})

        pipeline.unet.__class__ = Exact
        return pipeline

    return make


@pytest.fixture
def pictures():
    """Images of Gaussian pixels: (how many, mean) -> (B, 1, 8, 8)."""

    def make(count=4, mean=M):
        noise = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(7))
        return (mean + S * noise).clamp(-1, 1)

    return make
