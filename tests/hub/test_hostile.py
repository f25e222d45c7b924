"""Repositories and folders that mean harm: each is opened in a fresh process with little memory, and nothing happens.

The Hub's own rules do not count here: the server of these tests holds whatever names and bytes it is given.
"""

import io
import json
import os
import pickle
import re
import struct
import zipfile
from functools import partial
from pathlib import Path

import pytest
from diffusers import AutoencoderKL
from forking import Forks
from hub_server import hub_server

from hf_ddpm import HFVAE, HFVAEPipeline

REPO = "mallory/digits"
INDEX, UNET, SCHEDULER = "model_index.json", "unet/config.json", "scheduler/scheduler_config.json"
WEIGHTS, SHARDS = "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.safetensors.index.json"
MEMORY = 2 * 2**30  # bytes of data a process may have; torch, diffusers and transformers take a third of it
OPEN = """
import sys
from hf_ddpm import HFDDPMPipeline, HFVAEPipeline
try:
    {kind}.from_pretrained({source!r})
except (ValueError, OSError) as error:
    sys.exit("refused: " + str(error))
"""
CODE = "from pathlib import Path\nPath({canary!r}).write_text('the code ran')\n"


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "canary"


@pytest.fixture
def files(make_pipeline, tmp_path):
    """Of a good checkpoint, for the tests to spoil; without the code of door 3."""
    make_pipeline().save_pretrained(tmp_path / "good")
    paths = [p for p in (tmp_path / "good").rglob("*") if p.is_file() and p.suffix != ".py"]
    return {p.relative_to(tmp_path / "good").as_posix(): p.read_bytes() for p in paths}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """One Hub for all tests here: the forks know its address."""
    with hub_server() as server:
        yield server


@pytest.fixture(scope="module")
def places(hub, tmp_path_factory):
    """The environment in which all forks open what lies on the Hub."""
    home = tmp_path_factory.mktemp("home")
    return {**os.environ, **hub.environment(home), "HF_MODULES_CACHE": str(home / "modules")}


@pytest.fixture(scope="module")
def forks(places):
    """Of a process that has imported the package and nothing else, which spares each test four seconds more."""
    with Forks("import hf_ddpm.cli, hf_ddpm.checkpoint, hf_ddpm.commands.sample", places) as server:
        yield server


@pytest.fixture
def run_small(forks, places, tmp_path):
    """Run code in a fresh process with little memory and time."""
    return partial(forks.run, folder=tmp_path, environment=places, RLIMIT_DATA=MEMORY, RLIMIT_CPU=60)


@pytest.fixture
def refused(hub, run_small, canary):
    """Put the files on the Hub, open them there, and return the sentence; nothing ran."""

    def open_it(spoilt, kind="HFDDPMPipeline"):
        hub.add_repo(REPO, spoilt)
        done = run_small(OPEN.format(kind=kind, source=REPO))
        assert done.returncode == 1, done.stderr[-2000:]
        *_, last = done.stderr.strip().splitlines()
        assert last.startswith("refused: "), done.stderr[-2000:]
        assert not canary.exists()
        return last.removeprefix("refused: ")

    return open_it


def changed(files, name, **values):
    return files | {name: json.dumps(json.loads(files[name]) | values).encode()}


class Payload:
    """A pickle that writes the canary."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return exec, (CODE.format(canary=str(self.canary)),)


def test_a_good_checkpoint_opens_in_that_memory(hub, files, run_small):
    hub.add_repo(REPO, files)
    done = run_small(OPEN.format(kind="HFDDPMPipeline", source=REPO))
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_payloads_work(canary, tmp_path):
    """What the other tests look for in vain can happen."""
    pickle.loads(pickle.dumps(Payload(canary)))
    assert canary.read_text() == "the code ran"


# --- code ------------------------------------------------------------------------------------------------------------


def test_code_beside_the_weights_is_neither_fetched_nor_run(hub, files, run_small, canary):
    code = CODE.format(canary=str(canary)).encode()
    names = ["pipeline.py", "__init__.py", "conftest.py", "sitecustomize.py", "diffusers.py", "torch.py"]
    names += [f"{part}/{name}" for part in ("unet", "scheduler") for name in ("diffusers.py", "__init__.py", "x.py")]
    hub.add_repo(REPO, files | dict.fromkeys(names, code))
    done = run_small(OPEN.format(kind="HFDDPMPipeline", source=REPO))
    assert done.returncode == 0, done.stderr[-2000:]
    assert not canary.exists()
    assert hub.requests("GET", r"resolve.*\.py") == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"custom_pipeline": REPO}, ""),
        ({"trust_remote_code": True}, ""),
        ({"auto_map": {"x": "x.X"}}, "refused: model_index.json has a component 'auto_map', which must be one of"),
    ],
)
def test_no_key_of_the_index_grants_trust(values, said, hub, files, run_small, canary):
    files["pipeline.py"] = CODE.format(canary=str(canary)).encode()
    spoilt = changed(files, INDEX, **values)
    hub.add_repo(REPO, spoilt)
    done = run_small(OPEN.format(kind="HFDDPMPipeline", source=REPO))
    assert said in done.stderr and done.returncode == (1 if said else 0), done.stderr[-2000:]
    assert not canary.exists()
    assert hub.requests("GET", r"resolve.*\.py") == []


INDEXES = [
    ({"_class_name": ["pipeline", "HFDDPMPipeline"]}, "has _class_name=.* use DiffusionPipeline with"),
    (
        {"unet": ["os", "system"]},
        r"has unet=\['os', 'system'\], which must be one of ADMUNet, UNet2DModel: no other class",
    ),
    (
        {"scheduler": ["subprocess", "Popen"]},
        r"has scheduler=\['subprocess', 'Popen'\], which must be one of HFDDPMScheduler",
    ),
    (
        {"unet": ["hf_ddpm.errors", "UserError"]},
        r"has unet=\['hf_ddpm.errors', 'UserError'\], which must be one of ADMUNet, UNet2DModel",
    ),
    (
        {"scheduler": ["hf_ddpm.models.vae", "HFVAE"]},
        r"has scheduler=\['hf_ddpm.models.vae', 'HFVAE'\], which must be one of",
    ),
    ({"unet": ["evil", "Network"]}, r"has unet=\['evil', 'Network'\], which must be one of ADMUNet, UNet2DModel"),
    (
        {"unet": ["pipelines", "Network"]},
        r"has unet=\['pipelines', 'Network'\], which must be one of ADMUNet, UNet2DModel",
    ),
    (
        {"unet": ["diffusers", "__import__"]},
        r"has unet=\['diffusers', '__import__'\], which must be one of ADMUNet, UNet2DModel",
    ),
    (
        {"scheduler": ["diffusers", "utils.os.Scheduler"]},
        "has scheduler=.*, which must be one of HFDDPMScheduler, a scheduler",
    ),
    (
        {"scheduler": ["diffusers", "AysScheduler"]},
        "has scheduler=.*, which must be one of HFDDPMScheduler, a scheduler",
    ),
    ({"../x": ["diffusers", "UNet2DModel"]}, r"has a component '\.\./x', which must be one of unet, vae, scheduler"),
    ({"/etc": ["evil", "Network"]}, "has a component '/etc', which must be one of unet, vae, scheduler"),
    ({"helper": ["evil", "Network"]}, "has a component 'helper', which must be one of unet, vae, scheduler"),
    ({"unet": ["diffusers", "UNet2DModel", "../x"]}, r"has unet=.*, which must be \[library, class\]"),
    ({"vae": {"diffusers": "AutoencoderKL"}}, r"has vae=.*, which must be \[library, class\]"),
    ({"unet": ["../../x", "UNet2DModel"]}, r"has unet=\['\.\./\.\./x', 'UNet2DModel'\], which must be one of"),
]


@pytest.mark.parametrize(("values", "said"), INDEXES, ids=[str(values)[:40] for values, _ in INDEXES])
def test_an_index_that_names_code(values, said, refused, files, canary):
    code = CODE.format(canary=str(canary)).encode()
    brought = ["pipeline.py", "evil.py", "unet/evil.py", "helper/evil.py", "unet/pipelines.py", "x.py", "../x.py"]
    spoilt = changed(files, INDEX, **values) | dict.fromkeys(brought, code)
    assert re.search(said, refused(spoilt))


OUT = ["../../../../../escapee", "unet/../../../../../../escapee", "/escapee", "unet\\..\\escapee"]


@pytest.mark.parametrize("name", OUT)
def test_names_that_lead_out_of_the_cache(name, hub, files, run_small, tmp_path_factory):
    hub.add_repo(REPO, files | {name: b"out"})
    done = run_small(OPEN.format(kind="HFDDPMPipeline", source=REPO))
    assert done.returncode == 0, done.stderr[-2000:]
    assert not list(tmp_path_factory.getbasetemp().rglob("*escapee*")) and not Path("/escapee").exists()
    assert hub.requests("GET", r"resolve.*escapee") == []


# --- weights ---------------------------------------------------------------------------------------------------------


def torch_pickle(canary):
    """As torch.save writes it: a zip whose pickle runs the payload."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Payload(canary), protocol=2))
        file.writestr("archive/version", "3\n")
    return buffer.getvalue()


def header(text, length=None, rest=b""):
    return struct.pack("<Q", len(text) if length is None else length) + text + rest


def tensor(shape, offsets, dtype="F32"):
    return json.dumps({"conv_in.weight": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()


LIES = {
    "a header of 2**60 bytes": header(b"{}", 2**60),
    "a header of 2**64 - 1 bytes": header(b"{}", 2**64 - 1),
    "a header longer than the file": header(b"{}", 10**6),
    "offsets outside": header(tensor([4], [0, 16]), rest=b"1234"),
    "offsets of 2**62": header(tensor([2**60], [0, 2**62])),
    "offsets backwards": header(tensor([4], [16, 0]), rest=b"0" * 16),
    "a shape of 10**18 entries": header(tensor([10**9, 10**9], [0, 16]), rest=b"0" * 16),
    "a shape that overflows": header(tensor([2**63, 2**63], [0, 16]), rest=b"0" * 16),
    "a header that is no JSON": header(b"\xff" * 64),
    "a header of brackets": header(b"[" * 10**6),
    "an empty file": b"",
    "zeros": b"\0" * 10**6,
    "ones": b"1" * 10**6,
}


@pytest.mark.parametrize("lie", LIES)
def test_safetensors_that_lie(lie, refused, files):
    said = refused(files | {WEIGHTS: LIES[lie]})
    assert said.startswith(f"{REPO}/{WEIGHTS} is truncated or damaged: restore it from another copy (")


def test_a_header_that_is_all_of_a_giant_file(refused, files):
    said = refused(files | {WEIGHTS: header(b"{" + b" " * 2**25 + b"}")})
    assert said == f"{REPO}/{WEIGHTS} has a header of {2**25 + 2} bytes, and at most {2**24} are allowed"


@pytest.mark.parametrize("make", [torch_pickle, lambda canary: pickle.dumps(Payload(canary))], ids=["torch", "pickle"])
def test_a_pickle_called_safetensors(make, refused, files, canary):
    assert refused(files | {WEIGHTS: make(canary)}).startswith(f"{REPO}/{WEIGHTS} is truncated or damaged")


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "pytorch_model.bin", "model.ckpt", "x.pt"])
def test_pickles_only(name, hub, refused, files, canary):
    weights = torch_pickle(canary)
    spoilt = {path: data for path, data in files.items() if path != WEIGHTS} | {f"unet/{name}": weights}
    said = refused(spoilt)
    assert said.startswith(f"{REPO}/unet has no safetensors, only pickles, and opening a pickle may run code: ask its")
    assert hub.requests("GET", f"resolve.*{name}") == []


ELSEWHERE = [
    "diffusion_pytorch_model.safetensors.index.json",
    "evil.bin",
    "../evil.safetensors",
    "/etc/passwd",
    ["x"],
    "diffusion_pytorch_model.bin",
]


@pytest.mark.parametrize("shard", ELSEWHERE)
def test_shards_that_are_elsewhere(shard, refused, files, canary):
    index = {"metadata": {}, "weight_map": {"conv_in.weight": shard}}
    bad = torch_pickle(canary)
    spoilt = {path: data for path, data in files.items() if path != WEIGHTS}
    spoilt |= {SHARDS: json.dumps(index).encode(), "unet/evil.bin": bad, "unet/diffusion_pytorch_model.bin": bad}
    assert refused(spoilt).startswith(f"{REPO}/{SHARDS} names ")


# --- configs ---------------------------------------------------------------------------------------------------------

WHOLE = r"which must be from \d+ to \d+$"
CONFIGS = [
    (UNET, {"block_out_channels": [10**9, 10**9]}, f"has block_out_channels=1000000000, {WHOLE}"),
    (
        UNET,
        {"block_out_channels": [32] * 10**5},
        "has block_out_channels with 100000 entries, and at most 64 are allowed",
    ),
    (UNET, {"block_out_channels": [[32], [[64]]]}, "has block_out_channels=.*, which must be int: fix it"),
    (UNET, {"layers_per_block": 10**9}, f"has layers_per_block=1000000000, {WHOLE}"),
    (UNET, {"layers_per_block": -1}, f"has layers_per_block=-1, {WHOLE}"),
    (UNET, {"sample_size": 10**9}, f"has sample_size=1000000000, {WHOLE}"),
    (UNET, {"sample_size": [10**9, 8]}, f"has sample_size=1000000000, {WHOLE}"),
    (UNET, {"in_channels": 10**12}, f"has in_channels=1000000000000, {WHOLE}"),
    (UNET, {"in_channels": 10**4000}, "has in_channels=1000.*which must be from 1 to"),
    (UNET, {"norm_num_groups": 0}, f"has norm_num_groups=0, {WHOLE}"),
    (UNET, {"attention_head_dim": 0}, f"has attention_head_dim=0, {WHOLE}"),
    (UNET, {"num_class_embeds": 10**12}, f"has num_class_embeds=1000000000000, {WHOLE}"),
    (UNET, {"layers_per_block": "2"}, "has layers_per_block='2', which must be int: fix it"),
    (UNET, {"layers_per_block": 1e308}, "has layers_per_block=1e[+]308, which must be int: fix it"),
    (UNET, {"norm_eps": "tiny"}, "has norm_eps='tiny', which must be float: fix it"),
    (UNET, {"down_block_types": {"a": {"b": {}}}}, "has down_block_types=.*, which must be list or str: fix it"),
    (UNET, {"quantization_config": {"quant_method": "torchao"}}, "has a quantization_config, which would load further"),
    (SCHEDULER, {"num_train_timesteps": 10**12}, f"has num_train_timesteps=1000000000000, {WHOLE}"),
    (SCHEDULER, {"num_train_timesteps": "1000"}, "has num_train_timesteps='1000', which must be int: fix it"),
    (SCHEDULER, {"trained_betas": ["0.1"]}, "has trained_betas='0.1', which must be float: fix it"),
    (
        SCHEDULER,
        {"trained_betas": [0.1] * (10**6 + 1)},
        "has trained_betas with 1000001 entries, and at most 1000000 are",
    ),
]


@pytest.mark.parametrize(("file", "values", "said"), CONFIGS, ids=[str(values)[:40] for _, values, _ in CONFIGS])
def test_absurd_configs(file, values, said, refused, files):
    assert re.match(f"{REPO}/{file} {said}", refused(changed(files, file, **values)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'{"a": ' * 10**5 + b"1" + b"}" * 10**5, "has 100000 lists and objects, but at most 10000 are allowed"),
        (b'{"a": ' * 5000 + b"1" + b"}" * 5000, "cannot be read as JSON"),
        (b'{"a": ' * 400 + b"1" + b"}" * 400, "nests lists and objects more than 16 levels deep"),
        (b'{"trained_betas": [' + b"0.1, " * (2**24 - 1) + b"0.1]}", "has 83886099 bytes, but at most"),
        (b'{"a": [' + b"{}," * 10**5 + b"{}]}", "has 100003 lists and objects, but at most 10000 are allowed"),
        (b'{"in_channels": ' + b"1" * 10**5 + b"}", "cannot be read as JSON"),
        (b"\xff\xfe\x00", "cannot be read as JSON"),
        ('{"_class_name": "x"}'.encode("utf-16"), "cannot be read as JSON"),
    ],
    ids=["giant nest", "deeper than Python", "deep", "long", "objects", "a long number", "no text", "utf-16"],
)
@pytest.mark.parametrize("file", [INDEX, UNET, SCHEDULER])
def test_config_bombs(text, said, file, refused, files):
    assert refused(files | {file: text}).startswith(f"{REPO}/{file} {said}")


ENTRIES = [b"0,", b"0.5,", b'"ab",', b"[],"]
LONGEST = [(file, most, entry) for file, most in ((INDEX, 2**20), (INDEX, 2**23), (UNET, 2**20)) for entry in ENTRIES]
LONGEST += [pytest.param(SCHEDULER, 2**25, entry, marks=pytest.mark.slow) for entry in ENTRIES]


@pytest.mark.parametrize(("file", "most", "entry"), LONGEST)
def test_the_longest_configs_do_not_fill_the_memory(entry, file, most, hub, files, run_small):
    """A list that nobody asked for, as long as may be: it opens or is refused."""
    text = files[file].rstrip().removesuffix(b"}") + b', "a": ['
    hub.add_repo(REPO, files | {file: text + entry * ((most - len(text) - 10) // len(entry)) + b"0]}"})
    done = run_small(OPEN.format(kind="HFDDPMPipeline", source=REPO))
    assert done.returncode == 0 or "refused: " in done.stderr, done.stderr[-2000:]


@pytest.mark.slow
def test_a_million_betas_are_no_harm(hub, files, run_small):
    betas = {"trained_betas": [1e-5] * 10**6, "num_train_timesteps": 10**6}
    hub.add_repo(REPO, changed(files, SCHEDULER, **betas))
    done = run_small(OPEN.format(kind="HFDDPMPipeline", source=REPO))
    assert done.returncode == 0, done.stderr[-2000:]


VAE = "vae/config.json"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sample_size": 10**9}, f"{REPO}/{VAE} has sample_size=1000000000, "),
        ({"hidden_sizes": [10**9]}, f"{REPO}/{VAE} has hidden_sizes=1000000000, "),
        ({"sample_size": 8192, "hidden_sizes": [8192]}, "a layer with 549,755,813,888 weights exceeds the limit"),
        ({"network": "conv", "layers_per_block": 10**9}, f"{REPO}/{VAE} has layers_per_block=1000000000, "),
        ({"network": "conv", "norm_num_groups": 0}, f"{REPO}/{VAE} has norm_num_groups=0, "),
    ],
    ids=str,
)
def test_absurd_vaes(values, said, refused, tmp_path):
    HFVAEPipeline(HFVAE(sample_size=8, hidden_sizes=(16,))).save_pretrained(tmp_path / "vae-pipeline")
    paths = [p for p in (tmp_path / "vae-pipeline").rglob("*") if p.is_file() and p.suffix != ".py"]
    files = {p.relative_to(tmp_path / "vae-pipeline").as_posix(): p.read_bytes() for p in paths}
    assert refused(changed(files, VAE, **values), kind="HFVAEPipeline").startswith(said)


@pytest.fixture
def vae_files(tmp_path):
    """Of a stock VAE that latents could be made by."""
    AutoencoderKL(1, 1, block_out_channels=(8,), norm_num_groups=8).save_pretrained(tmp_path / "stock")
    return {path.name: path.read_bytes() for path in (tmp_path / "stock").iterdir()}


STOCK_WEIGHTS = "diffusion_pytorch_model.safetensors"
SPOILT_VAES = {
    "a pickle as a shard": (f"{STOCK_WEIGHTS}.index.json names 'evil.bin'", {}),
    "pickles only": ("has no safetensors, only pickles", {}),
    "a lying header": (f"{STOCK_WEIGHTS} is truncated or damaged", {}),
    "quantised": ("has a quantization_config", {"quantization_config": {"quant_method": "bitsandbytes"}}),
    "giant": ("has block_out_channels=1000000000, which must be", {"block_out_channels": [10**9]}),
    "another class": (r"its class is 'UNet2DModel', but must be one of HFVAE", {"_class_name": "UNet2DModel"}),
}


@pytest.mark.parametrize("how", SPOILT_VAES)
def test_a_vae_to_train_in_is_looked_at_as_well(how, vae_files, hub, run_small, canary):
    said, values = SPOILT_VAES[how]
    spoilt = changed(vae_files, "config.json", **values)
    weights = spoilt.pop(STOCK_WEIGHTS)
    if how == "a pickle as a shard":
        index = {"metadata": {}, "weight_map": {"encoder.conv_in.weight": "evil.bin"}}
        spoilt |= {f"{STOCK_WEIGHTS}.index.json": json.dumps(index).encode(), "evil.bin": torch_pickle(canary)}
    elif how == "pickles only":
        spoilt["diffusion_pytorch_model.bin"] = torch_pickle(canary)
    else:
        spoilt[STOCK_WEIGHTS] = LIES["a shape that overflows"] if how == "a lying header" else weights
    hub.add_repo(REPO, spoilt)
    code = "import sys\nfrom hf_ddpm.errors import UserError\nfrom hf_ddpm.latent_data import open_vae\ntry:\n"
    done = run_small(f"{code}    open_vae({REPO!r})\nexcept UserError as error:\n    sys.exit(str(error))")
    *_, last = done.stderr.strip().splitlines()
    assert done.returncode == 1 and re.match(f"latents.vae='{REPO}' cannot be opened as a VAE: .*{said}", last), last
    assert not canary.exists() and hub.requests("GET", r"resolve.*\.bin") == []


# --- the other ways in -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["hub", "folder"])
@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        (
            INDEX,
            {"unet": ["os", "system"]},
            "model_index.json has unet=['os', 'system'], which must be one of ADMUNet, UNet2DModel",
        ),
        (UNET, {"layers_per_block": 10**9}, "unet/config.json has layers_per_block=1000000000, which must be from 1"),
        (SCHEDULER, {"num_train_timesteps": 10**12}, "scheduler/scheduler_config.json has num_train_timesteps=1000000"),
    ],
    ids=["module", "layers", "steps"],
)
def test_the_command_refuses_it_too(place, name, values, said, hub, files, run_small, canary, tmp_path):
    spoilt = changed(files, name, **values) | {"pipeline.py": CODE.format(canary=str(canary)).encode()}
    hub.add_repo(REPO, spoilt)
    for path, data in spoilt.items() if place == "folder" else ():
        (tmp_path / "bad" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "bad" / path).write_bytes(data)
    source = "./bad" if place == "folder" else REPO
    done = run_small(f"from hf_ddpm.cli import main\nmain(['sample', {source!r}])")
    *_, last = done.stderr.strip().splitlines()
    assert done.returncode == 1 and last.startswith("error: the checkpoint ") and said in last
    assert not canary.exists()


def test_a_folder_with_code_in_a_component_asks_for_trust_and_gets_none(files, run_small, canary, tmp_path):
    for path, data in (files | {"unet/diffusers.py": CODE.format(canary=str(canary)).encode()}).items():
        (tmp_path / "bad" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "bad" / path).write_bytes(data)
    done = run_small(OPEN.format(kind="HFDDPMPipeline", source="bad"))
    assert "refused: " in done.stderr and "contains custom code in diffusers.py" in done.stderr
    assert not canary.exists()
