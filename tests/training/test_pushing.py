"""Pushing while training: never fatal, never in the way, only by the main process."""

import json
import re
import time
from pathlib import Path

import pytest
import torch
from launching import SCRIPT
from safetensors.torch import load, load_file

from hf_ddpm import HFDDPMPipeline, HFVAEPipeline
from hf_ddpm.errors import UserError
from hf_ddpm.training.command_line import parse_command_line
from hf_ddpm.training.pushing import Pusher
from hf_ddpm.training.settings import Hub
from hf_ddpm.training.train import train

TINY = ["--preset", "tiny", "--image_size", "8", "--batch_size", "8", "--warmup_steps", "2", "--log_every", "1"]
TINY += ["--num_images", "4", "--num_inference_steps", "2", "--sampling.every", "null", "--checkpoints.every", "null"]
TINY += ["--tracker", "none", "--max_images", "64", "--cpu_threads", "1", "--total_steps", "4"]
WEIGHTS, RAW = (f"unet/diffusion_pytorch_model{kind}.safetensors" for kind in ("", ".raw"))


def tiny(folder, *words):
    """Train in this process; later words win."""
    return train(*parse_command_line([*TINY, "--output_dir", str(folder), *words]))


def test_the_finished_checkpoint_is_pushed_whole(hub, tmp_path, capfd):
    checkpoint = tiny(tmp_path / "moons", "--push_to_hub")
    assert f"pushed:     {hub.url}/ada/moons" in "".join(capfd.readouterr())
    files = hub.files("ada/moons")
    assert {"recipe.yaml", "log.jsonl", "training.json", "samples.png", "README.md", "pipeline.py"} <= set(files)
    assert files[WEIGHTS] == (checkpoint / WEIGHTS).read_bytes()
    assert len(files["log.jsonl"].splitlines()) == 4
    assert "4" in files["README.md"].decode().split("optimizer steps |")[1].splitlines()[0]


def test_the_raw_weights_are_those_of_the_last_step(tmp_path):
    checkpoint = tiny(tmp_path / "run")
    raw, average = load_file(checkpoint / RAW), load_file(checkpoint / WEIGHTS)
    state = load_file(tmp_path / "run" / "states" / "step_00000004" / "model.safetensors")
    assert raw.keys() == average.keys() == state.keys()
    assert all(torch.equal(raw[name], state[name]) for name in raw)
    assert not all(torch.equal(raw[name], average[name]) for name in raw)
    opened = HFDDPMPipeline.from_pretrained(checkpoint, variant="raw").unet.state_dict()
    assert all(torch.equal(opened[name], raw[name]) for name in raw)
    opened = HFDDPMPipeline.from_pretrained(checkpoint).unet.state_dict()
    assert all(torch.equal(opened[name], average[name]) for name in raw)


def test_steps_on_the_way_are_pushed_with_a_tag(hub, tmp_path):
    tiny(tmp_path / "moons", "--push_to_hub", "--hub_model_id", "ada/stars", "--hub_private_repo", "--hub_every", "2")
    assert hub.repo("ada/stars").private
    steps = [json.loads(hub.files("ada/stars", at)["training.json"])["steps"] for at in ("step-2", "main")]
    assert steps == [2, 4]
    two, four = (load(hub.files("ada/stars", at)[RAW]) for at in ("step-2", "main"))
    assert not all(torch.equal(two[name], four[name]) for name in two)
    assert not (tmp_path / "moons" / "pushed").exists()
    tiny(tmp_path / "again", "--push_to_hub", "--hub_model_id", "ada/stars", "--hub_every", "2", "--seed", "1")
    of_the_newer = load(hub.files("ada/stars", "step-2")[RAW])
    assert not all(torch.equal(of_the_newer[name], two[name]) for name in two)


def test_a_run_with_pushes_walks_the_path_of_one_without(hub, tmp_path):
    pushed = tiny(tmp_path / "a", "--push_to_hub", "--hub_every", "1")
    alone = tiny(tmp_path / "b")
    for file in (WEIGHTS, RAW):
        one, two = load_file(pushed / file), load_file(alone / file)
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_slow_upload_holds_up_nothing(hub, tmp_path, capfd):
    hub.delay("preupload", 3.0, times=1)
    started = time.perf_counter()
    tiny(tmp_path / "moons", "--push_to_hub", "--hub_every", "1")
    said = "".join(capfd.readouterr())
    assert "not pushed: step 2, because the previous push is still in progress" in said
    assert time.perf_counter() - started > 3  # the end waits for what is under way
    assert json.loads(hub.files("ada/moons")["training.json"])["steps"] == 4


def test_a_hub_that_refuses_is_a_line_and_the_run_goes_on(hub, tmp_path, capfd):
    checkpoint = tiny(tmp_path / "moons", "--push_to_hub", "--hub_model_id", "bob/moons", "--hub_every", "2")
    said = "".join(capfd.readouterr())
    assert said.count("not pushed: bob/moons: this token has no write access there") == 2
    assert "the run continues without step-2" in said
    assert f"the checkpoint is kept, push it later with `hf-ddpm push {checkpoint} bob/moons`" in said
    assert "Traceback" not in said
    assert (checkpoint / WEIGHTS).is_file()
    assert hub.repos() == []


def test_a_disk_that_refuses_what_is_pushed_is_a_line_too(hub, tmp_path, capfd, monkeypatch):
    from hf_ddpm.training import saving

    def write(pipeline, folder, *args, save=saving.save_checkpoint, **kwargs):
        if folder.name == "pushed":
            raise OSError(28, "No space left on device")
        save(pipeline, folder, *args, **kwargs)

    monkeypatch.setattr(saving, "save_checkpoint", write)
    checkpoint = tiny(tmp_path / "moons", "--push_to_hub", "--hub_every", "2")
    said = "".join(capfd.readouterr())
    assert re.search(r"WARNING: a push failed at step 2 \(.*No space left on device\); the run continues", said), said
    assert hub.files("ada/moons")[WEIGHTS] == (checkpoint / WEIGHTS).read_bytes()


def test_what_nobody_foresaw_is_a_line_too(hub, tmp_path, capfd):
    checkpoint = tiny(tmp_path / "moons")
    pusher = Pusher(Hub(push_to_hub=True), "moons")
    with hub.held("preupload") as arrived:
        pusher.start(checkpoint, tag=None)
        arrived()
        (checkpoint / WEIGHTS).unlink()
    pusher.wait()
    said = "".join(capfd.readouterr())
    assert re.search(r"not pushed: \w+Error: .*; the checkpoint is kept, push it later with `hf-ddpm push ", said), said
    assert WEIGHTS not in hub.files("ada/moons")


def test_of_two_processes_one_pushes(hub, on_two_processes, tmp_path):
    words = [*TINY, "--output_dir", str(tmp_path / "moons"), "--push_to_hub", "--hub_every", "2"]
    done = on_two_processes(SCRIPT, *words)
    assert done.returncode == 0, done.stderr
    assert len(hub.commits("ada/moons")) == 3  # the repository's own, step 2 and the end
    assert "2 process(es)" in hub.files("ada/moons")["README.md"].decode()
    assert "hf_ada" not in done.stdout + done.stderr
    assert not [p for p in Path(tmp_path / "moons").rglob("*") if p.is_file() and b"hf_ada" in p.read_bytes()]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--hub_model_id", "ada/moons"], "nothing is pushed without --push_to_hub"),
        (["--push_to_hub", "--hub_model_id", "a b"], "'a b' cannot be the name of a repository: use user/name with"),
        (["--push_to_hub", "--hub_model_id", "ada/x..y"], r"'ada/x\.\.y' cannot be the name of a repository"),
        (["--push_to_hub", "--hub_every", "0"], "hub_every=0 must be at least 1"),
        (["--push_to_hub", "maybe"], r"hub\.push_to_hub='maybe' must be"),
    ],
)
def test_mistakes_are_one_sentence(words, sentence, tmp_path):
    with pytest.raises(UserError) as caught:
        tiny(tmp_path / "run", *words)
    assert re.search(sentence, str(caught.value)), caught.value
    assert not (tmp_path / "run").exists()


def test_a_push_that_can_never_arrive_is_said_at_the_start(hub, on_two_processes, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"--push_to_hub: 'two words' cannot be .*; set the name with --hub_model_id$"):
        tiny(tmp_path / "two words", "--push_to_hub")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="--push_to_hub needs a token: run `hf auth login` or set HF_TOKEN"):
        tiny(tmp_path / "moons", "--push_to_hub")
    words = [*TINY, "--output_dir", str(tmp_path / "moons"), "--push_to_hub"]
    done = on_two_processes(SCRIPT, *words)
    assert done.returncode == 1
    assert done.stderr.count("--push_to_hub needs a token") == 1 and "in build_run" not in done.stderr
    assert hub.log == [] and [*tmp_path.iterdir()] == []


def test_a_vae_is_pushed_with_its_raw_weights_and_what_was_measured(hub, tmp_path):
    words = ["--recipe", "mnist-vae", "--image_size", "8", "--hidden_sizes", "[8]", "--latent_channels", "2"]
    words += ["--likelihood", "gaussian_optimal", "--binarize", "null", "--batch_size", "8", "--max_images", "64"]
    words += ["--total_steps", "4", "--num_images", "4", "--sampling.every", "null", "--checkpoints.every", "null"]
    words += ["--tracker", "none", "--cpu_threads", "1", "--output_dir", str(tmp_path / "vae"), "--push_to_hub"]
    checkpoint = train(*parse_command_line([*words, "--warmup_steps", "2", "--log_every", "1"]))
    average, raw = (HFVAEPipeline.from_pretrained(checkpoint, variant=variant).vae for variant in (None, "raw"))
    assert not torch.equal(average.encoder[1].weight, raw.encoder[1].weight)
    assert average.log_variance == raw.log_variance and average.log_variance.isfinite()
    assert average.config["scaling_factor"] == raw.config["scaling_factor"] > 0
    assert "vae/diffusion_pytorch_model.raw.safetensors" in hub.files("ada/vae")
    assert "variational autoencoder" in hub.files("ada/vae")["README.md"].decode()
