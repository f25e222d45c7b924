"""On Gaussian data, with the exact denoiser, every term of the bound is a closed form; on any data it is one number."""

import math

import pytest
import torch

from hf_ddpm.likelihood import BoundTerms, Network, bound_terms
from hf_ddpm.likelihood.images import share

VARIANCE = 0.25
LN2 = math.log(2)


def expected_terms(scheduler, variances):
    """E L_t in bits for t >= 1: KL between Gaussians, with the squared error of x_0 at its mean, Var[x_0 | x_t]."""
    _, exact = variances(scheduler, VARIANCE)
    tilde = scheduler.posterior_variance[1:]
    kind = scheduler.config["variance_type"]
    v = {"learned": exact, "fixed_small": scheduler.posterior_variance, "fixed_large": scheduler.betas}[kind][1:]
    return (0.5 * ((v / tilde).log() - 1 + exact[1:] / v)) / LN2


@pytest.mark.parametrize("variance_type", ["learned", "fixed_small", "fixed_large"])
def test_each_term_is_its_closed_form(variance_type, gaussian, gaussian_images, variances):
    network = gaussian(size=256, variance_type=variance_type)
    images = gaussian_images(8, (1, 16, 16))
    terms = bound_terms(network, images, torch.arange(8), seed=0, batch_size=500, clip=False)
    expected, found = expected_terms(network.scheduler, variances), terms.bits[1:] / 8
    # each is a mean of squares of 2,048 normal numbers: sqrt(2 / 2048) = 3%
    torch.testing.assert_close(found, expected, rtol=0.16, atol=0)
    assert (found / expected).mean().item() == pytest.approx(1, abs=0.004)
    assert terms.rate.mean().item() == pytest.approx(found.sum().item(), rel=1e-12)
    of_x_0 = variances(network.scheduler, VARIANCE)[0]
    assert (terms.x_0_error / 8 / of_x_0).mean().item() == pytest.approx(1, abs=0.004)
    of_epsilon = of_x_0 * network.scheduler.alphas_cumprod / (1 - network.scheduler.alphas_cumprod)
    assert (terms.epsilon_error / 8 / of_epsilon).mean().item() == pytest.approx(1, abs=0.004)


def test_with_the_exact_reverse_process_the_rate_is_the_information_in_the_cleanest_level(gaussian, gaussian_images):
    """prior + sum of L_t = I(x_0; x_1) + KL(q(x_T) || N(0, I)): a closed form that knows nothing of the chain."""
    network = gaussian(size=256, variance_type="learned", prediction_type="v_prediction", beta_schedule="cosine")
    images = gaussian_images(16, (1, 16, 16))
    terms = bound_terms(network, images, torch.arange(16), seed=1, batch_size=500, clip=False)
    abar = network.scheduler.alphas_cumprod
    first, last = (abar[i] * VARIANCE + 1 - abar[i] for i in (0, -1))
    information = 0.5 * (first / (1 - abar[0])).log() / LN2
    divergence = 0.5 * (last + abar[-1] * 0.1**2 - 1 - last.log()) / LN2
    assert (terms.prior + terms.rate).mean().item() == pytest.approx((information + divergence).item(), abs=0.01)


def test_the_whole_bound_is_the_negative_log_likelihood(gaussian, gaussian_images):
    """At 16 bits a bin's mass is the density times its width; the exact reverse process leaves no gap for any image."""
    mean, variance = 0.1, 0.04  # beyond [-1, 1] once in 100,000
    network = gaussian(
        mean, variance, size=256, variance_type="learned", beta_schedule="cosine", num_train_timesteps=200
    )
    images = gaussian_images(32, (1, 16, 16), mean, variance)
    x_0 = images.x_0(torch.arange(32))
    assert x_0.abs().max() < 1
    terms = bound_terms(network, images, torch.arange(32), seed=0, batch_size=500)
    log_p = -0.5 * ((x_0 - mean) ** 2 / variance + math.log(2 * math.pi * variance))
    exact = -log_p.flatten(1).mean(dim=1) / LN2 - math.log2(images.bin_width)
    assert terms.total.mean().item() == pytest.approx(exact.mean().item(), abs=0.04)
    torch.testing.assert_close(terms.total, exact, atol=0.3, rtol=0)


@pytest.mark.parametrize(
    ("variance_type", "gap", "tolerance"), [("fixed_small", 0.66, 0.005), ("fixed_large", 0.002, 0.0005)]
)
def test_how_loose_the_papers_variances_are(variance_type, gap, tolerance, gaussian, variances):
    """At T = 1000, linear, from the closed forms that the measured terms meet; the decoder is not among them."""
    tight, loose = (
        expected_terms(gaussian(variance_type=kind).scheduler, variances).sum().item()
        for kind in ("learned", variance_type)
    )
    assert loose - tight == pytest.approx(gap, abs=tolerance)


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
def test_the_decoder_is_its_closed_form(variance_type, gaussian, gaussian_images, variances):
    """Away from the ends and at 16 bits L_0 is the density's, with the error of x_0 at its mean, Var[x_0 | x_1]."""
    network = gaussian(
        0.1, 0.04, size=256, variance_type=variance_type, num_train_timesteps=2, trained_betas=[1e-4, 2e-4]
    )
    images = gaussian_images(16, (1, 16, 16), 0.1, 0.04)
    terms = bound_terms(network, images, torch.arange(16), seed=0)
    of_x_0, width = variances(network.scheduler, 0.04)[0][0].item(), network.scheduler.posterior_variance[1].item()
    expected = 0.5 * (math.log(2 * math.pi * width) + of_x_0 / width) / LN2 - math.log2(images.bin_width)
    assert terms.decoder.mean().item() == pytest.approx(expected, abs=0.06)  # 4 of sqrt(2 / 4096) * .5 * of_x_0 / width


@pytest.mark.parametrize("variance_type", ["fixed_small", "learned_range"])
def test_neither_batches_nor_processes_change_it(variance_type, make_pipeline, random_images):
    channels = {"out_channels": 2} if variance_type == "learned_range" else {}
    pipeline = make_pipeline({"num_train_timesteps": 7, "variance_type": variance_type}, **channels)
    network, images = Network(pipeline.unet, pipeline.scheduler), random_images(5)
    whole = bound_terms(network, images, torch.arange(5), seed=3, batch_size=35)
    for batch_size in (1, 4, 64):
        parts = [bound_terms(network, images, share(5, rank, 3), seed=3, batch_size=batch_size) for rank in range(3)]
        torch.testing.assert_close(tuple(BoundTerms.merged(parts)), tuple(whole), rtol=1e-6, atol=0)
    other = bound_terms(network, images, torch.arange(5), seed=4, batch_size=35)
    assert (other.total - whole.total).abs().min() > 1e-5


def test_noise_is_fresh_for_every_image_and_step_and_follows_the_index(random_images):
    """A network that predicts nothing: the squared error of epsilon is the mean of eps^2."""
    from types import SimpleNamespace

    from hf_ddpm import HFDDPMScheduler

    class Silent(torch.nn.Module):
        def forward(self, x_t, t):
            return SimpleNamespace(sample=torch.zeros_like(x_t))

    network = Network(Silent(), HFDDPMScheduler(num_train_timesteps=6))
    images = random_images(3)
    squares = [bound_terms(network, images, torch.tensor([i]), seed=0, clip=False).epsilon_error for i in range(3)]
    assert len({round(value, 12) for row in squares for value in row.tolist()}) == 18
    moved = images._replace(levels=images.levels.flip(0), indices=images.indices.flip(0))
    again = bound_terms(network, moved, torch.tensor([2]), seed=0, clip=False).epsilon_error
    torch.testing.assert_close(again, squares[0], rtol=1e-9, atol=0)


def test_clipping_is_what_the_option_says(random_images, gaussian):
    """Data far from what the denoiser believes: its x_0 leaves [-1, 1], and clipping helps."""
    network = gaussian(0.0, 9.0, size=64, num_train_timesteps=20, beta_schedule="cosine")
    images = random_images(2)
    clipped, free = (bound_terms(network, images, torch.arange(2), seed=0, clip=clip) for clip in (True, False))
    assert (clipped.x_0_error <= free.x_0_error + 1e-12).all()
    assert clipped.rate.mean() < free.rate.mean() - 0.01


def test_zero_terminal_snr_has_no_prior_term(random_images, gaussian):
    network = gaussian(
        size=64,
        num_train_timesteps=20,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    terms = bound_terms(network, random_images(2), torch.arange(2), seed=0)
    assert (terms.prior == 0).all() and terms.total.isfinite().all()
