"""The importance-sampled likelihood of a VAE against closed forms, numerical integration, and itself."""

import math

import pytest
import torch
from scipy.integrate import quad
from torch.distributions import MultivariateNormal

from hf_ddpm import unet_preset
from hf_ddpm.errors import UserError
from hf_ddpm.likelihood import GridImages, ImportanceTerms, evaluate_vae, importance_terms
from hf_ddpm.likelihood.flow import dequantised
from hf_ddpm.likelihood.importance import draws_at_once, is_binary
from hf_ddpm.models.vae import HFVAE

ALL = torch.arange


def small_vae(seed=0, std=0.5, **config):
    """With random weights that matter, in eval mode."""
    torch.manual_seed(seed)
    vae = HFVAE(**{"sample_size": 4, "latent_channels": 3, "hidden_sizes": (8,), **config}).eval()
    for weight in vae.parameters():
        torch.nn.init.normal_(weight, std=std)
    return vae


def binary_images(n, shape=(1, 4, 4)):
    levels = torch.randint(0, 2, (n, *shape), generator=torch.Generator().manual_seed(2)).int() * 255
    return GridImages(levels, None, torch.arange(n), 8)


def probabilistic_pca(error=0.0):
    """p(z) = N(0, I), p(x|z) = N(W z + b, I) with orthogonal columns in W, so that the posterior is diagonal.

    q(z|x) = N(M^-1 W^T (x - b), M^-1) with M = W^T W + I (Tipping & Bishop 1999, eq. 7, sigma = 1), and
    p(x) = N(b, W W^T + I). `error` is added to every mean of q.
    """
    draw = torch.Generator().manual_seed(1)
    axes = torch.linalg.qr(torch.randn(16, 3, generator=draw, dtype=torch.float64)).Q
    w = axes * torch.tensor([2.0, 0.7, 0.1], dtype=torch.float64)
    b = 0.1 * torch.randn(16, generator=draw, dtype=torch.float64)
    m = (w.T @ w).diagonal() + 1
    vae = HFVAE(sample_size=4, latent_channels=3, hidden_sizes=(), likelihood="gaussian_fixed").double().eval()
    encoder, decoder = vae.encoder[1], vae.decoder[1]
    with torch.no_grad():
        decoder.weight.copy_(w)
        decoder.bias.copy_(b)
        encoder.weight.copy_(torch.cat([w.T / m[:, None], torch.zeros(3, 16)]))
        encoder.bias.copy_(torch.cat([-(w.T @ b) / m + error, -m.log()]))
    return vae, MultivariateNormal(b, w @ w.T + torch.eye(16))


@pytest.mark.parametrize("num_samples", [1, 2, 33])
def test_with_the_exact_posterior_every_weight_is_the_density(num_samples, random_images):
    """log w = log p(x) whatever z is, hence the ELBO too but for its Monte Carlo mean, and every draw counts alike."""
    vae, density = probabilistic_pca()
    images = random_images(20, (1, 4, 4))
    terms = importance_terms(vae, images, ALL(20), num_samples=num_samples, seed=0, batch_size=16)
    expected = density.log_prob(dequantised(images, ALL(20), 0).flatten(1))
    torch.testing.assert_close(terms.log_p_x, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(terms.effective_samples, torch.full_like(expected, num_samples))
    many = importance_terms(vae, images, ALL(20), num_samples=4000, seed=0, batch_size=4000)
    torch.testing.assert_close(many.elbo, expected, rtol=0, atol=0.15)  # 2 / sqrt(4000) and the largest of 20


def test_a_wrong_posterior_rises_to_the_density(random_images):
    vae, density = probabilistic_pca(error=0.5)
    images = random_images(400, (1, 4, 4))
    truth = density.log_prob(dequantised(images, ALL(400), 0).flatten(1)).mean()
    found = [importance_terms(vae, images, ALL(400), num_samples=k, seed=0, batch_size=999) for k in (1, 4, 16, 400)]
    means = torch.stack([terms.log_p_x.mean() for terms in found])
    assert (means.diff() > 0.05).all()
    assert means[0] < truth - 0.5 and abs(means[-1] - truth) < 0.03
    assert 1 < found[1].effective_samples.mean() < 3.9


def test_a_bernoulli_on_four_pixels_against_integration():
    """p(x) of all 16 images by quadrature over the one latent: the estimates meet them, and they add up to 1."""
    vae = small_vae(std=1.0, sample_size=2, latent_channels=1, hidden_sizes=(4,), activation="tanh").double()
    with torch.no_grad():  # q wider than the prior: weights that are bounded
        vae.encoder[-2].weight.mul_(0.1)
        vae.encoder[-2].bias.copy_(torch.tensor([0.0, 1.0]))
    bits = torch.tensor([[(i >> k) & 1 for k in range(4)] for i in range(16)])
    images = GridImages((255 * bits).view(16, 1, 2, 2).int(), None, torch.arange(16), 8)
    terms = importance_terms(vae, images, ALL(16), num_samples=20_000, seed=0, batch_size=20_000)

    def joint(z, image):
        with torch.no_grad():
            logit = vae.decoder(torch.tensor([[[[z]]]], dtype=torch.float64)).flatten().tolist()
        p = math.prod(1 / (1 + math.exp(-y if white else y)) for y, white in zip(logit, image, strict=True))
        return p * math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)

    exact = torch.tensor([quad(joint, -9, 9, args=(image,), limit=200)[0] for image in bits.tolist()])
    assert exact.sum().item() == pytest.approx(1, abs=1e-6)
    error = (terms.effective_samples.reciprocal() - 1 / 20_000).sqrt()  # relative, of a mean of weights
    assert ((terms.log_p_x - exact.log()).abs() < 4 * error + 1e-6).all()
    assert error.max() < 0.05


def test_a_discretised_model_gives_masses_that_add_up_to_one():
    vae = small_vae(sample_size=1, latent_channels=1, hidden_sizes=(), likelihood="discretized_gaussian").double()
    images = GridImages(ALL(256).int().view(256, 1, 1, 1), None, torch.arange(256), 8)
    found = evaluate_vae(vae, images, num_samples=20_000, batch_size=20_000)
    assert found.terms.log_p_x.exp().sum().item() == pytest.approx(1, abs=1e-3)
    bits = found.bits_per_dim(-found.terms.log_p_x)
    assert torch.exp2(-bits).sum().item() == pytest.approx(1, abs=1e-3)
    assert (bits > 0).all()


def test_bits_of_a_density_count_the_bins(random_images):
    """Mass ~ density * bin width. A flat density of 1/2 on [-1, 1] would be 8 bits less 0.006 for the outer bins."""
    images = random_images(256, (1, 4, 4))
    found = evaluate_vae(small_vae(likelihood="gaussian_fixed"), images, num_samples=2)
    flat = torch.tensor([16 * math.log(2)])  # -log of (1/2)^16
    assert found.bits_per_dim(flat).item() == pytest.approx(1 + math.log2(255 / 2))
    masses = evaluate_vae(small_vae(likelihood="discretized_gaussian"), images, num_samples=2)
    assert masses.bits_per_dim(flat).item() == pytest.approx(1)
    assert found.density and not masses.density


@pytest.mark.parametrize("network", ["mlp", "conv"])
@pytest.mark.parametrize("num_samples", [1, 3, 10])
def test_chunks_batches_and_processes_change_nothing(network, num_samples):
    sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4, "sample_size": 4}
    vae, images = small_vae(network=network, std=0.1, **sizes), binary_images(13)
    settings = {"num_samples": num_samples, "seed": 3}
    whole = importance_terms(vae, images, ALL(13), batch_size=1000, **settings)
    for batch_size in (1, 4, 25):
        halves = [importance_terms(vae, images, ALL(rank, 13, 2), batch_size=batch_size, **settings) for rank in (0, 1)]
        again = ImportanceTerms.merged(halves[::-1])
        assert torch.equal(again.rows, ALL(13))
        for name in ("log_p_x", "elbo", "rate", "effective_samples", "kl", "activity"):
            torch.testing.assert_close(getattr(again, name), getattr(whole, name), rtol=1e-6, atol=1e-6, msg=name)
    other = importance_terms(vae, images, ALL(13), batch_size=1000, num_samples=num_samples, seed=4)
    assert (other.log_p_x != whole.log_p_x).all()


def test_rows_in_any_order_and_none_at_all():
    vae, images = small_vae(), binary_images(5)
    settings = {"num_samples": 4, "seed": 0, "batch_size": 8}
    whole = importance_terms(vae, images, ALL(5), **settings)
    some = importance_terms(vae, images, torch.tensor([4, 1]), **settings)
    torch.testing.assert_close(some.log_p_x, whole.log_p_x[[1, 4]], rtol=1e-6, atol=0)
    none = importance_terms(vae, images, ALL(0), **settings)
    assert none.rows.shape == none.log_p_x.shape == (0,) and none.kl.shape == (3, 1, 1)
    torch.testing.assert_close(ImportanceTerms.merged([none, whole]).kl, whole.kl)


@pytest.mark.parametrize(("num_samples", "batch_size"), [(1, 7), (5, 7), (5, 2), (5, 100)])
def test_exactly_k_draws_an_image_are_decoded(num_samples, batch_size):
    vae, images, calls, told = small_vae(), binary_images(11), [], []
    vae.decoder.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    importance_terms(vae, images, ALL(11), num_samples=num_samples, seed=0, batch_size=batch_size, progress=told.append)
    assert sum(calls) == 11 * num_samples and max(calls) <= batch_size
    assert told == calls


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "gaussian_global", "discretized_gaussian"])
def test_the_parts_add_up_and_the_bound_is_a_bound(likelihood, random_images):
    vae = small_vae(likelihood=likelihood)
    images = binary_images(40) if likelihood == "bernoulli" else random_images(40, (1, 4, 4))
    terms = importance_terms(vae, images, ALL(40), num_samples=50, seed=0, batch_size=64)
    assert torch.equal(terms.elbo, -(terms.rate - terms.log_p_x_given_z))
    assert terms.elbo.mean() < terms.log_p_x.mean()
    assert ((terms.effective_samples > 1) & (terms.effective_samples < 50)).all()
    assert terms.kl_per_dimension.sum().item() == pytest.approx(terms.rate.mean().item(), rel=1e-6)
    assert terms.log_p_x.dtype == torch.float64


def test_log_weights_are_those_of_the_definition():
    """One draw: log p(x|z) + log p(z) - log q(z|x) with torch.distributions, z from the image's own generator."""
    vae, images = small_vae(std=0.3).double(), binary_images(6)
    terms = importance_terms(vae, images, ALL(6), num_samples=1, seed=9, batch_size=4)
    x = images.x_0(ALL(6))
    mean, log_variance = vae.encode(x).latent_dist.mean.detach(), vae.encode(x).latent_dist.logvar.detach()
    noise = torch.stack(
        [torch.randn(3, 1, 1, generator=images.generator(9, i, 3), dtype=torch.float64) for i in ALL(6)]
    )
    q = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    z = mean + q.stddev * noise
    p_x = torch.distributions.Bernoulli(logits=vae.decoder(z).detach()).log_prob((x + 1) / 2).flatten(1).sum(1)
    prior = torch.distributions.Normal(0.0, 1.0)
    expected = p_x + (prior.log_prob(z) - q.log_prob(z)).flatten(1).sum(1)
    torch.testing.assert_close(terms.log_p_x, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(terms.log_p_x_given_z, p_x, rtol=1e-12, atol=0)


def test_active_units_of_a_hand_made_encoder(random_images):
    """mu_j = s_j x_j: the variance over images is s_j^2 Var(x_j), above 0.01 for the first only."""
    vae = HFVAE(sample_size=2, latent_channels=3, hidden_sizes=(), likelihood="gaussian_fixed").double().eval()
    with torch.no_grad():
        for weight in vae.parameters():
            weight.zero_()
        vae.encoder[1].weight[:3, :3] = torch.diag(torch.tensor([0.25, 0.1, 0.0]))
        vae.encoder[1].bias[:3] = torch.tensor([0.0, 5.0, 2.0])  # a large mean is not activity
    images = random_images(300, (1, 2, 2))
    terms = importance_terms(vae, images, ALL(300), num_samples=1, seed=0, batch_size=300)
    x = dequantised(images, ALL(300), 0).flatten(1)[:, :3]
    expected = torch.tensor([0.25, 0.1, 0.0]).double().square() * x.var(dim=0)
    torch.testing.assert_close(terms.activity.flatten(), expected, rtol=1e-9, atol=1e-12)
    assert terms.active_units == 1
    assert terms.kl_per_dimension.flatten()[2].item() == pytest.approx(2.0)  # mu^2 / 2


def test_the_encoder_and_the_decoder_see_the_same_dequantised_image(random_images):
    vae, images, seen = small_vae(likelihood="gaussian_fixed").double(), random_images(4, (1, 4, 4)), []
    vae.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    importance_terms(vae, images, ALL(4), num_samples=2, seed=5, batch_size=8)
    assert torch.equal(torch.cat(seen), dequantised(images, ALL(4), 5))
    masses = small_vae(likelihood="discretized_gaussian").double()
    masses.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    importance_terms(masses, images, ALL(4), num_samples=2, seed=5, batch_size=8)
    assert torch.equal(seen[-1], images.x_0(ALL(4)))


def test_greys_under_a_bernoulli_are_only_a_cross_entropy(random_images):
    greys, binary = random_images(256, (1, 4, 4)), binary_images(256)
    assert is_binary(binary) and not is_binary(greys)
    with pytest.raises(UserError, match="the images have grey levels, but likelihood='bernoulli' needs black and"):
        evaluate_vae(small_vae(), greys, num_samples=2)
    assert not evaluate_vae(small_vae(), greys, num_samples=2, cross_entropy=True).normalised
    assert evaluate_vae(small_vae(), binary, num_samples=2, cross_entropy=True).normalised


def test_a_network_in_training_is_measured_as_it_is_used_and_stays_in_training():
    vae, images = small_vae(), binary_images(256)
    expected = evaluate_vae(vae, images, num_samples=2).terms.log_p_x
    vae.decoder.append(torch.nn.Dropout(0.5))
    vae.train()
    assert torch.equal(evaluate_vae(vae, images, num_samples=2).terms.log_p_x, expected)
    assert vae.training and vae.decoder.training


def test_large_images_are_decoded_fewer_at_a_time():
    assert draws_at_once(binary_images(1)) == 1000
    assert draws_at_once(binary_images(1, (3, 218, 178))) == 72
    assert draws_at_once(binary_images(1, (1, 3000, 3000))) == 1


@pytest.mark.parametrize(
    ("config", "change", "options", "sentence"),
    [
        ({}, {}, {"num_samples": 0}, "num_samples=0 and batch_size=1000 must be at least 1"),
        ({}, {}, {"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({}, {}, {"seed": -1}, "seed=-1 must be at least 0"),
        (
            {},
            {"levels": torch.zeros(255, 1, 4, 4).int()},
            {},
            "256 images, not 255: use more, or call .*for a VAE",
        ),
        ({"sample_size": (4, 6)}, {}, {}, r"shape \(1, 4, 4\), but the network needs \(1, 4, 6\)"),
        ({"in_channels": 3}, {}, {}, r"shape \(1, 4, 4\), but the network needs \(3, 4, 4\)"),
        ({"likelihood": "discretized_gaussian"}, {"bit_depth": 16}, {}, "depth 16, but likelihood='discretized_gau"),
        ({"likelihood": "gaussian_optimal"}, {}, {}, "'gaussian_optimal' has no sigma: call measure_log_variance"),
    ],
)
def test_what_cannot_be_measured(config, change, options, sentence):
    vae = HFVAE(**{"sample_size": 4, "hidden_sizes": (8,), **config}).eval()
    with pytest.raises(UserError, match=sentence) as stop:
        evaluate_vae(vae, binary_images(256)._replace(**change), **options)
    assert "\n" not in str(stop.value)


def test_other_objects_and_diverged_weights():
    with pytest.raises(UserError, match="the network is UNet2DModel, but only an HFVAE defines"):
        evaluate_vae(unet_preset("tiny"), binary_images(256))
    with pytest.raises(UserError, match="images must be GridImages, not Tensor: create them with draw_images or"):
        evaluate_vae(small_vae(), torch.zeros(256, 1, 4, 4))
    with pytest.raises(UserError, match=r"log p\(x\) is not finite for 256 image\(s\): the training diverged"):
        evaluate_vae(small_vae(std=1e30), binary_images(256), num_samples=2)


def test_the_optimal_sigma_once_it_is_measured(random_images):
    images = random_images(256, (1, 4, 4))
    vae = small_vae(likelihood="gaussian_optimal", std=0.1)
    vae.measure_log_variance(images.x_0(ALL(256)).float())
    fixed = small_vae(likelihood="gaussian_fixed", std=0.1)
    nll = [-evaluate_vae(model, images, num_samples=5).terms.log_p_x.mean() for model in (vae, fixed)]
    assert nll[0] < nll[1]
