"""The generator and the discriminator of a denoising GAN: their blocks, what z, t and classes change, and mistakes."""

import json
import math
import warnings

import pytest
import torch
from diffusers.models.downsampling import downsample_2d
from diffusers.models.normalization import AdaGroupNorm
from diffusers.models.upsampling import upsample_2d

from hf_ddpm.errors import UserError
from hf_ddpm.models import (
    DISCRIMINATOR_PRESETS,
    GENERATOR_PRESETS,
    DDGANDiscriminator,
    DDGANGenerator,
    discriminator_preset,
    generator_preset,
)
from hf_ddpm.models.ddgan_blocks import MappingNetwork, attention, fir_downsample, fir_upsample, minibatch_std


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture
def generator():
    torch.manual_seed(0)
    return generator_preset("tiny", num_classes=3).eval()


@pytest.fixture
def discriminator():
    torch.manual_seed(0)
    return discriminator_preset("tiny", num_classes=3).eval()


# --- blocks ----------------------------------------------------------------------------------------------------------


def test_the_filter_is_that_of_diffusers():
    x = normal(2, 3, 8, 6)
    torch.testing.assert_close(fir_downsample(x), downsample_2d(x, [1, 3, 3, 1]))
    torch.testing.assert_close(fir_upsample(x), upsample_2d(x, [1, 3, 3, 1]))


def test_groups_of_the_minibatch_standard_deviation_are_neighbours():
    x = normal(8, 2, 3, 3)
    spread = minibatch_std(x, 4)[:, 2]
    for start in (0, 4):
        wanted = (x[start : start + 4].var(dim=0, correction=0) + 1e-8).sqrt().mean()
        torch.testing.assert_close(spread[start : start + 4], wanted.expand(4, 3, 3))
    parts = torch.cat([minibatch_std(x[:4], 4), minibatch_std(x[4:], 4)])
    assert torch.equal(parts, minibatch_std(x, 4))


@pytest.mark.parametrize(("batch", "group"), [(1, 1), (2, 2), (3, 1), (6, 2), (8, 4)])
def test_a_batch_that_the_groups_do_not_divide_has_smaller_ones(batch, group):
    x = normal(batch, 2, 3, 3)
    assert torch.equal(minibatch_std(x, 4), minibatch_std(x, group))
    x.requires_grad_()
    minibatch_std(x, 4).sum().backward()
    assert x.grad.isfinite().all()


def test_attention_has_the_heads_that_are_asked_for():
    assert attention(8, None, 4).heads == 1 and attention(8, 2, 4).heads == 4


def test_truncated_latents_are_nearer_to_the_mean_of_their_class():
    torch.manual_seed(0)
    mapping = MappingNetwork(4, 8, 2, num_classes=3)
    z, y = normal(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    whole, half, none = (mapping(z, y, share) for share in (1.0, 0.5, 0.0))
    torch.testing.assert_close(half, (whole + none) / 2)
    assert torch.equal(none[:3], none[3:]) and not torch.allclose(none[0], none[1])
    many = mapping(normal(20_000, 4, seed=1), torch.zeros(20_000, dtype=torch.long))
    torch.testing.assert_close(none[0], many.mean(dim=0), atol=0.05, rtol=0)
    torch.testing.assert_close(mapping(3 * z, y), whole)  # only the direction of z counts


# --- the networks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("presets", [GENERATOR_PRESETS, DISCRIMINATOR_PRESETS], ids=["generator", "discriminator"])
def test_every_preset_has_as_many_weights_as_it_says(presets):
    build = generator_preset if presets is GENERATOR_PRESETS else discriminator_preset
    with torch.device("meta"):
        counts = {name: sum(weight.numel() for weight in build(name).parameters()) for name in presets}
    assert counts == {name: preset.parameters for name, preset in presets.items()}


def test_an_image_follows_from_x_t_from_t_from_z_and_from_its_class(generator):
    x_t, z, y = normal(2, 1, 8, 8), normal(2, 4, seed=1), torch.tensor([0, 1])
    with torch.no_grad():
        x_0 = generator(x_t, 1, z, y).sample
        others = [
            generator(normal(2, 1, 8, 8, seed=2), 1, z, y),
            generator(x_t, 2, z, y),
            generator(x_t, 1, normal(2, 4, seed=3), y),
            generator(x_t, 1, z, y.flip(0)),
        ]
        alone = generator(x_t[1:], torch.tensor([1]), z[1:], y[1:]).sample
    assert x_0.shape == x_t.shape and x_0.abs().max() < 1
    assert min((x_0 - other.sample).std().item() for other in others) > 0.02
    torch.testing.assert_close(alone, x_0[1:], atol=1e-5, rtol=1e-4)  # images do not mix


def test_z_reaches_every_block(generator):
    """AdaGN beside t's path: no block's norm is blind to z."""
    x_t, z = normal(2, 1, 8, 8), normal(2, 4).requires_grad_()
    generator(x_t, 1, z, torch.tensor([0, 1])).sample.sum().backward()
    norms = [weight for name, weight in generator.named_parameters() if ".norm" in name and "linear.weight" in name]
    assert len(norms) == 2 * sum(type(module).__name__ == "AdaptiveBlock" for module in generator.modules())
    assert all(weight.grad.abs().max() > 0 for weight in norms) and z.grad.abs().max() > 0


@pytest.mark.parametrize("name", GENERATOR_PRESETS)
def test_no_norm_takes_t_out_again(name):
    """What is added to all channels of a group alike vanishes in its norm, so a group of one channel is blind to t."""
    with torch.device("meta"):
        norms = [m for m in generator_preset(name).modules() if isinstance(m, (torch.nn.GroupNorm, AdaGroupNorm))]
    per_group = [m.num_channels // m.num_groups for m in norms if isinstance(m, torch.nn.GroupNorm)]
    per_group += [m.linear.out_features // 2 // m.num_groups for m in norms if isinstance(m, AdaGroupNorm)]
    assert min(per_group) >= 4


def test_the_generator_of_digits_sees_t():
    torch.manual_seed(0)
    generator, x_t, z = generator_preset("mnist").eval(), normal(2, 1, 28, 28), normal(2, 100, seed=1)
    with torch.no_grad():
        first, *others = (generator(x_t, t, z).sample for t in range(4))
    assert min((first - other).std().item() for other in others) > 0.02


@pytest.mark.parametrize("num_classes", [3, None])
def test_without_z_one_image_belongs_to_each_x_t(num_classes):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of weights of nothing
        generator, y = generator_preset("tiny", latent_dim=0, num_classes=num_classes).eval(), torch.tensor([1, 1])
    x_t = normal(1, 1, 8, 8).expand(2, -1, -1, -1)
    x_0 = generator(x_t, 1, torch.empty(2, 0), y if num_classes else None).sample
    assert x_0.isfinite().all() and torch.allclose(x_0[0], x_0[1], atol=1e-6)


def test_checkpointed_gradients_are_the_same(generator):
    x_t, z, y = normal(2, 1, 8, 8), normal(2, 4), torch.tensor([0, 1])
    found = []
    for checkpointed in (False, True):
        (generator.enable_gradient_checkpointing if checkpointed else generator.disable_gradient_checkpointing)()
        generator.zero_grad()
        generator(x_t, 1, z, y).sample.square().sum().backward()
        found.append([weight.grad.clone() for weight in generator.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_the_discriminator_sees_both_images_t_and_the_class(discriminator):
    previous, x_t, y = normal(4, 1, 8, 8), normal(4, 1, 8, 8, seed=1), torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        logits = discriminator(previous, x_t, 1, y).logits
        others = [
            discriminator(x_t, x_t, 1, y),
            discriminator(previous, previous, 1, y),
            discriminator(previous, x_t, 2, y),
            discriminator(previous, x_t, 1, y.flip(0)),
        ]
    assert logits.shape == (4,)
    assert min((logits - other.logits).abs().max().item() for other in others) > 1e-3


def test_the_class_is_asked_for_by_an_inner_product(discriminator):
    """Of the same features, two classes differ by that of their embeddings' difference (arXiv 1802.05637, eq. 4)."""
    previous, x_t = normal(4, 1, 8, 8), normal(4, 1, 8, 8, seed=1)
    seen = []
    torch.nn.init.zeros_(discriminator.classes_in.weight)  # which is the other way in
    discriminator.head.register_forward_hook(lambda _layer, features, _out: seen.append(features[0]))
    with torch.no_grad():
        zero, two = (discriminator(previous, x_t, 1, torch.full((4,), k)).logits for k in (0, 2))
        embedding = discriminator.classes.weight
        wanted = seen[0] @ (embedding[2] - embedding[0]) / math.sqrt(8)
    torch.testing.assert_close(two - zero, wanted, atol=1e-5, rtol=1e-4)


def test_full_precision_leaves_an_autocast_around_it(discriminator):
    pair = normal(4, 1, 8, 8), normal(4, 1, 8, 8, seed=1), 1, torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        wanted = discriminator(*pair).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            whole, half = (discriminator(*pair, full_precision=full).logits for full in (True, False))
    assert torch.equal(whole, wanted) and not torch.allclose(half.float(), wanted, atol=1e-4)


def test_one_image_is_judged_with_finite_gradients(discriminator):
    previous = normal(1, 1, 8, 8).requires_grad_()
    logits = discriminator(previous, normal(1, 1, 8, 8), 0, torch.tensor([1])).logits
    (slope,) = torch.autograd.grad(logits.sum(), previous, create_graph=True)
    slope.square().sum().backward()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in discriminator.parameters())


def test_oblong_images_and_odd_levels():
    torch.manual_seed(0)
    generator = generator_preset("tiny", sample_size=(8, 16), patch_size=1, attention_resolutions=(4,))
    assert generator(normal(2, 1, 8, 16), 0, normal(2, 4)).sample.shape == (2, 1, 8, 16)
    judge = discriminator_preset("tiny", sample_size=(12, 20), block_out_channels=(4, 8, 8), down_blocks=(True, True))
    assert judge(normal(2, 1, 12, 20), normal(2, 1, 12, 20), 0).logits.shape == (2,)


def test_a_generator_without_z_opens_again(tmp_path):
    generator_preset("tiny", latent_dim=0, num_classes=3).save_pretrained(tmp_path)
    assert DDGANGenerator.from_pretrained(tmp_path).config["latent_dim"] == 0


@pytest.mark.parametrize("layers", [33, 10**9])
def test_a_config_of_a_stranger_is_looked_at_first(layers, tmp_path):
    generator_preset("tiny").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"mapping_layers": layers}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"has mapping_layers={layers}, which must be from 1 to 32"):
        DDGANGenerator.from_pretrained(tmp_path)


@pytest.mark.parametrize("build", [generator_preset, discriminator_preset])
def test_saved_and_opened_they_are_the_same(build, tmp_path):
    torch.manual_seed(0)
    network = build("tiny", num_classes=3).eval()
    network.save_pretrained(tmp_path)
    again = type(network).from_pretrained(tmp_path).eval()
    images = (normal(2, 1, 8, 8), normal(2, 1, 8, 8, seed=1))
    inputs = (images[0], 1, normal(2, 4)) if build is generator_preset else (*images, 1)
    with torch.no_grad():
        one, other = (net(*inputs, class_labels=torch.tensor([0, 2]), return_dict=False)[0] for net in (network, again))
    assert torch.equal(one, other)


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"patch_size": 3}, "patch_size=3 must divide height and width, 8 and 8"),
        (
            {"sample_size": 6, "attention_resolutions": ()},
            "images of size 6x6 do not fit a network with 2 levels: height and width must be multiples of 4",
        ),
        ({"attention_resolutions": (16,)}, r"attention_resolutions=\[16\] contains 16, but .* the image heights 4, 2"),
        ({"attention_head_dim": 3}, "attention_head_dim=3 must divide the channels .* does not divide 8"),
        ({"latent_dim": -1}, "latent_dim=-1 must be at least 0; 0 is a generator without z"),
        ({"dropout": 1.0}, r"dropout=1\.0 must be a probability"),
        ({"wide": 1}, "DDGANGenerator has no keyword 'wide'"),
    ],
)
def test_a_generator_that_cannot_be(keywords, sentence):
    with pytest.raises(UserError, match=sentence), torch.device("meta"):
        generator_preset("tiny", **keywords)


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        (
            {"down_blocks": (True, True)},
            "length of block_out_channels is 2 and that of down_blocks is 2: block_out_channels needs the width of",
        ),
        ({"sample_size": 2}, r"images of size 2x2 with patch_size=2 are too small to be halved 1 time\(s\): set f"),
        ({"patch_size": 3}, "patch_size=3 must divide"),
        ({"group_size": 0}, r"group_size=0 must be"),
    ],
)
def test_a_discriminator_that_cannot_be(keywords, sentence):
    with pytest.raises(UserError, match=sentence), torch.device("meta"):
        discriminator_preset("tiny", **keywords)


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ((normal(2, 1, 9, 9), 0, normal(2, 4), torch.tensor([0, 1])), r"images of shape \(2, 1, 9, 9\)"),
        ((normal(2, 1, 8, 8), 0, normal(2, 5), torch.tensor([0, 1])), r"z of shape \(2, 5\) must have shape \(2, 4\)"),
        ((normal(2, 1, 8, 8), 0, None, torch.tensor([0, 1])), r"z of type NoneType must be a tensor of shape \(2, 4\)"),
        (
            ([1.0], 0, normal(2, 4), torch.tensor([0, 1])),
            r"images of type list must be a tensor of shape \(B, 1, 8, 8\)",
        ),
        (
            (normal(2, 1, 8, 8), torch.zeros(3), normal(2, 4), torch.tensor([0, 1])),
            "one number, or one for each .* size 2",
        ),
        ((normal(2, 1, 8, 8), 0, normal(2, 4), torch.tensor([0, 3])), r"class_labels 0\.\.3 must lie within 0\.\.2"),
        (
            (normal(2, 1, 8, 8), 0, normal(2, 4), torch.tensor([0.0, 1.0])),
            "class_labels of dtype torch.float32 must be integers",
        ),
        ((normal(2, 1, 8, 8), 0, normal(2, 4), [0, 1]), r"pass class_labels of shape \(2,\), not \[0, 1\]"),
        (
            (normal(2, 1, 8, 8), 0, normal(2, 4), torch.tensor([0, 1]), 1.5),
            "truncation=1.5 must be a number from 0 to 1",
        ),
        ((normal(2, 1, 8, 8), 0, normal(2, 4), None), r"num_classes=3: pass class_labels of shape \(2,\), not None"),
    ],
)
def test_inputs_that_do_not_fit(inputs, sentence, generator):
    with pytest.raises(ValueError, match=sentence):
        generator(*inputs)


@pytest.mark.parametrize(
    ("previous", "sample", "sentence"),
    [
        (normal(2, 1, 8, 8), normal(2, 1, 9, 9), r"^images of shape \(2, 1, 9, 9\) must have shape \(B, 1, 8, 8\)"),
        (
            normal(2, 1, 8, 8),
            normal(1, 1, 8, 8),
            r"previous images of shape \(2, 1, 8, 8\) must have shape \(1, 1, 8, 8\)",
        ),
        ([1.0], normal(1, 1, 8, 8), "previous images of type list must be a tensor"),
    ],
)
def test_pairs_that_do_not_fit(previous, sample, sentence):
    with pytest.raises(ValueError, match=sentence):
        discriminator_preset("tiny")(previous, sample, 0)


def test_half_precision_weights_cannot_compute_in_full_precision():
    half, x = discriminator_preset("tiny").bfloat16(), normal(4, 1, 8, 8).bfloat16()
    with pytest.raises(
        ValueError, match=r"full_precision=True requires weights in torch.float32, not in torch.bfloat16"
    ):
        half(x, x, 0, full_precision=True)


def test_labels_of_a_network_without_classes_are_refused():
    with pytest.raises(ValueError, match="must be omitted: this network was created without num_classes"):
        DDGANGenerator(8, block_out_channels=(4,), attention_resolutions=())(
            normal(1, 1, 8, 8), 0, normal(1, 100), torch.tensor([0])
        )
    with pytest.raises(ValueError, match="was created without num_classes"):
        DDGANDiscriminator(8, block_out_channels=(4,), down_blocks=())(
            normal(1, 1, 8, 8), normal(1, 1, 8, 8), 0, torch.tensor([0])
        )
