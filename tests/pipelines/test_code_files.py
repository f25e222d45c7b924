"""The code files of door 3: those that a checkpoint needs, and no line of a class that its user wrote."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DModel

from hf_ddpm import HFVAE, HFDDPMPipeline, HFDDPMScheduler, HFVAEPipeline
from hf_ddpm.pipelines.doors import GENERATED, code_files

DDPM, VAE = "hf_ddpm.pipelines.pipeline_hf_ddpm", "hf_ddpm.pipelines.pipeline_hf_vae"
SCHEDULER, NETWORK = "hf_ddpm.schedulers.scheduling_hf_ddpm", "hf_ddpm.models.vae"
OF_VAES = {"vae", "vae_likelihoods", "vae_networks", "gaussian"}
CONV = {"network": "conv", "block_out_channels": (8, 8), "latent_channels": 2, "likelihood": "gaussian_fixed"}
OPEN = """
import torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({folder!r}, custom_pipeline={folder!r}, trust_remote_code=True{given})
"""
DRAWN = "float(pipe(1, generator=torch.Generator().manual_seed(0), output_type='np'{steps}).images.std())"


class MyPipeline(HFDDPMPipeline):
    pass


class MyVAEPipeline(HFVAEPipeline):
    pass


class CalmScheduler(HFDDPMScheduler):
    def step(self, model_output, timestep, sample, **kwargs):
        return super().step(model_output, timestep, sample, **kwargs, variance_noise=torch.zeros_like(sample))


class MyUNet(UNet2DModel):
    pass


class MyVAE(HFVAE):
    pass


def index_of(folder):
    return json.loads((folder / "model_index.json").read_text())


def same_as(network, kind):
    return kind(**{name: value for name, value in network.config.items() if name[0] != "_"}).eval()


def make_vae(kind):
    torch.manual_seed(0)
    if kind is not AutoencoderKL:
        return kind(sample_size=16, scaling_factor=0.7, **CONV).eval()
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    return AutoencoderKL(1, 1, **blocks, block_out_channels=(8, 8), norm_num_groups=8, latent_channels=2).eval()


@pytest.fixture
def make(make_pipeline):
    """A pipeline by its kind: pixels, latents (of a class of VAEs), or a VAE alone."""

    def make(kind):
        if kind == "pixels":
            return make_pipeline()
        if kind == "vae":
            return HFVAEPipeline(make_vae(HFVAE))
        inner = make_pipeline(sample_size=8, in_channels=2, out_channels=2)
        return HFDDPMPipeline(inner.unet, inner.scheduler, vae=make_vae(kind))

    return make


@pytest.mark.parametrize(
    ("kind", "roots", "count"),
    [
        ("pixels", (DDPM, SCHEDULER), 29),
        (AutoencoderKL, (DDPM, SCHEDULER), 29),
        (HFVAE, (DDPM, SCHEDULER, NETWORK), 34),
        ("vae", (VAE, NETWORK), 16),
    ],
    ids=str,
)
def test_the_files_of_a_checkpoint_are_those_that_it_needs(kind, roots, count, make, run_python, tmp_path):
    folder, again = tmp_path / "checkpoint", tmp_path / "again"
    make(kind).save_pretrained(folder)
    modules = code_files(roots[0], roots[1:])
    names = [module.rpartition(".")[2] for module in modules]
    assert len(set(names)) == len(names) == count  # two of one name would be one file
    saved = {path.stem: path.read_text() for path in folder.glob("*.py")}
    assert saved.keys() == {"pipeline", *names[1:]}
    assert (saved.keys() >= OF_VAES, bool(OF_VAES & saved.keys())) == (
        (True, True) if NETWORK in roots else (False, False)
    )
    drawn = DRAWN.format(steps="" if kind == "vae" else ", num_inference_steps=3")
    code = OPEN.format(folder=str(folder), given="") + f"print({drawn})\npipe.save_pretrained({str(again)!r})"
    shown = float(run_python(code, without_hf_ddpm=True).stdout.split()[-1])
    assert {path.stem: path.read_text() for path in again.glob("*.py")} == saved
    assert index_of(again).items() >= {k: v for k, v in index_of(folder).items() if k[0] != "_"}.items()
    pipe = (HFVAEPipeline if kind == "vae" else HFDDPMPipeline).from_pretrained(again)
    drawn_here = eval(drawn, {"torch": torch, "pipe": pipe})
    assert drawn_here == shown
    assert shown > 0


def test_two_of_one_family_open_by_door_3_in_one_process(make, run_python, tmp_path):
    """The second needs files that the first did not bring."""
    make("pixels").save_pretrained(tmp_path / "pixels")
    make(HFVAE).save_pretrained(tmp_path / "latents")
    code = OPEN.format(folder=str(tmp_path / "pixels"), given="") + OPEN.format(
        folder=str(tmp_path / "latents"), given=""
    )
    assert "HFVAE" in run_python(code + "print(type(pipe.vae).__name__)", without_hf_ddpm=True).stdout


@pytest.mark.parametrize("kind", ["pixels", "vae"])
def test_a_derived_pipeline_is_named_and_its_source_stays_at_home(kind, make, tmp_path):
    ours = make(kind)
    mine = (MyVAEPipeline if kind == "vae" else MyPipeline)(
        **ours.components | ({} if kind == "vae" else {"vae": None})
    )
    mine.save_pretrained(tmp_path / "mine")
    ours.save_pretrained(tmp_path / "ours")
    assert index_of(tmp_path / "mine")["_class_name"] == type(mine).__name__
    for file in (tmp_path / "ours").glob("*.py"):
        assert (tmp_path / "mine" / file.name).read_bytes() == file.read_bytes()
    for opener in (type(ours), type(mine)):
        assert type(opener.from_pretrained(tmp_path / "mine")) is opener


def test_a_derived_pipeline_is_saved_from_a_script_on_standard_input(tmp_path):
    code = """
from hf_ddpm import HFDDPMPipeline, HFDDPMScheduler, unet_preset
class Mine(HFDDPMPipeline): pass
Mine(unet_preset("tiny"), HFDDPMScheduler()).save_pretrained("mine")
"""
    subprocess.run([sys.executable, "-"], input=code, text=True, check=True, cwd=tmp_path, timeout=300)
    assert "class Mine" not in (tmp_path / "mine" / "pipeline.py").read_text()
    assert GENERATED in (tmp_path / "mine" / "pipeline.py").read_text()
    assert index_of(tmp_path / "mine")["_class_name"] == "Mine"


def test_a_derived_scheduler_is_named_and_asked_for(make, run_python, tmp_path):
    pipeline = make("pixels")
    pipeline.scheduler = CalmScheduler.from_config(pipeline.scheduler.config)
    pipeline.save_pretrained(tmp_path / "calm")
    assert index_of(tmp_path / "calm")["scheduler"] == [__name__, "CalmScheduler"]
    assert index_of(tmp_path / "calm")["_class_name"] == "HFDDPMPipeline"  # door 2 is shut: it would draw other images
    with pytest.raises(ValueError, match=r"from_pretrained\(..., scheduler=...\)"):
        HFDDPMPipeline.from_pretrained(tmp_path / "calm")
    calm = CalmScheduler.from_pretrained(tmp_path / "calm", subfolder="scheduler")
    opened = HFDDPMPipeline.from_pretrained(tmp_path / "calm", scheduler=calm)
    assert opened.scheduler is calm
    one, two = (
        p(2, 5, generator=torch.Generator().manual_seed(0), output_type="np").images for p in (pipeline, opened)
    )
    assert np.array_equal(one, two)
    refused = run_python(OPEN.format(folder=str(tmp_path / "calm"), given=""), without_hf_ddpm=True, check=False)
    assert "from_pretrained(..., scheduler=...)" in refused.stderr.splitlines()[-1]
    given = ", scheduler=__import__('diffusers').DDIMScheduler()"
    code = OPEN.format(folder=str(tmp_path / "calm"), given=given) + "print(type(pipe.scheduler).__name__)"
    assert "HFDDPMScheduler" in run_python(code, without_hf_ddpm=True).stdout


def test_a_network_of_ones_own_opens_as_the_message_says(make, tmp_path):
    pipeline = make("pixels")
    unet = same_as(pipeline.unet, MyUNet)
    HFDDPMPipeline(unet, pipeline.scheduler).save_pretrained(tmp_path)
    assert index_of(tmp_path)["unet"] == [__name__, "MyUNet"]
    with pytest.raises(ValueError, match=r"from_pretrained\(..., unet=...\)"):
        HFDDPMPipeline.from_pretrained(tmp_path)
    assert HFDDPMPipeline.from_pretrained(tmp_path, unet=unet).unet is unet


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "latents"])
def test_a_vae_of_ones_own_is_named_and_opens_as_the_message_says(alone, make, run_python, tmp_path):
    vae = make_vae(MyVAE)
    pipeline = HFVAEPipeline(vae) if alone else HFDDPMPipeline(**make(HFVAE).components | {"vae": vae})
    pipeline.save_pretrained(tmp_path / "own")
    assert index_of(tmp_path / "own")["vae"] == [__name__, "MyVAE"]
    with pytest.raises(ValueError, match=r"from_pretrained\(..., vae=...\)"):
        type(pipeline).from_pretrained(tmp_path / "own")
    vae = MyVAE.from_pretrained(tmp_path / "own", subfolder="vae")
    assert type(pipeline).from_pretrained(tmp_path / "own", vae=vae).vae is vae
    refused = run_python(OPEN.format(folder=str(tmp_path / "own"), given=""), without_hf_ddpm=True, check=False)
    assert "from_pretrained(..., vae=...)" in refused.stderr.splitlines()[-1]


def test_opening_imports_no_module_that_an_index_names(make, tmp_path):
    pipeline = make("pixels")
    pipeline.save_pretrained(tmp_path)
    file = tmp_path / "model_index.json"
    file.write_text(json.dumps(index_of(tmp_path) | {"unet": ["this", "Anything"]}))
    HFDDPMPipeline.from_pretrained(tmp_path, unet=pipeline.unet)
    assert "this" not in sys.modules
