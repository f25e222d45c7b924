"""`ADMUNet`: its start at zero, its inputs, the three doors, and what it refuses. Parity is in tests/conversion."""

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DModel
from diffusers.models.attention_processor import Attention

from hf_ddpm import ADMUNet, HFDDPMPipeline, HFDDPMScheduler
from hf_ddpm.errors import UserError
from hf_ddpm.models import unet_preset

SMALL = {
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
}


def randomised(**keywords):
    """A network without zeros, whose output depends on everything."""
    torch.manual_seed(0)
    network = ADMUNet(**SMALL | keywords).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network


def x_t(batch=2, size=16):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_the_first_prediction_is_zero():
    assert torch.equal(ADMUNet(**SMALL)(x_t(), 5).sample, torch.zeros(2, 6, 16, 16))


def test_it_is_diffusers_network_where_that_suffices():
    """With heads of one width and the width of the first level for t, the weights and outputs are the same."""
    ours = randomised(num_class_embeds=5)
    keywords = {"num_class_embeds": 5, "out_channels": 6, "attention_head_dim": 16, "attn_norm_num_groups": 8}
    keywords |= {"resnet_time_scale_shift": "scale_shift", "downsample_type": "resnet", "upsample_type": "resnet"}
    stock = UNet2DModel(**SMALL, **keywords).eval()
    stock.load_state_dict(ours.state_dict())
    t, y = torch.tensor([3, 700]), torch.tensor([4, 0])
    with torch.no_grad():
        assert torch.equal(ours(x_t(), t, y).sample, stock(x_t(), t, y).sample)
        assert torch.equal(ours(x_t(), t, y, return_dict=False)[0], ours(x_t(), t, class_labels=y).sample)


def test_heads_are_a_number_or_a_width():
    by_number, by_width = ADMUNet(**SMALL), ADMUNet(**SMALL, num_heads=None, attention_head_dim=32)
    assert {layer.heads for layer in by_number.modules() if isinstance(layer, Attention)} == {4}
    assert {layer.heads for layer in by_width.modules() if isinstance(layer, Attention)} == {2}


def test_the_width_of_t_may_differ_from_that_of_the_first_level():
    assert ADMUNet(**SMALL, time_embedding_channels=48).time_embedding.linear_2.weight.shape == (192, 192)
    assert ADMUNet(**SMALL).time_embedding.linear_2.weight.shape == (128, 128)


def test_rescaled_timesteps_are_those_of_a_thousand_steps():
    quarter = randomised(time_embedding_type="learned", num_train_timesteps=4000)
    plain = ADMUNet(**SMALL).eval()
    weights = {name: value for name, value in quarter.state_dict().items() if not name.startswith("time_proj")}
    plain.load_state_dict(weights)
    fresh = ADMUNet(**SMALL, time_embedding_type="learned", num_train_timesteps=4000)
    quarter.time_proj.load_state_dict(fresh.time_proj.state_dict())
    assert not fresh.time_proj.weight.requires_grad
    with torch.no_grad():
        assert torch.allclose(quarter(x_t(), 4 * 321).sample, plain(x_t(), 321).sample, atol=1e-6)
        assert not torch.allclose(quarter(x_t(), 321).sample, plain(x_t(), 321).sample, atol=1e-2)


def test_an_upsampler_sees_the_enlarged_image():
    upsampler = randomised(low_res_channels=3)
    small = x_t(size=4)
    with torch.no_grad():
        found = upsampler(x_t(), 5, low_res=small).sample
        enlarged = torch.nn.functional.interpolate(small, size=(16, 16), mode="bilinear")
        assert torch.equal(found, upsampler(x_t(), 5, low_res=enlarged).sample)
        assert not torch.allclose(found, upsampler(x_t(), 5, low_res=-small).sample, atol=1e-3)


def test_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        network = randomised().train()
        if checkpointing:
            network.enable_gradient_checkpointing()
        network(x_t(), torch.tensor([3, 700])).sample.square().mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"num_heads": None}, "num_heads=None and attention_head_dim=None: exactly one of them must be given"),
        ({"attention_head_dim": 8}, "num_heads=4 and attention_head_dim=8: exactly one"),
        ({"num_heads": 3}, "num_heads=3 must divide the channels .* 64"),
        ({"num_heads": None, "attention_head_dim": 24}, "attention_head_dim=24 must divide .* 64"),
        ({"norm_num_groups": 24}, "must be multiples of norm_num_groups=24"),
        ({"sample_size": 15}, "images of size 15x15 do not fit a network with 2 levels"),
        ({"down_block_types": ("AttnDownBlock2D",)}, "are 2, 1 and 2: all must have one entry per level"),
        ({"down_block_types": ("Down", "AttnDownBlock2D")}, "down_block_types"),
        ({"dropout": 1.0}, "dropout=1.0 a probability"),
        ({"low_res_channels": -1}, "low_res_channels=-1 must be at least 0"),
        ({"time_embedding_type": "learned"}, "only 'learned' is a table with T rows"),
        ({"num_train_timesteps": 10}, "only 'learned' is a table with T rows"),
        ({"num_heads": 0}, "num_heads=0 must be a whole number of at least 1"),
        ({"num_class_embeds": 0}, "num_class_embeds=0 must be a whole number of at least 1"),
        ({"time_embedding_channels": 0}, "time_embedding_channels=0 must be a whole number of at least 1"),
        ({"time_embedding_type": "learned", "num_train_timesteps": 0}, "num_train_timesteps=0 must be a whole number"),
        ({"layers_per_block": 0}, "layers_per_block=0 must be a whole number of at least 1"),
    ],
)
def test_numbers_that_do_not_fit(keywords, sentence):
    with pytest.raises(ValueError, match=sentence):
        ADMUNet(**SMALL | keywords)


@pytest.mark.parametrize(
    ("keywords", "call", "sentence"),
    [
        ({}, {"class_labels": torch.tensor([1, 1])}, "do not fit a network that has no classes"),
        ({"num_class_embeds": 3}, {}, "class_labels of type NoneType do not fit a network that has classes"),
        ({"num_class_embeds": 3}, {"class_labels": torch.tensor([[1], [2]])}, r"class_labels of shape \(2, 1\) must"),
        ({}, {"low_res": x_t(size=4)}, "low_res of type Tensor does not fit: this network has no such input"),
        ({"low_res_channels": 3}, {}, "low_res of type NoneType does not fit: this network needs 3 channels"),
        ({"low_res_channels": 1}, {"low_res": x_t(size=4)}, r"low_res of shape \(2, 3, 4, 4\) must have shape \(2, 1,"),
        ({}, {"timestep": torch.tensor([1, 2, 3])}, r"timesteps of shape \(3,\) must be one number, or one for each"),
        ({"in_channels": 1}, {}, r"images of shape \(2, 3, 16, 16\) must have shape \(B, 1, H, W\)"),
    ],
)
def test_inputs_that_do_not_fit(keywords, call, sentence):
    with pytest.raises(ValueError, match=sentence):
        ADMUNet(**SMALL | keywords)(**{"sample": x_t(), "timestep": 5} | call)


def test_the_doors(tmp_path):
    """Doors 1 and 3 give the same images; plain diffusers, which has no such network, fails loudly."""
    pipeline = HFDDPMPipeline(randomised(), HFDDPMScheduler(20, variance_type="learned_range"))
    pipeline.save_pretrained(tmp_path)

    def drawn(opened):
        opened.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        return opened(batch_size=2, num_inference_steps=5, generator=generator, output_type="np").images

    expected = drawn(pipeline)
    assert (drawn(HFDDPMPipeline.from_pretrained(tmp_path)) == expected).all()
    third = DiffusionPipeline.from_pretrained(tmp_path, custom_pipeline=str(tmp_path), trust_remote_code=True)
    assert (drawn(third) == expected).all()
    with pytest.raises((AttributeError, ValueError, OSError)):
        DiffusionPipeline.from_pretrained(tmp_path)


def test_an_upsampler_is_refused_where_there_is_no_low_resolution_image():
    with pytest.raises(ValueError, match="unet is an upsampler with low_res_channels=3, and this pipeline has no low"):
        HFDDPMPipeline(ADMUNet(**SMALL, low_res_channels=3), HFDDPMScheduler())


def test_a_preset_takes_the_keywords_of_its_network():
    with torch.device("meta"):
        assert unet_preset("adm-128", num_heads=2).config.num_heads == 2
        assert unet_preset("adm-512", in_channels=1).config.out_channels == 2
        with pytest.raises(UserError, match="UNet2DModel has no keyword 'num_heads'"):
            unet_preset("adm-64", num_heads=2)
        with pytest.raises(UserError, match="ADMUNet has no keyword 'attn_norm_num_groups'"):
            unet_preset("adm-128", attn_norm_num_groups=2)
