"""The gate: each file is looked at once, whatever opens it."""

import json

import pytest

from hf_ddpm import HFVAE, HFDDPMPipeline
from hf_ddpm.gate.checked_files import CheckedFiles, is_checked
from hf_ddpm.opening import check_files

INDEX = "model_index.json"
COUNT = """
import json, os, sys
from diffusers import UNet2DModel
from hf_ddpm.checkpoint import load_checkpoint
from hf_ddpm.latent_data import open_vae
from hf_ddpm import HFDDPMPipeline, HFVAE
folder, counts = {folder!r}, {{}}
def count(event, args):
    if event == "open" and str(args[0]).startswith(folder):
        name = os.path.relpath(args[0], folder)
        counts[name] = counts.get(name, 0) + 1
sys.addaudithook(count)
for way in {ways!r}:
    counts.clear()
    eval(way)
    print(json.dumps(counts))
"""
STOCK = "UNet2DModel.from_pretrained(folder + '/unet')"
UNET, VAE, SCHEDULER = "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"
HEADERS = {name: f"{name}/diffusion_pytorch_model.safetensors" for name in ("unet", "vae")}


@pytest.fixture
def folder(make_pipeline, tmp_path):
    """Of a model in the latents of a VAE."""
    inner = make_pipeline({"clip_sample": False}, sample_size=8, in_channels=2, out_channels=2)
    vae = HFVAE(sample_size=16, latent_channels=2, network="conv", block_out_channels=(8, 8), scaling_factor=1.0)
    HFDDPMPipeline(inner.unet, inner.scheduler, vae=vae).save_pretrained(tmp_path / "latent")
    return tmp_path / "latent"


def rewritten(folder, **values):
    file = folder / INDEX
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture
def opened(folder, run_python):
    """How often each file is opened by each of some ways, one after the other in a fresh process."""

    def count(*ways):
        code = COUNT.format(folder=str(folder), ways=ways)
        return map(json.loads, run_python(code).stdout.splitlines()[-len(ways) :])

    return count


@pytest.mark.parametrize("opens", ["load_checkpoint(folder)", "HFDDPMPipeline.from_pretrained(folder)"])
def test_a_latent_model_is_looked_at_once(opens, opened):
    """Python's own opening of files; safetensors maps the weights without it, so theirs is the gate's look at headers.

    diffusers reads each config once more, and a network's as often as its loading takes.
    """
    counts, of_stock = opened(opens, STOCK)
    assert counts[INDEX] == counts[SCHEDULER] == 2
    assert counts[UNET] == counts[VAE] == 1 + of_stock[UNET]
    assert counts[HEADERS["unet"]] == counts[HEADERS["vae"]] == 1 + of_stock.get(HEADERS["unet"], 0)


@pytest.mark.parametrize("opens", ["open_vae(folder)", "HFVAE.from_pretrained(folder, subfolder='vae')"])
def test_a_vae_alone_is_looked_at_once(opens, opened):
    counts, of_stock = opened(opens, STOCK)
    assert counts[VAE] == 1 + of_stock[UNET]
    assert counts[HEADERS["vae"]] == 1 + of_stock.get(HEADERS["unet"], 0)


def test_what_is_being_opened_is_a_folder_and_what_lies_in_it(folder):
    files = CheckedFiles(folder, INDEX)
    assert not is_checked(folder)
    with files.being_opened():
        assert is_checked(folder) and is_checked(str(folder / "vae"))
        assert not is_checked(folder.parent) and not is_checked(None) and not is_checked("ada/digits")
    assert not is_checked(folder)
    with pytest.raises(ValueError, match="has the wrong type"), files.being_opened():
        raise TypeError
    assert not is_checked(folder)


@pytest.mark.parametrize("count", [1000, 21_000, 10**5])
def test_names_of_classes_pass(count, folder):
    names = {str(i): f"n{i:08d} a name as WordNet has them, {i}" for i in range(count)}
    rewritten(folder, id2label=names, null_class=count)
    files = CheckedFiles(folder, INDEX)
    assert check_files(HFDDPMPipeline, files, set(), None)["unet"] == UNET
    assert files.json(INDEX)["id2label"] == names


def test_no_names_and_no_null_class_pass(folder):
    rewritten(folder, id2label=None, null_class=None)
    assert HFDDPMPipeline.from_pretrained(folder).vae is not None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"id2label": ["diffusers", "UNet2DModel"]},
            r"has id2label=\['diff.*\], which must be an object of names",
        ),
        ({"id2label": {"0": 7}}, r"has id2label=\{'0': 7\}, which must be an object of names: fix it"),
        ({"id2label": {"0": ["os", "system"]}}, "has id2label=.*, which must be an object of names: fix it"),
        ({"id2label": "three"}, "has id2label='three', which must be an object of names: fix it"),
        (
            {"id2label": dict.fromkeys(map(str, range(10**5 + 1)), "x")},
            "has id2label with 100001 names, and at most 100000 are",
        ),
        ({"null_class": "10"}, "has null_class='10', which must be null or an integer from 0 to 100000: fix it"),
        ({"null_class": True}, "has null_class=True, which must be null or an integer from 0 to 100000: fix it"),
        ({"null_class": -1}, "has null_class=-1, which must be null or an integer from 0 to 100000: fix it"),
        ({"null_class": [1]}, r"has null_class=\[1\], which must be null or an integer from 0 to 100000: fix it"),
        ({"null_class": {"os": "system"}}, "has null_class=.*, which must be null or an integer from 0 to 100000"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_name_and_no_class_is_refused(values, said, folder):
    rewritten(folder, **values)
    with pytest.raises(ValueError, match=f"^{folder}/{INDEX} {said}"):
        HFDDPMPipeline.from_pretrained(folder)
