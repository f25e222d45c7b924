"""The ELBO and IWAE: torch.distributions, a linear-Gaussian model whose log p(x) is known, and the note's formula."""

import math
from itertools import pairwise
from typing import get_args

import pytest
import torch
from objective_calls import losses_of
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from hf_ddpm.models.vae import HFVAE
from hf_ddpm.models.vae_likelihoods import Likelihood, optimal_log_variance
from hf_ddpm.objectives.elbo import ELBOObjective, kl_per_dimension, log_prior_ratio, moments_of

LIKELIHOODS = get_args(Likelihood)
EXACT = {"rtol": 1e-10, "atol": 1e-10}
J, SIZE = 3, (2, 4)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal_noise(*shape, seed=1):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def vae(likelihood="bernoulli", hidden_sizes=(8,), latent_channels=J):
    torch.manual_seed(0)
    return HFVAE(SIZE, latent_channels=latent_channels, hidden_sizes=hidden_sizes, likelihood=likelihood).double()


def black_and_white(batch=6):
    return (2 * torch.randint(2, (batch, 1, *SIZE), generator=seeded())).double() - 1


def objective(likelihood="bernoulli", num_samples=1, **options):
    return ELBOObjective(likelihood, (J, 1, 1), num_samples=num_samples, **options)


def bound_of(loss, model, x, noise, kl_weight):
    return losses_of(loss, model, x, noise=noise, kl_weight=kl_weight)


def ones(x):
    return torch.ones(len(x), dtype=torch.float64)


def gradients(loss, model):
    """Of every weight in a row; zeros where the loss does not reach one."""
    weights = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return torch.cat([(torch.zeros_like(w) if g is None else g).flatten() for g, w in zip(found, weights, strict=True)])


# torch.distributions


def posterior():
    moments = normal_noise(2, 5, J, 1, 1).requires_grad_()
    return moments, Normal(moments[0], (moments[1] / 2).exp())


def test_kl_is_torchs():
    moments, q = posterior()
    kls = kl_per_dimension(*moments), kl_divergence(q, Normal(torch.zeros_like(q.loc), 1.0))
    slopes = (torch.autograd.grad((kl * normal_noise(5, J, 1, 1, seed=2)).sum(), moments)[0] for kl in kls)
    torch.testing.assert_close(*kls, **EXACT)
    torch.testing.assert_close(*slopes, **EXACT)


def test_log_prior_ratio_is_the_difference_of_torchs_log_probs():
    moments, q = posterior()
    noise = normal_noise(5, 4, J, 1, 1)
    z = q.loc[:, None] + q.scale[:, None] * noise
    log_q = Normal(q.loc[:, None], q.scale[:, None]).log_prob(z)
    ratios = log_prior_ratio(*moments, noise), (Normal(0.0, 1.0).log_prob(z) - log_q).flatten(2).sum(dim=2)
    slopes = (torch.autograd.grad((r * normal_noise(5, 4, seed=2)).sum(), moments)[0] for r in ratios)
    torch.testing.assert_close(*ratios, **EXACT)
    torch.testing.assert_close(*slopes, **EXACT)


@pytest.mark.parametrize("bound", ["elbo", "iwae"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "gaussian_global", "discretized_gaussian"])
def test_the_bounds_are_made_of_log_prob_and_torchs_densities(likelihood, bound):
    """Draw by draw: -mean log p(x|z) + KL, and -log mean of p(x|z) p(z) / q(z|x)."""
    model, x, noise = vae(likelihood), black_and_white(), normal_noise(6, 4, J, 1, 1)
    q = model.encode(x).latent_dist
    z = [q.mean + q.std * noise[:, k] for k in range(4)]
    log_p_x = torch.stack([model.log_prob(x, z_k) for z_k in z], dim=1)
    if bound == "elbo":
        wanted = q.kl() - log_p_x.mean(dim=1)
    else:
        log_ratios = [
            (Normal(0.0, 1.0).log_prob(z_k) - Normal(q.mean, q.std).log_prob(z_k)).sum((1, 2, 3)) for z_k in z
        ]
        wanted = -(log_p_x + torch.stack(log_ratios, dim=1)).exp().mean(dim=1).log()
    found = bound_of(objective(likelihood, 4, bound=bound), model, x, noise, ones(x))
    torch.testing.assert_close(found, wanted, **EXACT)
    torch.testing.assert_close(gradients(found.sum(), model), gradients(wanted.sum(), model), **EXACT)


# The source note's formula


def naive_kl(mean, std):
    """-1/2 (1 + log(std^2 + 1e-8) - mu^2 - std^2) of a signed std, the source note's."""
    return -0.5 * (1 + (std**2 + 1e-8).log() - mean**2 - std**2)


def test_the_notes_kl_agrees_to_5e_9_over_the_variance():
    """That is 1e-6 at std = 0.071 and less above."""
    std = torch.linspace(0.071, 3, 300, dtype=torch.float64)
    ours = kl_per_dimension(torch.full_like(std, 0.7), 2 * std.log())
    for signed in (std, -std):  # and it cannot tell a std from its mirror image
        difference = (naive_kl(torch.full_like(std, 0.7), signed) - ours).abs()
        assert (difference <= 5.001e-9 / std**2).all() and difference.max() < 1e-6


def test_the_notes_kl_has_a_low_barrier_at_std_0_without_a_way_out():
    """log 1e-8 / 2 = -9.2 nats is all that a deterministic encoder costs, and its gradient is 0 there; it is 5,000 at
    std = 1e-4. Ours rises with a slope of 1/2 nat a unit of log-variance, down to the clamp of all of diffusers at -30.
    """
    zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
    barrier = naive_kl(torch.zeros(()), zero)
    assert barrier.item() == pytest.approx(-0.5 - 0.5 * math.log(1e-8), rel=1e-12)
    assert barrier + 0.5 < 9.22 and torch.autograd.grad(barrier, zero)[0] == 0
    steep = torch.full((), 1e-4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(naive_kl(torch.zeros(()), steep), steep)[0] < -4999
    log_variance = torch.tensor([-4.0, -19.0, -25.0, -29.9], dtype=torch.float64, requires_grad=True)
    kl = kl_per_dimension(torch.zeros(4), log_variance)
    assert kl[2] > 12 - 0.5 > barrier and kl[3] > 14.4
    assert torch.allclose(torch.autograd.grad(kl.sum(), log_variance)[0], torch.tensor(-0.5).double(), atol=0.01)


# A linear-Gaussian model


def linear_gaussian(shift=0.0):
    """x = W z + b + noise with orthogonal columns: log p(x) is a Gaussian's, and q(z|x) its exact posterior + `shift`.

    Returns:
        The model, images (4, 1, 2, 4) and their log p(x) = log N(x; b, W W^T + I).
    """
    model = vae("gaussian_fixed", hidden_sizes=())
    w = torch.linalg.qr(normal_noise(8, J))[0] * torch.tensor([2.0, 1.0, 0.5])
    b, precision = 0.1 * normal_noise(8, seed=2), 1 + w.square().sum(dim=0)  # M = W^T W + I, diagonal
    mean = w.T / precision[:, None]
    weights = torch.cat([mean, torch.zeros(J, 8)]), torch.cat([shift - mean @ b, shift - precision.log()]), w, b
    layers = model.encoder[1].weight, model.encoder[1].bias, model.decoder[1].weight, model.decoder[1].bias
    with torch.no_grad():
        for parameter, value in zip(layers, weights, strict=True):
            parameter.copy_(value)
    x = normal_noise(4, 8, seed=3)
    log_p_x = MultivariateNormal(b, w @ w.T + torch.eye(8)).log_prob(x)
    return model, x.view(4, 1, 2, 4), log_p_x


@pytest.mark.parametrize("k", [1, 2, 7])
def test_with_the_exact_posterior_every_weight_is_p_of_x(k):
    """log w is the same for every noise, so iwae is -log p(x) for every number of samples."""
    model, x, log_p_x = linear_gaussian()
    loss = bound_of(objective("gaussian_fixed", k, bound="iwae"), model, x, 3 * normal_noise(4, k, J, 1, 1), ones(x))
    torch.testing.assert_close(-loss, log_p_x, rtol=1e-10, atol=1e-10)


def test_with_the_exact_posterior_the_elbo_is_log_p_of_x():
    """In expectation. log p(x|z) is quadratic in the noise, so its mean over +-sqrt(J) e_j is the expectation."""
    model, x, log_p_x = linear_gaussian()
    directions = J**0.5 * torch.eye(J, dtype=torch.float64)
    cubature = torch.cat([directions, -directions]).view(1, 2 * J, J, 1, 1).expand(4, -1, -1, -1, -1)
    loss = bound_of(objective("gaussian_fixed", 2 * J), model, x, cubature, ones(x))
    torch.testing.assert_close(-loss, log_p_x, **EXACT)


def test_with_the_exact_posterior_random_elbos_average_to_log_p_of_x():
    """Within four standard errors, which are below 0.02 nats."""
    model, x, log_p_x = linear_gaussian()
    many = x.repeat_interleave(10_000, dim=0)
    losses = bound_of(objective("gaussian_fixed"), model, many, normal_noise(40_000, 1, J, 1, 1), ones(many)).view(
        4, -1
    )
    standard_error = losses.std(dim=1) / 100
    assert standard_error.max() < 0.02
    assert ((losses.mean(dim=1) + log_p_x).abs() < 4 * standard_error).all()


def test_with_a_wrong_posterior_more_samples_come_closer_to_log_p_of_x():
    """ELBO < IWAE-5 < IWAE-50 < log p(x) on average, each by more than five standard errors."""
    model, x, log_p_x = linear_gaussian(shift=0.7)
    many = x.repeat_interleave(1000, dim=0)
    rows = [log_p_x.repeat_interleave(1000)]
    for seed, k in enumerate((50, 5, 1)):
        bound = {"bound": "elbo" if k == 1 else "iwae"}
        noise = normal_noise(4000, k, J, 1, 1, seed=seed)
        rows.append(-bound_of(objective("gaussian_fixed", k, **bound), model, many, noise, ones(many)))
    for higher, lower in pairwise(rows):
        difference = higher - lower
        assert difference.mean() > 5 * difference.std() / 4000**0.5


def test_iwae_with_one_sample_is_on_average_the_elbo():
    """Within four standard errors of the difference: KL against log q(z|x) - log p(z), whose mean it is."""
    model, x = vae(), black_and_white(1).expand(20_000, -1, -1, -1)
    noise = normal_noise(20_000, 1, J, 1, 1)
    elbo, iwae = (bound_of(objective(bound=bound), model, x, noise, ones(x)) for bound in ("elbo", "iwae"))
    difference = elbo - iwae
    assert difference.std() > 0.01
    assert difference.mean().abs() < 4 * difference.std() / 20_000**0.5


def test_a_warm_up_of_iwae_begins_at_the_likelihood_alone():
    """With weight 0 the loss is -log mean_k p(x|z_k); with 1 the bound itself."""
    model, x, noise = vae(), black_and_white(), normal_noise(6, 5, J, 1, 1)
    found = model(x, noise=noise)
    log_p = model.log_prob(x.repeat_interleave(5, dim=0), found.latents).view(6, 5)
    annealed = objective(num_samples=5, bound="iwae", kl_warmup_steps=10)
    assert annealed.kl_weight(5) == 0.5
    start = bound_of(annealed, model, x, noise, 0 * ones(x))
    torch.testing.assert_close(start, -(log_p.logsumexp(1) - math.log(5)), **EXACT)
    ratio = log_prior_ratio(*moments_of(found), noise)
    half = bound_of(annealed, model, x, noise, 0.5 * ones(x))
    torch.testing.assert_close(half, math.log(5) - (log_p + 0.5 * ratio).logsumexp(1), **EXACT)


# Samples and weights


@pytest.mark.parametrize("likelihood", [word for word in LIKELIHOODS if word != "gaussian_optimal"])
def test_the_loss_of_an_image_is_its_own(likelihood):
    """L samples are the mean of L single ones, and the batch around an image does not matter."""
    model, x, noise = vae(likelihood), black_and_white(), normal_noise(6, 4, J, 1, 1)
    together = bound_of(objective(likelihood, 4), model, x, noise, ones(x))
    singles = [bound_of(objective(likelihood), model, x, noise[:, k : k + 1], ones(x)) for k in range(4)]
    alone = [bound_of(objective(likelihood, 4), model, x[i : i + 1], noise[i : i + 1], ones(x)[:1]) for i in range(6)]
    torch.testing.assert_close(together, torch.stack(singles).mean(dim=0), **EXACT)
    torch.testing.assert_close(together, torch.cat(alone), **EXACT)


def test_kl_weight_weighs_the_kl_and_nothing_else():
    model, x, noise = vae(), black_and_white(), normal_noise(6, 1, J, 1, 1)
    weight = torch.tensor([0.0, 0.1, 0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
    losses = [bound_of(objective(), model, x, noise, w) for w in (weight, 0 * weight)]
    torch.testing.assert_close(losses[0] - losses[1], weight * model.encode(x).latent_dist.kl(), **EXACT)


@pytest.mark.parametrize("step, part", [(0, 0.0), (1, 0.01), (50, 0.5), (100, 1.0), (10_000, 1.0)])
def test_the_weight_of_the_kl_grows_to_beta(step, part):
    warming = objective(beta=4.0, kl_warmup_steps=100)
    assert warming.kl_weight(step) == pytest.approx(4 * part)
    assert warming.draw((5, 1, *SIZE), seeded(), step).rows["kl_weight"].tolist() == pytest.approx([4 * part] * 5)
    assert objective(beta=4.0).kl_weight(step) == 4


def test_free_bits_clamp_each_dimension_and_take_its_gradient():
    """KLs of 2 and 0.005 nats, 0.5 of them free: the second costs 0.5 whatever it is."""
    model, x = vae(latent_channels=2, hidden_sizes=()), black_and_white(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.encoder[1].bias.copy_(torch.tensor([2.0, 0.1, 0.0, 0.0]))  # mu, log sigma^2
    with_free, without = (
        bound_of(ELBOObjective("bernoulli", (2, 1, 1), free_bits=free), model, x, normal_noise(1, 1, 2, 1, 1), ones(x))
        for free in (0.5, 0.0)
    )
    assert (with_free - without).item() == pytest.approx(0.5 - 0.005)
    found = torch.autograd.grad(with_free.sum(), model.encoder[1].bias)[0]
    assert found.tolist() == pytest.approx([2, 0, 0, 0])
    found = torch.autograd.grad(without.sum(), model.encoder[1].bias)[0]
    assert found.tolist() == pytest.approx([2, 0.1, 0, 0])


@pytest.mark.parametrize("num_samples", [1, 3])
def test_optimal_sigma_descends_on_the_logarithm_of_the_error(num_samples):
    """Its gradient is that of D / 2 log MSE: the one through sigma is 0 at the best sigma (envelope theorem)."""
    model, x = vae("gaussian_optimal"), black_and_white()
    noise = normal_noise(6, num_samples, J, 1, 1)
    loss = bound_of(objective("gaussian_optimal", num_samples), model, x, noise, 0 * ones(x)).mean()
    error = (x.repeat_interleave(num_samples, dim=0) - model(x, noise=noise).output).square().mean()
    assert loss.item() == pytest.approx(4 * (1 + (2 * math.pi * error).log()).item(), rel=1e-12)  # D = 8
    torch.testing.assert_close(gradients(loss, model), gradients(4 * error.log(), model), **EXACT)


def test_optimal_sigma_is_one_for_the_batch():
    model, x, noise = vae("gaussian_optimal"), black_and_white(), normal_noise(6, 1, J, 1, 1)
    together = bound_of(objective("gaussian_optimal"), model, x, noise, ones(x))
    alone = bound_of(objective("gaussian_optimal"), model, x[:1], noise[:1], ones(x)[:1])
    assert abs(together[0] - alone) > 1e-3
    assert optimal_log_variance(x, 0.5 * x).item() == pytest.approx(math.log(0.25))


def test_moments_are_clamped_as_the_posterior_of_diffusers():
    model, x = vae(hidden_sizes=()), black_and_white()
    with torch.no_grad():
        model.encoder[1].bias[J:] = torch.tensor([-40.0, 0.0, 40.0])
    mean, log_variance = moments_of(model(x))
    q = model.encode(x).latent_dist
    assert torch.equal(mean, q.mean) and torch.equal(log_variance, q.logvar)
    assert log_variance.min() == -30 and log_variance.max() == 20


# draw


def test_draw_is_standard_normal_and_told_by_the_generator():
    drawing = ELBOObjective("bernoulli", (2, 3, 5), num_samples=4)
    rows, weight = drawing.draw((100, 1, 28, 28), seeded())
    noise, kl_weight = rows["noise"], rows["kl_weight"]
    assert noise.shape == (100, 4, 2, 3, 5) and kl_weight.shape == weight.shape == (100,)
    assert noise.mean().abs() < 4 / 12_000**0.5 and abs(noise.var() - 1) < 4 * (2 / 12_000) ** 0.5
    assert (weight == 1).all() and (kl_weight == 1).all()
    assert torch.equal(noise, drawing.draw((100, 1, 28, 28), seeded()).rows["noise"])
    assert not torch.equal(noise, drawing.draw((100, 1, 28, 28), seeded(1)).rows["noise"])


# Bad input


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"bound": "iwe"}, "bound='iwe' must be one of 'elbo', 'iwae'; did you mean 'iwae'"),
        ({"num_samples": 0}, "num_samples=0 must be a whole number of at least 1"),
        ({"beta": -1.0}, "beta=-1.0, .* must not be negative"),
        ({"kl_warmup_steps": -1}, "kl_warmup_steps=-1 .* must not be negative"),
        ({"free_bits": -0.1}, "free_bits=-0.1 must not be negative"),
        ({"bound": "iwae", "beta": 4.0}, "change the KL of bound='elbo'"),
        ({"bound": "iwae", "free_bits": 0.5}, "change the KL of bound='elbo'"),
        ({"likelihood": "bernouli"}, "likelihood='bernouli' must be one of .*; did you mean 'bernoulli'"),
        ({"beta": math.nan}, "beta=nan"),
        ({"num_samples": 1.5}, "num_samples=1.5 must be a whole number"),
    ],
)
def test_bad_options_get_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        ELBOObjective(**{"likelihood": "bernoulli", "latent_shape": (J, 1, 1)} | options)
