"""No place of this machine reaches the Hub: runs in folders with awkward names are pushed, every byte is looked at."""

import base64
import io
import json
import re
from urllib.parse import quote

import numpy as np
import pytest
from image_files import random_image
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file

from hf_ddpm import HFVAE, HFDDPMPipeline
from hf_ddpm.cli import main
from hf_ddpm.errors import UserError
from hf_ddpm.hub import push_checkpoint
from hf_ddpm.training.command_line import parse_command_line
from hf_ddpm.training.train import train

SECRET = 'secret o\'brien "Ünï" & co'  # in the name of every folder that lies above a place
WORDS = ["--image_size", "16", "--channels", "1", "--batch_size", "8", "--warmup_steps", "1", "--total_steps", "2"]
WORDS += ["--num_images", "1", "--sampling.every", "null", "--checkpoints.every", "null", "--tracker", "none"]
WORDS += ["--cpu_threads", "1", "--log_every", "1", "--on_bad_image", "skip", "--resize", "crop"]
CONV = ["--recipe", "mnist-vae", "--network", "conv", "--block_out_channels", "[8, 8]", "--latent_channels", "2"]
CONV += ["--likelihood", "gaussian_fixed", "--binarize", "null"]
UNET = ["--block_out_channels", "[4, 8, 8]", "--norm_num_groups", "2", "--num_inference_steps", "2"]
UNET += ["--scheduler.num_train_timesteps", "4"]

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def root(tmp_path):
    """A folder whose path has spaces, quotes and letters beyond ASCII."""
    folder = tmp_path / SECRET / "secret"
    folder.mkdir(parents=True)
    return folder


def images(folder, count, bad=()):
    """Grey images in a sub-folder; the `bad` ones are cut short, no picture at all, or links to nothing."""
    (folder / SECRET).mkdir(parents=True)
    for i in range(count):
        random_image(i, (16, 16), "L").save(folder / SECRET / f"{i:03d}.png")
    for i, damage in enumerate(bad):
        file = folder / SECRET / f"{i:03d}.png"
        content = {"cut": file.read_bytes()[:150], "text": b"no picture", "tiff": b"II*\0/secret/place"}[damage]
        file.write_bytes(content)
    return str(folder)


def run(folder, *words):
    return train(*parse_command_line([*WORDS, "--output_dir", str(folder), *words]))


def measured(checkpoint, folder, out, *more):
    """A file that `hf-ddpm likelihood` writes of it."""
    main(["likelihood", str(checkpoint), "--data", folder, "--device", "cpu", "--out", str(out), *more])
    return out


def readable(hub, repo_id):
    """Everything that the Hub received, and what it holds decoded: base64, pictures' text, names and commits."""
    yield from hub.received
    for request in hub.received:
        for words in re.findall(rb"(?:[A-Za-z0-9+/]{4}){4,}", request):
            yield base64.b64decode(words)
    for commit in hub.commits(repo_id):
        yield f"{commit.title}\n{commit.message}".encode()
    for name, content in hub.files(repo_id).items():
        yield name.encode() + b"\n" + content
        if name.endswith(".png"):
            with Image.open(io.BytesIO(content)) as picture:
                picture.load()
                yield repr(picture.info).encode()


def no_place(hub, repo_id, root):
    places = [str(root), str(root.parents[1]), SECRET]
    forms = {form.encode() for p in places for form in (p, json.dumps(p)[1:-1], quote(p), repr(p)[1:-1])}
    for content in readable(hub, repo_id):
        lowered = content.lower()
        for form in [*forms, b"secret", b"brien", "Ünï".encode()]:
            at = lowered.find(form.lower())
            assert at < 0, (form, content[max(0, at - 200) : at + 200])


def test_runs_of_every_family_with_their_figures(hub, root):
    source = images(root / "moons", 24, bad=("cut", "text", "tiff"))
    test = images(root / "test moons", 256)
    vae = run(root / "a vae", *CONV, "--data.source", source)
    latent = ["--recipe", "mnist-latent", *UNET, "--latents.vae", str(vae), "--data.source", source]
    latent = run(root / "a latent run", *latent, "--latents.cache", "true")
    pixels = run(root / "a run", "--preset", "tiny", "--num_inference_steps", "2", "--data.source", source,
                 "--scheduler.num_train_timesteps", "4", "--label_column", "null")  # fmt: skip
    figures = {
        vae: [measured(vae, test, root / "v.json", "--num-samples", "2")],
        pixels: [measured(pixels, test, root / "p.json", "--method", "bound")],
        latent: [],
    }
    for number, (checkpoint, metrics) in enumerate(figures.items()):
        facts = json.loads((checkpoint / "training.json").read_text())
        assert facts["data"]["skipped"] == 3 and source in json.dumps(facts, ensure_ascii=False).replace('\\"', '"')
        assert "secret" not in (checkpoint / "README.md").read_text()
        push_checkpoint(str(checkpoint), f"ada/run-{number}", metrics=metrics)
        no_place(hub, f"ada/run-{number}", root)
        files = hub.files(f"ada/run-{number}")
        pushed = json.loads(files["training.json"])
        assert (pushed["data"]["source"], pushed["data"]["origin"]) == ("moons", "local")
        assert [image["file"] for image in pushed["data"]["skipped_images"]] == ["000.png", "001.png", "002.png"]
        assert "skipped: 3." in files["README.md"].decode()
        assert [entry["data"]["source"] for entry in pushed["metrics"]] == ["test moons"] * len(pushed["metrics"])
        assert bool(pushed["metrics"]) == bool(metrics)


def test_relative_places_and_pipelines_that_push_themselves(hub, root, monkeypatch):
    monkeypatch.chdir(root.parent)
    images(root / "moons", 8)
    words = ["--preset", "tiny", "--num_inference_steps", "1", "--data.source", "secret/moons"]
    checkpoint = run("secret/run", *words, "--scheduler.num_train_timesteps", "4")
    push_checkpoint(str(checkpoint), "ada/moons")
    no_place(hub, "ada/moons", root)
    assert json.loads(hub.files("ada/moons")["training.json"])["recipe"]["training"]["output_dir"] == "run"
    pipeline = HFDDPMPipeline.from_pretrained(str(checkpoint))
    for repo_id, more in {"ada/again": {}, "ada/variant": {"variant": "fp16"}}.items():  # ours, diffusers' own
        pipeline.push_to_hub(repo_id, **more)
        no_place(hub, repo_id, root)
        assert "unet/config.json" in hub.files(repo_id)
    pipeline.save_pretrained(str(root / "copy"), push_to_hub=True, repo_id="ada/saved")
    no_place(hub, "ada/saved", root)
    assert pipeline.config["_name_or_path"] == str(checkpoint)


def test_a_vae_that_pushes_itself(hub, root):
    HFVAE(sample_size=8, hidden_sizes=(8,), latent_channels=2).save_pretrained(root / "vae")
    vae = HFVAE.from_pretrained(root / "vae")
    vae.push_to_hub("ada/vae")
    vae.save_pretrained(str(root / "copy"), push_to_hub=True, repo_id="ada/saved")
    for repo_id in ("ada/vae", "ada/saved"):
        no_place(hub, repo_id, root)
        assert json.loads(hub.files(repo_id)["config.json"])["_name_or_path"] == "vae"
    assert vae.config["_name_or_path"] == str(root / "vae")


def test_a_picture_keeps_its_pixels_alone(hub, root, make_pipeline):
    """`hf-ddpm figure` writes its command into a picture, which may then lie there as samples.png."""
    from hf_ddpm.checkpoint import save_checkpoint

    save_checkpoint(make_pipeline(), root / "c", {"name": "c"}, random_image(1))
    text = PngImagePlugin.PngInfo()
    text.add_text("command", f"hf-ddpm figure grid {root}", zip=True)
    random_image(1).save(root / "c" / "samples.png", pnginfo=text)
    push_checkpoint(str(root / "c"), "ada/c")
    no_place(hub, "ada/c", root)
    with Image.open(io.BytesIO(hub.files("ada/c")["samples.png"])) as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(random_image(1)))


def test_weights_with_settings_in_their_header_are_refused(hub, root, make_pipeline):
    make_pipeline().save_pretrained(root / "c")
    file = root / "c" / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file), file, metadata={"format": "pt", "ss_output_dir": str(root)})
    with pytest.raises(
        UserError, match=r"model\.safetensors has 'ss_output_dir' in its header, .*: load it with hf_ddpm"
    ):
        push_checkpoint(str(root / "c"), "ada/c")
    assert hub.log == []
    HFDDPMPipeline.from_pretrained(root / "c").save_pretrained(root / "c")
    push_checkpoint(str(root / "c"), "ada/c")
    no_place(hub, "ada/c", root)
