"""What stands in a network's place is saved whole or rejected, and dtypes may be passed by their names."""

import json

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from hf_ddpm import HFVAE, HFDDPMPipeline
from hf_ddpm.models.savable import check_savable, with_dtypes


class Adapter(nn.Module):
    """A layer that is added to another one, as LoRA does."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.more = layer, nn.Linear(layer.in_features, layer.out_features)

    def forward(self, x):
        return self.layer(x) + self.more(x)


class Wrapper(nn.Module):
    """A module that shows the config of the network that it contains."""

    def __init__(self, network):
        super().__init__()
        self.network, self.config, self.dtype, self.device = network, network.config, network.dtype, network.device

    def forward(self, *args, **kwargs):
        return self.network(*args, **kwargs)


def adapt(unet):
    unet.time_embedding.linear_1 = Adapter(unet.time_embedding.linear_1)


def resize(unet):
    unet.conv_in = nn.Conv2d(2, unet.conv_in.out_channels, 3, padding=1)


CHANGES = {
    "an adapter": (adapt, "unet has been changed .* 6 of its weights, such as time_embedding.linear_1.bias"),
    "another size": (resize, "unet has been changed .* 1 of its weights, such as conv_in.weight"),
    "pruning": (lambda unet: prune.l1_unstructured(unet.conv_in, "weight", 0.2), "unet has been changed .* 3 of its"),
    "a norm": (lambda unet: parametrizations.weight_norm(unet.conv_in), "unet has been changed .* 3 of its weights"),
    "quantization": (
        lambda unet: torch.ao.quantization.quantize_dynamic(unet, {nn.Linear}, inplace=True),
        "unet has been changed",
    ),
    "offloading": (lambda unet: unet.to("meta"), "unet has weights that are not in memory"),
}


@pytest.mark.filterwarnings("ignore:.*[Qq]uantiz")  # by torch, that its quantization moves
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_network_is_not_saved(change, make_pipeline, tmp_path):
    pipeline = make_pipeline()
    how, sentence = CHANGES[change]
    how(pipeline.unet)
    with pytest.raises(ValueError, match=sentence):
        pipeline.save_pretrained(tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


def test_a_changed_network_of_ours_is_not_saved_on_its_own(tmp_path):
    vae = HFVAE(sample_size=8, latent_channels=2, hidden_sizes=(4,))
    prune.l1_unstructured(next(part for part in vae.modules() if isinstance(part, nn.Linear)), "weight", 0.5)
    with pytest.raises(ValueError, match="the network has been changed and cannot be saved: 3 of its weights"):
        vae.save_pretrained(tmp_path / "vae")
    assert not (tmp_path / "vae").exists()


def test_the_remedy_works(make_pipeline, tmp_path):
    pipeline = make_pipeline()
    prune.l1_unstructured(pipeline.unet.conv_in, "weight", 0.2)
    prune.remove(pipeline.unet.conv_in, "weight")
    pipeline.save_pretrained(tmp_path)
    again = HFDDPMPipeline.from_pretrained(tmp_path)
    assert torch.equal(again.unet.conv_in.weight, pipeline.unet.conv_in.weight)


def test_a_wrapper_runs_if_it_has_a_config_and_is_not_saved(make_pipeline, tmp_path):
    pipeline, wrapped = make_pipeline(), make_pipeline()
    wrapped.unet = Wrapper(wrapped.unet)
    drawn = [p(2, 3, generator=torch.Generator().manual_seed(0), output_type="pt").images for p in (pipeline, wrapped)]
    assert torch.equal(*drawn)
    with pytest.raises(ValueError, match="unet of type Wrapper cannot be saved: replace it with the network that it"):
        wrapped.save_pretrained(tmp_path / "checkpoint")
    wrapped.unet = nn.DataParallel(pipeline.unet)
    with pytest.raises(ValueError, match="unet of type DataParallel has no config: pass the network itself"):
        wrapped(2, 3)


def test_a_compiled_network_is_saved_as_the_network_itself(make_pipeline, tmp_path):
    pipeline = make_pipeline()
    plain = pipeline.unet
    pipeline.unet = torch.compile(plain, backend="eager")
    pipeline.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["unet"] == ["diffusers", "UNet2DModel"]
    again = HFDDPMPipeline.from_pretrained(tmp_path).unet.state_dict()
    assert all(torch.equal(again[name], weight) for name, weight in plain.state_dict().items())


def test_checking_draws_no_random_number(make_pipeline):
    unet, before = make_pipeline().unet, torch.random.get_rng_state()
    check_savable("unet", unet)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("given", ["float16", "torch.float16", torch.float16, {"unet": "float16"}])
def test_a_dtype_may_be_passed_by_its_name(given, make_pipeline, tmp_path):
    make_pipeline().save_pretrained(tmp_path)
    assert HFDDPMPipeline.from_pretrained(tmp_path, dtype=given).unet.dtype == torch.float16


@pytest.mark.parametrize("given", ["half", "auto", "int8", "fp16", {"default": "f16"}])
def test_a_dtype_that_does_not_exist_is_an_error(given, make_pipeline, tmp_path):
    make_pipeline().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"dtype='.*' must be one of float32, float16, bfloat16, float64"):
        HFDDPMPipeline.from_pretrained(tmp_path, dtype=given)


def test_a_network_takes_the_name_of_a_dtype_too(tmp_path):
    HFVAE(sample_size=8, latent_channels=2, hidden_sizes=(4,)).save_pretrained(tmp_path)
    assert HFVAE.from_pretrained(tmp_path, dtype="bfloat16").dtype == torch.bfloat16
    assert with_dtypes({"revision": "main"}) == {"revision": "main"}
