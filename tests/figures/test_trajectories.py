"""The forward process, progressive generation and shared latents, against add_noise, the sampler and closed forms."""

import numpy as np
import pytest
import torch

from hf_ddpm.errors import UserError
from hf_ddpm.figures import forward, progressive, shared_latents
from hf_ddpm.sampling import sample_images

S = 0.3  # of the pixels of the fixture `gaussian`, whose mean is 0.1


def test_forward_is_add_noise_with_one_eps_along_a_row(make_pipeline, pictures):
    pipeline, x_0 = make_pipeline(), pictures()
    shown = forward(pipeline, x_0, seed=3).tensors
    assert shown["t"].tolist() == [0, 50, 100, 200, 300, 400, 500, 600, 800, 1000]
    assert torch.equal(shown["x_t"][0], x_0)
    scheduler = pipeline.scheduler
    first = scheduler.predict_epsilon(x_0, shown["x_t"][1], 49)
    for t, x_t in zip(shown["t"][1:].tolist(), shown["x_t"][1:], strict=True):
        torch.testing.assert_close(x_t, scheduler.add_noise(x_0, first, t - 1), atol=1e-4, rtol=0)
    assert first.std() == pytest.approx(1, abs=0.1)


def test_forward_draws_other_noise_for_another_seed_and_for_each_image(make_pipeline, pictures):
    pipeline, x_0 = make_pipeline(), pictures(1).expand(2, -1, -1, -1)
    one, other = (forward(pipeline, x_0, seed=seed).tensors["x_t"][-1] for seed in (0, 1))
    assert not torch.allclose(one, other, atol=0.5)
    assert not torch.allclose(one[0], one[1], atol=0.5)


def test_progressive_ends_in_the_sample_which_is_the_one_that_sample_draws(make_pipeline):
    pipeline = make_pipeline({"num_train_timesteps": 40})
    figure = progressive(pipeline, seed=5, num_images=3, steps=20)
    shown = figure.tensors
    assert (shown["x_0"][-1] - shown["sample"]).abs().max() < 1e-6
    assert (shown["x_0"][0] - shown["sample"]).abs().max() > 1e-2
    drawn = sample_images(pipeline, range(3), seed=5, num_inference_steps=20)
    ours = ((shown["sample"][:, 0] + 1) * 127.5).round().numpy()
    assert np.abs(ours - np.stack([np.asarray(image, dtype=float) for image in drawn])).max() <= 1
    assert shown["t"].tolist() == sorted(shown["t"].tolist(), reverse=True)


def test_progressive_sees_what_the_exact_denoiser_knows(gaussian):
    """E[x_0 | x_t] at every level, of the x_t beside it; at t = T it knows the mean only."""
    pipeline = gaussian()
    shown = progressive(pipeline, num_images=2).tensors
    for t, x_t, x_0 in zip(shown["t"].tolist(), shown["x_t"], shown["x_0"], strict=True):
        a = float(pipeline.scheduler.alphas_cumprod[t - 1])
        gain = a**0.5 * S**2 / (a * S**2 + 1 - a)
        torch.testing.assert_close(x_0, 0.1 + gain * (x_t - a**0.5 * 0.1), atol=1e-3, rtol=1e-3)
    assert shown["x_0"][0].std() < 0.01 < shown["x_0"][-1].std()


def test_progressive_moves(make_pipeline):
    figure = progressive(make_pipeline({"num_train_timesteps": 100}), num_images=2, motion=True)
    assert len(figure.frames) == 32
    assert len({frame.size for frame in figure.frames}) == 1
    assert len({frame.tobytes() for frame in figure.frames}) == 32
    still = progressive(make_pipeline({"num_train_timesteps": 100}), num_images=2)
    assert still.frames == () and still.picture.tobytes() == figure.picture.tobytes()


def test_shared_latents_have_the_posterior_of_the_exact_denoiser(gaussian):
    """The pixels of p(x_0 | x_t) have the variance S^2 (1 - abar) / (abar S^2 + 1 - abar), which grows with t."""
    pipeline = gaussian(variance_type="fixed_large")
    figure = shared_latents(pipeline, num_images=60)
    assert figure.numbers["t"] == [100, 75, 50, 25]
    for t, spread in zip(figure.numbers["t"], figure.numbers["spread"], strict=True):
        a = float(pipeline.scheduler.alphas_cumprod[t - 1])
        exact = 127.5 * (S**2 * (1 - a) / (a * S**2 + 1 - a)) ** 0.5
        assert spread == pytest.approx(exact, rel=0.1)
    assert figure.numbers["spread"] == sorted(figure.numbers["spread"], reverse=True)


def test_shared_latents_lie_on_one_walk_and_a_ddim_checkpoint_still_spreads(make_pipeline):
    pipeline = make_pipeline({"num_train_timesteps": 40})
    pipeline.register_to_config(default_eta=0.0)
    figure = shared_latents(pipeline, num_images=3, steps=8, seed=1)
    walk = progressive(pipeline, num_images=1, steps=8, seed=1, eta=1.0).tensors
    for t, x_t in zip(figure.tensors["t"], figure.tensors["x_t"], strict=True):
        k = walk["t"].tolist().index(int(t))
        torch.testing.assert_close(x_t, walk["x_t"][k, 0])
    assert min(figure.numbers["spread"]) > 0


def test_samples_that_make_no_figure(make_pipeline):
    pipeline = make_pipeline({"num_train_timesteps": 20})
    with pytest.raises(UserError, match="use at most 64"):
        progressive(pipeline, num_images=65)
    with pytest.raises(UserError, match="steps=21 must be from 1 to 20"):
        shared_latents(pipeline, steps=21)
