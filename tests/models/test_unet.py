"""The UNet presets: the papers' sizes, their initial weights, and where t, heads, dropout and labels arrive."""

import json
import math
import re

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from hf_ddpm.errors import UserError
from hf_ddpm.models import UNET_PRESETS, check_image_size, init_unet, unet_preset

# One closing layer per residual branch, told by name so that the test does not repeat the code.
CLOSING = re.compile(r"(\.conv2|\.to_out\.0|^conv_out)\.(weight|bias)$")

# Two levels of the DDPM row and of the ADM row, in a size that runs in milliseconds.
SHRUNK_DDPM = {
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
    "sample_size": 16,
}
SHRUNK_ADM = {
    **SHRUNK_DDPM,
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "layers_per_block": 1,
}


def on_meta(name: str, **overrides) -> UNet2DModel:
    with torch.device("meta"):
        return unet_preset(name, **overrides)


def wake(model: UNet2DModel) -> UNet2DModel:
    """Give the closing layers ordinary weights, so that the whole network takes part in the output."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if CLOSING.search(name):
            parameter.data.normal_(0, 0.1, generator=generator)
    return model.eval()


# Sizes


@pytest.mark.parametrize("name", UNET_PRESETS)
def test_preset_has_its_stated_number_of_parameters(name):
    assert sum(p.numel() for p in on_meta(name).parameters()) == UNET_PRESETS[name].parameters


@pytest.mark.parametrize(
    "name, published",
    # DDPM, appendix B; ADM, the table of hyper-parameters in appendix I.
    [("ddpm-cifar10", 35.7e6), ("ddpm-256", 114e6), ("adm-64", 296e6), ("adm-256", 554e6), ("adm-lsun-256", 552e6)],
)
def test_parameters_agree_with_the_papers(name, published):
    assert UNET_PRESETS[name].parameters == pytest.approx(published, rel=0.004)


def test_ddpm_cifar10_is_the_published_google_configuration():
    config = on_meta("ddpm-cifar10").config
    published = {
        "act_fn": "silu",
        "attention_head_dim": None,
        "block_out_channels": (128, 256, 256, 256),
        "center_input_sample": False,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "in_channels": 3,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-6,
        "norm_num_groups": 32,
        "out_channels": 3,
        "resnet_time_scale_shift": "default",
        "sample_size": 32,
        "time_embedding_type": "positional",
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    }
    assert {key: config[key] for key in published} == published


# Settings that arrive in the modules


@pytest.mark.parametrize(
    "name, heads",
    [
        ("ddpm-cifar10", {256: 1}),
        ("ddpm-256", {512: 1}),
        ("ddim-celeba64", {256: 1, 512: 1}),
        ("iddpm-cifar10", {256: 4}),
        ("adm-64", {384: 6, 576: 9, 768: 12}),
        ("adm-256", {512: 8, 1024: 16}),
    ],
)
def test_heads_of_every_attention(name, heads):
    found = {(m.query_dim, m.heads, m.inner_dim) for m in on_meta(name).modules() if isinstance(m, Attention)}
    assert found == {(width, count, width) for width, count in heads.items()}


@pytest.mark.parametrize("name", UNET_PRESETS)
def test_every_attention_is_normalised(name):
    assert all(m.group_norm is not None for m in on_meta(name).modules() if isinstance(m, Attention))


@pytest.mark.parametrize("name, rate", [("ddpm-cifar10", 0.1), ("ddpm-256", 0.0), ("iddpm-cifar10", 0.3)])
def test_dropout_arrives_in_every_residual_block(name, rate):
    assert {m.dropout.p for m in on_meta(name).modules() if isinstance(m, ResnetBlock2D)} == {rate}


@pytest.mark.parametrize("name", ["adm-64", "adm-256", "adm-lsun-256"])
def test_adm_resamples_inside_residual_blocks_only(name):
    model = on_meta(name)
    assert not [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    resampling = [m for m in model.modules() if isinstance(m, ResnetBlock2D) and (m.up or m.down)]
    assert len(resampling) == 2 * (len(model.config.block_out_channels) - 1)


@pytest.mark.parametrize("name", ["ddpm-cifar10", "adm-64"])
def test_time_embedding_is_the_papers(name):
    """DDPM: (sin, cos), frequencies down to exactly 1/10000. OpenAI: (cos, sin), the last one not reached."""
    t = 7.0
    embedding = unet_preset(name, **SHRUNK_DDPM).time_proj(torch.tensor([t]))[0].double()
    half = len(embedding) // 2
    last = half - 1 if name == "ddpm-cifar10" else half
    angles = t * torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float64) / last)
    parts = [angles.sin(), angles.cos()] if name == "ddpm-cifar10" else [angles.cos(), angles.sin()]
    torch.testing.assert_close(embedding, torch.cat(parts), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["ddpm-cifar10", "iddpm-cifar10"])
def test_rescaled_timesteps_are_a_table_that_is_not_trained(name):
    """Improved DDPM: with T = 4000 the network is told t / 4, here to a tenth of the error that whole numbers make."""
    torch.manual_seed(0)
    model = wake(unet_preset(name, **SHRUNK_DDPM, time_embedding_type="learned", num_train_timesteps=4000))
    plain = unet_preset(name, **SHRUNK_DDPM).eval()
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if key != "time_proj.weight"})
    x, t = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 402, 3999])
    with torch.no_grad():
        told, quarter, rounded = (net(x, s).sample for net, s in ((model, t), (plain, t / 4), (plain, t // 4)))
    torch.testing.assert_close(told, quarter, atol=2e-5, rtol=0)
    assert (told - rounded).abs().max() > 1e-3
    assert [key for key, weight in model.named_parameters() if not weight.requires_grad] == ["time_proj.weight"]


# Initial weights


def test_fan_avg_weights_are_uniform_with_the_papers_variance():
    torch.manual_seed(0)
    model = unet_preset("ddpm-cifar10", **SHRUNK_DDPM)
    checked = 0
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        scale = 1e-10 if CLOSING.search(f"{name}.weight") else 1.0
        receptive = math.prod(layer.weight.shape[2:])
        variance = scale / (receptive * (layer.weight.shape[0] + layer.weight.shape[1]) / 2)
        assert layer.weight.abs().max() <= math.sqrt(3 * variance) * (1 + 1e-6), name
        assert not layer.bias.any(), name
        if layer.weight.numel() > 4000:  # the sampling error of a uniform variance is 0.9 / sqrt(n)
            assert layer.weight.var().item() == pytest.approx(variance, rel=0.06), name
            checked += scale == 1.0
    assert checked > 10


@pytest.mark.parametrize("name", ["adm-64", "iddpm-cifar10"])
def test_pytorch_weights_are_the_constructors_but_for_exact_zeros(name):
    overrides = {**SHRUNK_ADM, "num_class_embeds": 5}
    torch.manual_seed(0)
    model = unet_preset(name, **overrides)
    torch.manual_seed(0)
    stock = UNet2DModel.from_config(model.config).state_dict()
    closing = [key for key in stock if CLOSING.search(key)]
    assert len(closing) > 20
    for key, value in model.state_dict().items():
        assert torch.equal(value, torch.zeros_like(value) if key in closing else stock[key]), key


def test_class_embeddings_stay_normal_in_the_fan_avg_style():
    torch.manual_seed(0)
    weight = unet_preset("ddpm-cifar10", **SHRUNK_DDPM, num_class_embeds=50).class_embedding.weight
    assert weight.std().item() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("name, largest", [("ddpm-cifar10", 1e-3), ("iddpm-cifar10", 0.0)])
def test_the_first_prediction_is_zero(name, largest):
    model = unet_preset(name, **SHRUNK_DDPM).eval()
    assert model(torch.randn(2, 3, 16, 16), torch.tensor([0, 999])).sample.abs().max() <= largest


def test_residual_blocks_start_as_the_identity():
    block = unet_preset("iddpm-cifar10", **SHRUNK_DDPM).mid_block
    x = torch.randn(2, 64, 8, 8)
    assert torch.equal(block(x, torch.randn(2, 128)), x)


def test_weights_are_a_function_of_torchs_seed():
    def weights(seed):
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(unet_preset("tiny").parameters())

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_unknown_init_is_refused():
    with pytest.raises(UserError, match="'fan_avg' or 'pytorch', not 'xavier'"):
        init_unet(unet_preset("tiny"), "xavier")


# What goes in and comes out


@pytest.mark.parametrize("name", ["tiny", "mnist"])
def test_t_changes_the_output_of_every_residual_block(name):
    """On its own, with the same input: no block depends on its neighbours for the time."""
    model = wake(unet_preset(name))
    width = model.config.block_out_channels[0] * 4
    for module in model.modules():
        if isinstance(module, ResnetBlock2D):
            x = torch.randn(1, module.in_channels, 8, 8)
            early, late = (module(x, torch.full((1, width), value)) for value in (0.5, 1.0))
            assert not torch.allclose(early, late)


def test_groups_of_one_channel_would_cancel_t():
    """The reason for refusing them: in a stock model with one channel a group, t has no effect whatever."""
    model = wake(
        UNet2DModel(
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=8,
        )
    )
    x = torch.randn(1, 1, 8, 8)
    torch.testing.assert_close(model(x, 0).sample, model(x, 999).sample, atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match="cancels the time embedding added to them; use fewer groups"):
        unet_preset("tiny", norm_num_groups=4)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name, factor", [("tiny", 1), ("iddpm-cifar10", 2)])
def test_any_channel_count(name, channels, factor):
    small = {} if name == "tiny" else SHRUNK_DDPM
    model = unet_preset(name, **small, in_channels=channels)
    assert model(torch.randn(2, channels, 8, 8), 3).sample.shape == (2, factor * channels, 8, 8)


def test_out_channels_given_are_kept():
    assert unet_preset("tiny", in_channels=4, out_channels=3).config.out_channels == 3


def test_labels_change_the_prediction():
    model = wake(unet_preset("adm-64", **SHRUNK_ADM, num_class_embeds=10))
    x = torch.randn(1, 3, 16, 16).expand(2, -1, -1, -1)
    first, second = model(x, 500, class_labels=torch.tensor([0, 1])).sample
    assert first.shape == (6, 16, 16)
    assert (first - second).abs().max() > 1e-3
    assert unet_preset("adm-64", **SHRUNK_ADM, num_class_embeds=None)(x, 500).sample.shape == (2, 6, 16, 16)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("blocks", ["", "Attn", "Resnet"])
def test_check_image_size_allows_exactly_what_runs(blocks, padding):
    """Three levels, heights 1 to 13, the width fixed: the check and the real network agree on each."""
    resample = "resnet" if blocks == "Resnet" else "conv"
    model = unet_preset(
        "tiny",
        block_out_channels=(4, 4, 4),
        down_block_types=("ResnetDownsampleBlock2D" if blocks == "Resnet" else f"{blocks}DownBlock2D",) * 3,
        up_block_types=("ResnetUpsampleBlock2D" if blocks == "Resnet" else f"{blocks}UpBlock2D",) * 3,
        downsample_type=resample,
        upsample_type=resample,
        downsample_padding=padding,
        sample_size=None,
    )
    for height in range(1, 14):
        x = torch.randn(1, 1, height, 8)
        try:
            check_image_size(model, height, 8)
        except UserError:
            with pytest.raises((RuntimeError, ValueError)):
                model(x, 0)
        else:
            assert model(x, 0).sample.shape == x.shape


def test_image_that_does_not_fit_is_told_the_nearest_sizes():
    config = UNET_PRESETS["mnist"].config
    check_image_size(config, 28, 32)
    with pytest.raises(UserError, match=r"30x28 .* 3 levels .* multiples of 4; .* to 28x28 or 32x28$"):
        check_image_size(config, 30, 28)
    with pytest.raises(UserError, match=r"pad to 4x4$"):
        check_image_size(config, 0, -3)
    with pytest.raises(ValueError, match="multiples of 32"):
        unet_preset("ddpm-256", sample_size=(256, 100))


def test_non_square_sample_size_is_kept():
    assert unet_preset("tiny", sample_size=[8, 16]).config.sample_size == (8, 16)


def test_saved_and_loaded_bit_for_bit_by_plain_diffusers(tmp_path):
    model = wake(unet_preset("tiny", num_class_embeds=3, sample_size=(8, 16), dropout=0.1))
    model.save_pretrained(tmp_path)
    loaded = UNet2DModel.from_pretrained(tmp_path)
    x, labels = torch.randn(2, 1, 8, 16), torch.tensor([0, 2])
    assert torch.equal(loaded(x, 5, class_labels=labels).sample, model(x, 5, class_labels=labels).sample)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["dropout"] == 0.1 and stored["sample_size"] == [8, 16] and stored["_class_name"] == "UNet2DModel"


# Mistakes


@pytest.mark.parametrize(
    "name, overrides, sentence",
    [
        ("minst", {}, r"no UNet preset 'minst'; use one of tiny, mnist, .*; did you mean mnist\?"),
        ("mnist", {"blok_out_channels": (8,)}, r"no keyword 'blok_out_channels'.*; did you mean block_out_channels"),
        (
            "mnist",
            {"block_out_channels": (16, 32)},
            "the lengths of block_out_channels, .* are 2, 3 and 3: all must have one",
        ),
        ("mnist", {"block_out_channels": (16, 32.0, 64)}, "positive whole numbers, not"),
        ("mnist", {"up_block_types": ("UpBlock2D",) * 2 + ("UpBlok2D",)}, "'UpBlok2D'.*; did you mean UpBlock2D"),
        ("mnist", {"norm_num_groups": 6}, "norm_num_groups=6 does not divide .* use one of 1, 2, 4, or"),
        ("mnist", {"norm_num_groups": 2, "block_out_channels": (1, 3, 7)}, "block_out_channels; use other channels$"),
        ("mnist", {"norm_num_groups": None}, "norm_num_groups=None does not divide"),
        ("mnist", {"attention_head_dim": 24}, "attention_head_dim=24 does not divide the channels 64"),
        ("adm-64", {"attn_norm_num_groups": 7}, "attn_norm_num_groups=7 does not divide the channels 768"),
        ("mnist", {"sample_size": 30}, "30x30 does not fit"),
        ("mnist", {"sample_size": "28"}, r"one whole number or \(height, width\), not '28'"),
        ("mnist", {"time_embedding_type": "sinus"}, "'sinus' must be one of positional, learned"),
        ("mnist", {"time_embedding_type": "learned"}, "num_train_timesteps=None must be the number of timesteps"),
        ("mnist", {"dropout": 1.5}, r"dropout=1.5 must be a probability in \[0, 1\)"),
    ],
)
def test_mistakes_are_told_in_a_sentence(name, overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        on_meta(name, **overrides)


def test_presets_are_read_only():
    with pytest.raises(TypeError):
        UNET_PRESETS["mnist"].config["dropout"] = 0.5
    with pytest.raises(TypeError):
        UNET_PRESETS["mine"] = UNET_PRESETS["mnist"]


def test_override_reaches_the_model_and_leaves_the_preset_alone():
    assert unet_preset("tiny", dropout=0.2, layers_per_block=2).config.layers_per_block == 2
    assert unet_preset("tiny").config.layers_per_block == 1
