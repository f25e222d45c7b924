"""Opening checkpoints from the Hub: every class, every keyword, the three doors, a bad connection, clear refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMPipeline, UNet2DModel
from huggingface_hub import constants
from safetensors.torch import load_file, save

from hf_ddpm import HFVAE, HFDDPMPipeline, HFDDPMScheduler, HFVAEPipeline
from hf_ddpm.checkpoint import load_checkpoint, load_pipeline
from hf_ddpm.cli import main
from hf_ddpm.errors import UserError

RAW = "unet/diffusion_pytorch_model.raw.safetensors"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
REPO = "ada/digits"
DRAW = """
import numpy as np, torch
pipe.set_progress_bar_config(disable=True)
images = pipe(batch_size=2, {steps}generator=torch.Generator().manual_seed(5), output_type="np").images
np.save({out!r}, images)
"""
DOORS = {
    2: "from diffusers import DDPMPipeline\npipe = DDPMPipeline.from_pretrained('ada/digits')",
    3: "from diffusers import DiffusionPipeline\n"
    "pipe = DiffusionPipeline.from_pretrained('ada/digits', custom_pipeline='ada/digits', trust_remote_code=True)",
}


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def add(hub, pipeline, tmp_path, repo=REPO, **kwargs):
    """Save a pipeline and put it on the Hub."""
    pipeline.save_pretrained(tmp_path / "saved")
    return hub.add_repo(repo, files_of(tmp_path / "saved"), **kwargs)


@pytest.fixture
def pipeline(make_pipeline):
    return make_pipeline()


@pytest.fixture
def pull(tmp_path):
    """`from_pretrained` into a cache of this test."""
    return lambda kind, source=REPO, **kwargs: kind.from_pretrained(source, cache_dir=tmp_path / "cache", **kwargs)


def draw(pipeline, **kwargs):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(batch_size=2, generator=torch.Generator().manual_seed(5), output_type="np", **kwargs).images


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def raw_of(pipeline):
    """Other weights of the same network, as safetensors."""
    weights = {name: value + 1 for name, value in pipeline.unet.state_dict().items()}
    return save(weights, metadata={"format": "pt"})


# --- what opens -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [{}, {"prediction_type": "mean"}, {"variance_type": "fixed_large_log"}], ids=str)
def test_door_1_draws_the_images_of_the_folder(config, hub, make_pipeline, pull, tmp_path):
    pipeline = make_pipeline(config)
    add(hub, pipeline, tmp_path)
    opened = pull(HFDDPMPipeline)
    assert np.array_equal(draw(opened, num_inference_steps=5), draw(pipeline, num_inference_steps=5))
    assert opened.config["_name_or_path"] == REPO
    assert not [p.name for p in (tmp_path / "cache").rglob("*.py")]  # code is not even fetched
    assert hub.requests("GET", r"resolve.*\.py") == []


@pytest.mark.parametrize(("door", "config"), [(2, {}), (3, {}), (3, {"prediction_type": "mean"})], ids=str)
def test_doors_2_and_3_in_a_process_without_hf_ddpm(door, config, hub, make_pipeline, run_python, tmp_path):
    pipeline = make_pipeline(config)
    add(hub, pipeline, tmp_path)
    out = str(tmp_path / "images.npy")
    code = DOORS[door] + DRAW.replace("{steps}", "num_inference_steps=5, ").replace("{out!r}", repr(out))
    run_python(code, without_hf_ddpm=True)
    assert np.abs(np.load(out) - draw(pipeline, num_inference_steps=5)).max() < (1e-4 if door == 2 else 1e-12)


def test_a_vae_through_doors_1_and_3(hub, pull, run_python, tmp_path):
    torch.manual_seed(0)
    pipeline = HFVAEPipeline(HFVAE(sample_size=8, hidden_sizes=(16,)))
    add(hub, pipeline, tmp_path)
    opened = pull(HFVAEPipeline)
    assert np.array_equal(draw(opened), draw(pipeline))
    assert same(pull(HFVAE, subfolder="vae"), pipeline.vae)
    out = str(tmp_path / "images.npy")
    run_python(DOORS[3] + DRAW.replace("{steps}", "").replace("{out!r}", repr(out)), without_hf_ddpm=True)
    assert np.array_equal(np.load(out), draw(pipeline))


def test_a_latent_model_brings_its_vae(hub, make_pipeline, pull, tmp_path):
    inner = make_pipeline({"clip_sample": False}, sample_size=8, in_channels=2, out_channels=2)
    vae = HFVAE(sample_size=16, latent_channels=2, network="conv", block_out_channels=(8, 8), scaling_factor=1.0)
    pipeline = HFDDPMPipeline(inner.unet, inner.scheduler, vae=vae)
    add(hub, pipeline, tmp_path)
    assert np.array_equal(draw(pull(HFDDPMPipeline), num_inference_steps=3), draw(pipeline, num_inference_steps=3))


def test_each_part_alone(hub, pipeline, pull, tmp_path):
    add(hub, pipeline, tmp_path)
    assert same(pull(UNet2DModel, subfolder="unet"), pipeline.unet)
    scheduler = pull(HFDDPMScheduler, subfolder="scheduler")
    assert torch.equal(scheduler.betas, pipeline.scheduler.betas)
    given = pull(HFDDPMPipeline, unet=pipeline.unet)
    assert given.unet is pipeline.unet


def test_revisions_subfolders_and_dtypes(hub, make_pipeline, pull, tmp_path):
    old, new = make_pipeline(seed=1), make_pipeline(seed=2)
    first = add(hub, old, tmp_path)
    add(hub, new, tmp_path, repo="ada/nested")
    nested = {f"runs/long/{name}": data for name, data in hub.files("ada/nested").items()}
    hub.add_repo("ada/nested", nested)
    assert same(pull(HFDDPMPipeline, revision=first).unet, old.unet)
    assert same(pull(HFDDPMPipeline, revision="main").unet, old.unet)
    for subfolder in ("runs/long", "runs/long/", "./runs/long"):
        assert same(pull(HFDDPMPipeline, "ada/nested", subfolder=subfolder).unet, new.unet)
    assert same(pull(HFDDPMPipeline, subfolder=".").unet, old.unet)
    assert pull(HFDDPMPipeline, dtype=torch.float64).unet.dtype == torch.float64


def test_a_forced_download_fetches_each_file_once(hub, pipeline, pull, tmp_path):
    add(hub, pipeline, tmp_path)
    pull(HFDDPMPipeline)
    before = len(hub.log)
    pull(HFDDPMPipeline, force_download=True)
    fetched = [request.path for request in hub.log[before:] if request.method == "GET" and "resolve" in request.path]
    assert len(fetched) == len(set(fetched)) == 4, fetched  # the index, two configs, the weights


def test_the_average_is_the_default_and_raw_a_variant(hub, pipeline, pull, tmp_path):
    pipeline.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / RAW).write_bytes(raw_of(pipeline))
    hub.add_repo(REPO, files_of(tmp_path / "saved"))
    raw = load_file(tmp_path / "saved" / RAW)
    assert same(pull(HFDDPMPipeline).unet, pipeline.unet)
    assert hub.requests("GET", "resolve.*raw.safetensors") == []
    for source in (REPO, tmp_path / "saved"):
        opened = pull(HFDDPMPipeline, source, variant="raw").unet.state_dict()
        assert all(torch.equal(opened[name], raw[name]) for name in raw)
        assert same(pull(DDPMPipeline, source).unet, pipeline.unet)  # stock does not mind the file beside
        with pytest.raises(ValueError, match=r"no weights with variant='ema' beside it: leave variant out"):
            pull(HFDDPMPipeline, source, variant="ema")


def test_raw_fetches_the_raw_weights_alone_and_the_vae_that_has_none(hub, make_pipeline, pull, tmp_path):
    inner = make_pipeline({"clip_sample": False}, sample_size=8, in_channels=4, out_channels=4)
    vae = AutoencoderKL(sample_size=8, block_out_channels=(8,), norm_num_groups=4, scaling_factor=1.0)
    pipeline = HFDDPMPipeline(inner.unet, inner.scheduler, vae=vae)
    pipeline.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / RAW).write_bytes(raw_of(pipeline))
    hub.add_repo(REPO, files_of(tmp_path / "saved"))
    assert same(pull(HFDDPMPipeline, variant="raw").vae, vae)
    assert hub.requests("GET", "unet/diffusion_pytorch_model.safetensors") == []


def test_the_oldest_layout(hub, make_pipeline, pull, tmp_path):
    """google/ddpm-cifar10-32: everything in the root, a scheduler under its old name, T under its old key."""
    pipeline = make_pipeline({"num_train_timesteps": 50, "beta_end": 0.3})
    pipeline.unet.save_pretrained(tmp_path / "saved")
    parts = {"scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
    scheduler = {"_class_name": "GaussianDDPMScheduler", "timesteps": 50, "beta_end": 0.3, "trained_betas": None}
    texts = {"model_index.json": {"_class_name": "DDPMPipeline", **parts}, "scheduler_config.json": scheduler}
    files = files_of(tmp_path / "saved") | {name: json.dumps(text).encode() for name, text in texts.items()}
    hub.add_repo(REPO, files)
    assert np.array_equal(draw(pull(HFDDPMPipeline)), draw(pipeline))


def test_once_here_it_opens_without_the_hub(hub, pipeline, pull, tmp_path):
    commit = add(hub, pipeline, tmp_path)
    expected = draw(pull(HFDDPMPipeline), num_inference_steps=3)
    pull(HFDDPMScheduler, subfolder="scheduler")
    asked = len(hub.log)
    for revision in (None, "main", commit):
        opened = pull(HFDDPMPipeline, local_files_only=True, revision=revision)
        assert np.array_equal(draw(opened, num_inference_steps=3), expected)
    assert pull(HFDDPMScheduler, subfolder="scheduler", local_files_only=True)
    assert len(hub.log) == asked
    hub.close()  # not asked to stay offline: the Hub is away
    assert np.array_equal(draw(pull(HFDDPMPipeline), num_inference_steps=3), expected)


def test_a_cache_that_stock_diffusers_filled_opens_offline(hub, pipeline, pull, tmp_path):
    add(hub, pipeline, tmp_path)
    pull(DDPMPipeline)
    assert same(pull(HFDDPMPipeline, local_files_only=True).unet, pipeline.unet)


def test_the_command_samples_a_name_and_again_offline(hub, pipeline, run_python, tmp_path):
    add(hub, pipeline, tmp_path)
    code = "from hf_ddpm.cli import main\nmain(['sample', 'ada/digits', '-n', '2', '--steps', '2', '--out', '{}'])"
    run_python(code.format("one.png"))
    asked = len(hub.log)
    run_python(code.format("two.png"), HF_HUB_OFFLINE="1")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert len(hub.log) == asked


# --- a bad connection ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("path", ["/api/models/ada/digits/revision", "/tree/", "model_index.json", "safetensors"])
def test_a_busy_hub_is_asked_again(path, status, hub, pipeline, pull, tmp_path):
    add(hub, pipeline, tmp_path)
    hub.fail("GET|HEAD", path, times=2, status=status, headers={"Retry-After": "0"})
    assert same(pull(HFDDPMPipeline).unet, pipeline.unet)


def test_a_cut_download_goes_on_where_it_stopped(hub, make_pipeline, pull, tmp_path):
    pipeline = make_pipeline(block_out_channels=(96, 192))
    add(hub, pipeline, tmp_path)
    size, chunk = len(hub.files(REPO)[WEIGHTS]), 10 * 2**20  # the client writes so many bytes at a time
    assert size > 2 * chunk
    hub.cut(WEIGHTS, after_bytes=chunk + 1000)
    assert same(pull(HFDDPMPipeline).unet, pipeline.unet)
    assert [(r.status, r.sent) for r in hub.requests("GET", WEIGHTS)] == [(200, chunk + 1000), (206, size - chunk)]


# --- refusals --------------------------------------------------------------------------------------------------------


def refusal(source, tmp_path, **kwargs):
    """The sentence of the command, whose beginning is always the same."""
    with pytest.raises(UserError) as caught:
        load_checkpoint(source, cache_dir=tmp_path / "cache", **kwargs)
    beginning, reason = str(caught.value).split(" cannot be opened: ")
    assert beginning == f"the checkpoint {source!r}" and "\n" not in reason
    return reason


NOT_KEPT = "the repository is not completely cached on this machine, and"
NOT_THERE = "the repository does not exist, or it is private and this token cannot read it: check its name and HF_TOKEN"


@pytest.mark.parametrize(
    ("source", "kwargs", "said"),
    [
        ("ada/none", {}, f"ada/none: {NOT_THERE}"),
        ("bob/secret", {}, f"bob/secret: {NOT_THERE}"),
        ("bob/secret", {"token": False}, f"bob/secret: {NOT_THERE}"),
        (REPO, {"token": "hf_wrong"}, "ada/digits: the Hub rejects this token: run `hf auth login`, set HF_TOKEN"),
        (REPO, {"revision": "v9"}, "ada/digits: there is no revision 'v9': see the branches and tags on its page"),
        (REPO, {"subfolder": "none"}, "ada/digits/none/model_index.json is missing: the checkpoint is incomplete"),
        (REPO, {"local_files_only": True}, f"ada/digits: {NOT_KEPT} local_files_only=True forbids"),
        (REPO, {"subfolder": "run[1]"}, "ada/digits/run[1]/model_index.json is missing: the checkpoint is incomplete"),
        ("ada/no..name", {}, "ada/no..name: this is not a repository name, which must be user/name ("),
    ],
)
def test_what_the_hub_does_not_give_is_one_sentence(source, kwargs, said, hub, pipeline, tmp_path):
    add(hub, pipeline, tmp_path)
    add(hub, pipeline, tmp_path, repo="bob/secret", private=True)
    assert refusal(source, tmp_path, **kwargs).startswith(said)
    with pytest.raises(OSError, match=r"^(ada|bob)/\S+[ :]"):
        HFDDPMPipeline.from_pretrained(source, cache_dir=tmp_path / "other", **kwargs)


def test_a_private_repository_opens_with_its_token(hub, pipeline, pull, tmp_path):
    add(hub, pipeline, tmp_path, repo="bob/secret", private=True)
    assert same(pull(HFDDPMPipeline, "bob/secret", token="hf_bob").unet, pipeline.unet)
    assert same(load_pipeline("bob/secret", cache_dir=tmp_path / "two", token="hf_bob").unet, pipeline.unet)


def test_a_hub_that_stays_broken_is_one_sentence(hub, pipeline, tmp_path):
    add(hub, pipeline, tmp_path)
    hub.fail("GET|HEAD", "/api/models", times=100, status=503)
    assert refusal(REPO, tmp_path).startswith(f"{REPO}: the Hub is not available (status 503): try again later")


def test_a_missing_file_is_named(hub, pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "saved")
    whole = files_of(tmp_path / "saved")
    for name in (WEIGHTS, "unet/config.json", "scheduler/scheduler_config.json", "model_index.json"):
        hub.add_repo(REPO, {path: data for path, data in whole.items() if path != name})
        assert refusal(REPO, tmp_path).startswith(f"{REPO}/{name} is missing: ")


def test_offline_it_is_one_whole_sentence(hub, pipeline, tmp_path, monkeypatch):
    add(hub, pipeline, tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert refusal(REPO, tmp_path) == f"{REPO}: {NOT_KEPT} HF_HUB_OFFLINE forbids a download: go online once"


def test_the_command_says_it_in_one_line(hub):
    with pytest.raises(SystemExit) as caught:
        main(["sample", "ada/none"])
    assert str(caught.value) == f"error: the checkpoint 'ada/none' cannot be opened: ada/none: {NOT_THERE}"
