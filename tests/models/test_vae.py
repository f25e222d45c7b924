"""HFVAE: shapes, draws, checkpoints, the source note's network, and where AutoencoderKL stands."""

import math
from typing import get_args

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput

from hf_ddpm.models.vae import HFVAE
from hf_ddpm.models.vae_likelihoods import Likelihood, outputs_per_channel

LIKELIHOODS = get_args(Likelihood)
NETWORKS = {  # not square, two channels: an exchange of axes shows
    "mlp": {"sample_size": (4, 6), "in_channels": 2, "latent_channels": 3, "hidden_sizes": (8, 5)},
    "conv": {
        "network": "conv",
        "sample_size": (8, 12),
        "in_channels": 2,
        "latent_channels": 3,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
    },
}
LATENTS = {"mlp": (3, 1, 1), "conv": (3, 4, 6)}
NETWORK_LIKELIHOODS = [("mlp", word) for word in LIKELIHOODS] + [("conv", "bernoulli"), ("conv", "gaussian")]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def vae(network="mlp", likelihood="bernoulli", **options):
    torch.manual_seed(0)
    return HFVAE(likelihood=likelihood, **NETWORKS[network] | options).eval()


def images(model, batch=5):
    """Black and white ones of the model's size."""
    size = model.config.in_channels, *model.config.sample_size
    return 2.0 * torch.randint(2, (batch, *size), generator=seeded()) - 1


def draws(model, *lead, seed=1):
    return torch.randn(*lead, *model.latent_shape, generator=seeded(seed))


# Shapes


@pytest.mark.parametrize("network, likelihood", NETWORK_LIKELIHOODS)
def test_shapes_of_everything(network, likelihood):
    model = vae(network, likelihood)
    if likelihood == "gaussian_optimal":
        model.measure_log_variance(images(model))
    x, z = images(model), draws(model, 5)
    assert model.latent_shape == LATENTS[network]
    encoded, decoded = model.encode(x), model.decode(z)
    assert isinstance(encoded, AutoencoderKLOutput) and isinstance(decoded, DecoderOutput)
    assert encoded.latent_dist.mode().shape == encoded.latent_dist.sample(seeded()).shape == z.shape
    assert encoded.latent_dist.kl().shape == (5,) and (encoded.latent_dist.kl() > 0).all()
    assert decoded.sample.shape == x.shape and decoded.sample.abs().max() <= 1
    assert model.likelihood_params(z).sample(seeded()).shape == x.shape
    assert model.log_prob(x, z).shape == (5,)
    found = model(x)
    assert found.sample.shape == x.shape and found.latents.shape == z.shape
    assert found.moments.shape == (5, 6, *z.shape[2:])
    assert found.output.shape == (5, 2 * outputs_per_channel(likelihood), *x.shape[2:])


def test_tuples_hold_what_the_outputs_hold():
    model = vae()
    x, z = images(model), draws(model, 5)
    assert torch.equal(model.decode(z, return_dict=False)[0], model.decode(z).sample)
    assert torch.equal(model.encode(x, return_dict=False)[0].mode(), model.encode(x).latent_dist.mode())
    assert torch.equal(model(x, return_dict=False)[0], model(x).sample)


def test_decoded_means_stay_where_images_are():
    """A location may lie outside [-1, 1], the image of it not; log_prob sees the location."""
    model = vae(likelihood="gaussian_fixed")
    z = 1000 * draws(model, 5)
    assert model.likelihood_params(z).location.abs().max() > 2
    assert model.decode(z).sample.abs().max() == 1


def test_without_arguments_it_is_a_small_one_for_digits():
    model = HFVAE()
    assert model.latent_shape == (10, 1, 1) and sum(p.numel() for p in model.parameters()) < 1e6
    assert model(torch.zeros(2, 1, 28, 28)).sample.shape == (2, 1, 28, 28)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_source_notes_network(likelihood):
    """116412 -> 1164 -> 116 -> 10 means and 10 variances, and back; without a machine that holds it."""
    with torch.device("meta"):
        model = HFVAE((218, 178), 3, 10, hidden_sizes=(1164, 116), likelihood=likelihood)
    sizes = {
        part: [m.out_features for m in getattr(model, part) if isinstance(m, torch.nn.Linear)]
        for part in ("encoder", "decoder")
    }
    outputs = 116_412 * (2 if likelihood in ("gaussian", "discretized_gaussian") else 1)
    assert sizes == {"encoder": [1164, 116, 20], "decoder": [116, 1164, outputs]}
    layers = [(116_412, 1164), (1164, 116), (116, 20), (10, 116), (116, 1164), (1164, outputs)]
    shared = 1 if likelihood in ("gaussian_global", "gaussian_optimal") else 0
    assert sum(p.numel() for p in model.parameters()) == sum((i + 1) * o for i, o in layers) + shared


# Draws


@pytest.mark.parametrize("network", NETWORKS)
def test_forward_draws_only_when_asked(network):
    model = vae(network)
    x = images(model)
    q = model.encode(x).latent_dist
    assert torch.equal(model(x).latents, q.mode())
    drawn = [model(x, generator=seeded(seed)).latents for seed in (7, 7, 8)]
    assert torch.equal(drawn[0], q.sample(seeded(7))) and torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(model(x, sample_posterior=True).latents, q.mode())


@pytest.mark.parametrize("network", NETWORKS)
def test_the_draws_of_an_image_lie_beside_each_other(network):
    model = vae(network)
    x, noise = images(model), draws(model, 5, 3)
    found, q = model(x, noise=noise), model.encode(x).latent_dist
    assert found.latents.shape == (15, *LATENTS[network]) and found.sample.shape == (15, *x.shape[1:])
    for b, k in ((0, 2), (1, 0), (4, 1)):
        z = (q.mean + q.std * noise[:, k])[b : b + 1]
        torch.testing.assert_close(found.latents[3 * b + k], z[0])
        torch.testing.assert_close(found.sample[3 * b + k], model.decode(z).sample[0], rtol=1e-5, atol=1e-5)


def test_gradients_pass_through_the_draw():
    """z = mu + sigma * noise: a sampled latent moves with both (the reparameterisation trick)."""
    model = vae()
    noise = draws(model, 5, 1)
    found = model(images(model), noise=noise)
    slope = torch.autograd.grad(found.latents.sum(), found.moments)[0]
    sigma = torch.exp(found.moments[:, 3:] / 2)
    torch.testing.assert_close(slope, torch.cat([torch.ones_like(sigma), noise[:, 0] * sigma / 2], dim=1))


# The optimal sigma


def test_the_measured_sigma_is_the_most_probable_one():
    model = vae(likelihood="gaussian_optimal")
    x = images(model, 50)
    z = model.encode(x).latent_dist.mode()
    with pytest.raises(ValueError, match="no sigma yet: call measure_log_variance"):
        model.log_prob(x, z)
    best = model.measure_log_variance(x)
    highest = model.log_prob(x, z).sum()
    assert best == pytest.approx((x - model(x).output).square().mean().log().item())
    for nudge in (-0.05, 0.05):
        with torch.no_grad():
            model.log_variance.fill_(best + nudge)
        assert model.log_prob(x, z).sum() < highest - 0.1  # D n nudge^2 / 4 = 1.5 nats


def test_images_are_seen_without_a_measured_sigma():
    model = vae(likelihood="gaussian_optimal")
    assert model(images(model)).sample.isfinite().all()
    assert not model.log_variance.requires_grad and vae(likelihood="gaussian_global").log_variance.requires_grad


# Checkpoints


@pytest.mark.parametrize("network, likelihood", NETWORK_LIKELIHOODS)
def test_saved_and_loaded_it_is_the_same_to_the_bit(network, likelihood, tmp_path):
    model = vae(network, likelihood, scaling_factor=0.7)
    model.save_pretrained(tmp_path)
    loaded = HFVAE.from_pretrained(tmp_path)
    weights = model.state_dict(), loaded.state_dict()
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():  # an unmeasured sigma is nan
        torch.testing.assert_close(weights[1][name], weight, rtol=0, atol=0, equal_nan=True)
    assert loaded.latent_shape == model.latent_shape and loaded.config.scaling_factor == 0.7
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
    z = draws(model, 2)
    assert torch.equal(loaded.decode(z).sample, model.decode(z).sample)


def test_a_measured_sigma_is_saved(tmp_path):
    model = vae(likelihood="gaussian_optimal")
    x, z = images(model), draws(model, 5)
    model.measure_log_variance(x)
    model.save_pretrained(tmp_path)
    assert torch.equal(HFVAE.from_pretrained(tmp_path).log_prob(x, z), model.log_prob(x, z))


# Where AutoencoderKL stands


def stock():
    torch.manual_seed(0)
    return AutoencoderKL(
        in_channels=2,
        out_channels=2,
        latent_channels=3,
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=8,
    ).eval()


@pytest.mark.parametrize("make", [stock, lambda: vae("conv", scaling_factor=0.2)], ids=["AutoencoderKL", "HFVAE"])
@torch.no_grad()
def test_what_is_written_for_autoencoder_kl_runs_with_it(make):
    model, x = make(), torch.zeros(2, 2, 8, 12)
    scale = model.config.scaling_factor
    z = model.encode(x).latent_dist.sample(seeded()) * scale
    image = model.decode(z / scale, return_dict=False, generator=seeded())[0]
    assert z.shape == (2, model.config.latent_channels, 4, 6)
    assert image.shape == x.shape and torch.equal(image, model.decode(z / scale).sample)
    assert model(x, sample_posterior=True, generator=seeded()).sample.shape == x.shape
    assert (model.dtype, model.device.type) == (torch.float32, "cpu")


def test_a_convolutional_one_takes_other_sizes():
    model = vae("conv")
    assert model(torch.zeros(1, 2, 16, 10)).latents.shape == (1, 3, 8, 5)


# Bad input


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"likelihood": "gausian"}, "likelihood='gausian' must be one of 'bernoulli', .*'gaussian_optimal'"),
        ({"network": "cnn"}, "network='cnn' must be one of 'mlp', 'conv'"),
        ({"activation": "gelu"}, "activation='gelu' must be one of 'relu', 'tanh', 'silu'"),
        ({"network": "conv", "sample_size": (28, 30), "block_out_channels": (8, 8, 8)}, "28x30 .* multiples of 4"),
        ({"network": "conv", "block_out_channels": (8, 12)}, r"\[8, 12\] must be multiples of norm_num_groups=8"),
    ],
)
def test_bad_options_get_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        HFVAE(**options)


@pytest.mark.parametrize(
    "network, call, sentence",
    [
        ("mlp", lambda m: m.encode(torch.zeros(1, 2, 6, 4)), r"\(1, 2, 6, 4\) must have shape \(B, 2, 4, 6\)"),
        ("mlp", lambda m: m(torch.zeros(2, 4, 6)), r"\(2, 4, 6\) must have shape \(B, 2, 4, 6\)"),
        ("conv", lambda m: m(torch.zeros(1, 3, 8, 12)), r"\(1, 3, 8, 12\) must have shape \(B, 2, H, W\)"),
        (
            "conv",
            lambda m: m(torch.zeros(1, 2, 8, 11)),
            "images of size 8x11 do not fit .* 2 levels: .* multiples of 2",
        ),
        ("mlp", lambda m: m.decode(torch.zeros(1, 3)), r"latents of shape \(1, 3\) must have shape \(B, 3, 1, 1\)"),
        ("mlp", lambda m: m.decode(torch.zeros(1, 3, 2, 1)), r"must have shape \(B, 3, 1, 1\)"),
        ("conv", lambda m: m.decode(torch.zeros(1, 4, 4, 6)), r"\(1, 4, 4, 6\) must have shape \(B, 3, h, w\)"),
        ("mlp", lambda m: m.log_prob(255 * torch.ones(1, 2, 4, 6), draws(m, 1)), "from 255 to 255 must lie in"),
        ("mlp", lambda m: m.log_prob(torch.full((1, 2, 4, 6), math.nan), draws(m, 1)), "from nan to nan must lie in"),
        (
            "mlp",
            lambda m: m.measure_log_variance(images(m)),
            "'bernoulli' must be 'gaussian_optimal' to measure a sigma",
        ),
    ],
)
def test_bad_input_gets_a_sentence(network, call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(vae(network))


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.log_prob(torch.ones(5, 1, 4, 6), draws(m, 5)),  # grey images, a model of two channels
        lambda m: m(images(m), noise=draws(m, 5)),  # noise (B, J, h, w) without its L
    ],
)
def test_shapes_that_broadcast_get_a_sentence(call):
    with pytest.raises(ValueError, match="must have shape"):
        call(vae())


def test_a_wide_network_that_can_be_saved_can_be_opened(tmp_path):
    HFVAE(sample_size=4, hidden_sizes=(10_000,), latent_channels=1).save_pretrained(tmp_path)
    assert HFVAE.from_pretrained(tmp_path).config["hidden_sizes"] == [10_000]
