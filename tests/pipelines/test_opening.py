"""`from_pretrained` of files that are not what they should be: a sentence, whatever is wrong with them."""

import json

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from hf_ddpm import HFVAE, HFDDPMPipeline, HFVAEPipeline

INDEX, UNET, SCHEDULER = "model_index.json", "unet/config.json", "scheduler/scheduler_config.json"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
JUNK = ["x", [], [7], {}, 0, -1, 2.5, True, None]


@pytest.fixture
def folder(make_pipeline, tmp_path):
    make_pipeline().save_pretrained(tmp_path / "good")
    return tmp_path / "good"


def rewritten(file, **values):
    """The text that stood there, which stands there no more."""
    text = file.read_text()
    file.write_text(json.dumps(json.loads(text) | values))
    return text


def refusal(folder, kind=HFDDPMPipeline, **kwargs):
    with pytest.raises((ValueError, OSError)) as caught:
        kind.from_pretrained(folder, **kwargs)
    return str(caught.value)


@pytest.mark.parametrize("place", [UNET, SCHEDULER])
def test_whatever_stands_in_a_config_it_opens_or_is_a_sentence(place, folder):
    file = folder / place
    for name in json.loads(file.read_text()):
        for value in JUNK:
            text = rewritten(file, **{name: value})
            try:
                HFDDPMPipeline.from_pretrained(folder)
            except (ValueError, OSError) as error:
                assert str(error)
            file.write_text(text)
    HFDDPMPipeline.from_pretrained(folder)


@pytest.mark.parametrize("value", [None, 5, True, 1.5, "os", {}, [], ["diffusers"], ["diffusers", None]])
@pytest.mark.parametrize("name", ["unet", "scheduler", "vae"])
def test_a_component_is_a_library_and_a_class(name, value, folder):
    rewritten(folder / INDEX, **{name: value})
    assert refusal(folder).startswith((f"{INDEX} has {name}=", f"{INDEX} does not contain '{name}'"))


def test_an_index_without_a_class(folder):
    (folder / INDEX).write_text("{}")
    assert refusal(folder) == f"{INDEX} does not contain '_class_name': restore it from another copy"


@pytest.mark.parametrize("kept", [slice(1, None), slice(0, 0)], ids=["one is missing", "all are missing"])
def test_weights_that_are_in_no_file(kept, folder):
    weights = load_file(folder / WEIGHTS)
    save_file(dict([*weights.items()][kept]) | {"x": torch.zeros(1)}, folder / WEIGHTS, metadata={"format": "pt"})
    assert "config.json and the weights do not belong to the same model" in refusal(folder)


def test_a_vae_of_another_class_is_not_taken_for_ours(tmp_path):
    AutoencoderKL(sample_size=8, block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="weights are missing"):
        HFVAE.from_pretrained(tmp_path)


@pytest.mark.parametrize(("dtype", "name"), [(torch.int64, "I64"), (torch.bool, "BOOL"), (torch.complex64, "C64")])
def test_weights_are_floating_numbers(dtype, name, folder):
    weights = {key: value.to(dtype) for key, value in load_file(folder / WEIGHTS).items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    assert refusal(folder).endswith(f" with dtype {name}, which must be one of F64, F32, F16, BF16")


def test_a_variant_that_is_there_is_named(folder):
    (folder / WEIGHTS).rename(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert refusal(folder) == f"{folder}/{WEIGHTS} is missing: restore it from another copy, or pass variant='fp16'"
    assert HFDDPMPipeline.from_pretrained(folder, variant="fp16").unet.device.type == "cpu"


def test_a_vae_pipeline_reads_nothing_of_a_unet(folder):
    HFVAE(sample_size=8, hidden_sizes=(16,)).save_pretrained(folder / "vae")
    rewritten(folder / INDEX, vae=["diffusers", "HFVAE"])
    (folder / WEIGHTS).write_bytes(b"12")
    assert HFVAEPipeline.from_pretrained(folder).vae.config["sample_size"] == 8


@pytest.mark.parametrize("source", [None, "", "nowhere"])
def test_what_names_nothing(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(source, local_files_only=True)
