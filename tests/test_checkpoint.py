"""Folders that are whole or not there, and the sentence for every checkpoint that cannot be opened."""

import json
import re
import shutil

import pytest
import torch
from PIL import Image

from hf_ddpm import HFVAE, HFDDPMPipeline, unet_preset
from hf_ddpm.checkpoint import load_pipeline, new_folder, save_checkpoint, unfinished
from hf_ddpm.cli import main
from hf_ddpm.commands.options import cut_of_training
from hf_ddpm.errors import UserError


@pytest.fixture
def checkpoint(make_pipeline, tmp_path):
    save_checkpoint(make_pipeline(), tmp_path / "checkpoint", {"name": "one"}, Image.new("L", (8, 8)))
    return tmp_path / "checkpoint"


def test_a_new_folder_appears_only_when_it_is_complete(tmp_path):
    final = tmp_path / "final"
    with new_folder(final) as temporary:
        (temporary / "file").write_text("whole")
        assert not final.exists()
    assert (final / "file").read_text() == "whole"
    assert [p.name for p in tmp_path.iterdir()] == ["final"]


def test_a_failed_write_leaves_the_older_folder_whole(tmp_path):
    final = tmp_path / "final"
    with new_folder(final) as temporary:
        (temporary / "file").write_text("old")
    with pytest.raises(OSError, match="No space"), new_folder(final) as temporary:
        (temporary / "file").write_text("new")
        raise OSError(28, "No space left on device")
    assert (final / "file").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["final"]


def test_a_newer_folder_replaces_the_older(tmp_path):
    for text in ("old", "new"):
        with new_folder(tmp_path / "final") as temporary:
            (temporary / text).write_text(text)
    assert [p.name for p in (tmp_path / "final").iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["final"]


def test_remains_of_a_crash_are_cleared(tmp_path):
    final = tmp_path / "final"
    unfinished(final).mkdir()
    (unfinished(final) / "stale").write_text("")
    with new_folder(final) as temporary:
        (temporary / "file").write_text("")
    assert [p.name for p in final.iterdir()] == ["file"]


def test_a_checkpoint_holds_no_pickle(checkpoint):
    names = {p.name for p in checkpoint.rglob("*") if p.is_file()}
    assert {
        "README.md",
        "training.json",
        "samples.png",
        "model_index.json",
        "diffusion_pytorch_model.safetensors",
    } <= names
    assert {p.suffix for p in checkpoint.rglob("*") if p.is_file()} <= {".json", ".safetensors", ".py", ".md", ".png"}


def test_failing_to_replace_a_checkpoint_is_a_sentence(checkpoint, make_pipeline):
    with pytest.raises(UserError, match=r"could not be written .*unchanged; .* --resume latest$"):
        save_checkpoint(make_pipeline(), checkpoint / "README.md" / "deeper", {}, Image.new("L", (8, 8)))
    assert load_pipeline(str(checkpoint))


INDEX, UNET, SCHEDULER = "model_index.json", "unet/config.json", "scheduler/scheduler_config.json"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def refusal(checkpoint):
    """What follows the words that every refusal begins with."""
    with pytest.raises(UserError) as caught:
        load_pipeline(str(checkpoint))
    beginning, reason = str(caught.value).split(" cannot be opened: ")
    assert beginning == f"the checkpoint {str(checkpoint)!r}"
    assert "\n" not in reason
    return reason


def spoil(checkpoint, how):
    weights = checkpoint / WEIGHTS
    match how:
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "corrupt":
            weights.write_bytes(b"\xff" * 1000)
        case "empty":
            weights.write_bytes(b"")
        case "shard cut short":
            weights.unlink()
            unet_preset("tiny").save_pretrained(checkpoint / "unet", max_shard_size="20KB")
            next((checkpoint / "unet").glob("*-00002-of-*")).write_bytes(b"short")
        case "no weights":
            weights.unlink()
        case "no unet":
            shutil.rmtree(checkpoint / "unet")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("truncated", rf"{WEIGHTS} is truncated or damaged: restore it from another copy \(.*not fully covered\)$"),
        ("corrupt", rf"{WEIGHTS} is truncated or damaged: restore it from another copy \(.*header too large\)$"),
        ("empty", rf"{WEIGHTS} is truncated or damaged: restore it from another copy \(.*header too small\)$"),
        (
            "shard cut short",
            r"unet/\S*-00002-of-\S*\.safetensors is truncated or damaged: restore it from another copy",
        ),
        ("no weights", rf"{WEIGHTS} is missing: restore it from another copy$"),
        ("no unet", rf"{UNET} is missing: restore it from another copy$"),
    ],
)
def test_missing_and_damaged_files_are_one_sentence(how, said, checkpoint, capfd):
    spoil(checkpoint, how)
    assert re.match(said, refusal(checkpoint))
    assert "unsafe" not in capfd.readouterr().err


@pytest.mark.parametrize("text", ["", "{", "[1]"])
@pytest.mark.parametrize("file", [INDEX, UNET, SCHEDULER])
def test_a_file_that_is_no_json_object_is_named(file, text, checkpoint, capfd):
    (checkpoint / file).write_text(text)
    said = "does not contain a JSON object" if text == "[1]" else "cannot be read as JSON"
    assert refusal(checkpoint).startswith(f"{file} {said}")
    assert "deprecated" not in capfd.readouterr().err


def test_an_empty_index_says_what_it_lacks(checkpoint):
    (checkpoint / INDEX).write_text("{}")
    assert refusal(checkpoint) == "model_index.json does not contain '_class_name': restore it from another copy"


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        (INDEX, {"unet": None}, "model_index.json does not contain 'unet'"),
        (INDEX, {"unet": "UNet2DModel"}, r"model_index.json has unet='UNet2DModel', which must be \[library, class\]"),
        (INDEX, {"unet": [None, None]}, r"model_index.json has unet=\[None, None\], which must be \[library, class\]"),
        (SCHEDULER, {"prediction_type": "nonsense"}, "prediction_type='nonsense'"),
        (SCHEDULER, {"num_train_timesteps": "1000"}, f"{SCHEDULER} has num_train_timesteps='1000', which must be int"),
        (SCHEDULER, {"beta_end": None}, f"{SCHEDULER} has beta_end=None, which must be float: fix it"),
        (UNET, {"down_block_types": None}, f"{UNET} has down_block_types=None, which must be list or str: fix it"),
        (UNET, {"in_channels": "1"}, f"{UNET} has in_channels='1', which must be int: fix it"),
        (
            UNET,
            {"in_channels": 3},
            "Cannot load because conv_in.*: config.json and the weights do not belong to the same model",
        ),
        (UNET, {"num_class_embeds": 3}, r"weights are missing \([0-9]+, such as .*\): config.json and the weights do"),
        (UNET, {"sample_size": "28"}, f"{UNET} has sample_size='28', which must be None or int or list: fix it"),
        (UNET, {"sample_size": [28]}, "sample_size in config.json of the UNet: sample_size must be"),
        (UNET, {"sample_size": 33}, "sample_size in config.json of the UNet: image size 33x33 does not fit"),
    ],
)
def test_a_damaged_value_is_one_sentence(file, values, said, checkpoint):
    change(checkpoint / file, **values)
    assert re.match(said, refusal(checkpoint))


VAE, VAE_WEIGHTS = "vae/config.json", "vae/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: shutil.rmtree(folder / "vae"), f"{VAE} is missing: restore it from another copy"),
        (lambda folder: (folder / VAE).unlink(), f"{VAE} is missing: restore it from another copy"),
        (lambda folder: (folder / VAE).write_text("[1]"), f"{VAE} does not contain a JSON object"),
        (lambda folder: (folder / VAE_WEIGHTS).unlink(), f"{VAE_WEIGHTS} is missing: restore it from another copy"),
        (lambda folder: (folder / VAE_WEIGHTS).write_bytes(b"12"), f"{VAE_WEIGHTS} is truncated or damaged"),
        (lambda folder: change(folder / INDEX, vae=None), f"{INDEX} does not contain 'vae': restore it"),
        (
            lambda folder: change(folder / INDEX, vae=[None, None]),
            rf"{INDEX} has vae=\[None, None\], which must be \[library",
        ),
        (
            lambda folder: change(folder / VAE, layers_per_block=2),
            r"weights are missing \([0-9]+, such as .*\): config.json",
        ),
    ],
)
def test_a_latent_model_needs_its_vae(damage, said, make_pipeline, tmp_path, capfd):
    """Without it in the index it would open, and show latents as pictures."""
    inner = make_pipeline({"clip_sample": False}, sample_size=8, in_channels=2, out_channels=2)
    vae = HFVAE(sample_size=16, latent_channels=2, network="conv", block_out_channels=(8, 8), scaling_factor=1.0)
    HFDDPMPipeline(inner.unet, inner.scheduler, vae=vae).save_pretrained(tmp_path / "c")
    assert load_pipeline(str(tmp_path / "c")).vae is not None
    damage(tmp_path / "c")
    assert re.match(said, refusal(tmp_path / "c"))
    assert "unsafe" not in capfd.readouterr().err


def test_an_index_may_say_that_there_is_no_vae(checkpoint):
    change(checkpoint / INDEX, vae=[None, None])  # as diffusers writes it
    assert load_pipeline(str(checkpoint)).vae is None


def test_the_command_says_it_in_one_line(checkpoint):
    change(checkpoint / SCHEDULER, num_train_timesteps="1000")
    with pytest.raises(SystemExit) as caught:
        main(["sample", str(checkpoint)])
    assert str(caught.value).startswith("error: the checkpoint ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", ["shards", "variant", "root"])
def test_other_layouts_open(layout, checkpoint):
    before = load_pipeline(str(checkpoint)).unet
    if layout == "root":
        for file in [checkpoint / UNET, checkpoint / SCHEDULER, checkpoint / WEIGHTS]:
            file.rename(checkpoint / file.name)
            if not any(file.parent.iterdir()):
                file.parent.rmdir()
    else:
        (checkpoint / WEIGHTS).unlink()
        sort = {"shards": {"max_shard_size": "20KB"}, "variant": {"variant": "ema"}}
        before.save_pretrained(checkpoint / "unet", **sort[layout])
    after = load_pipeline(str(checkpoint), **({"variant": "ema"} if layout == "variant" else {})).unet
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


def test_pickles_are_refused_unless_they_are_asked_for(checkpoint):
    before = load_pipeline(str(checkpoint)).unet
    (checkpoint / WEIGHTS).unlink()
    before.save_pretrained(checkpoint / "unet", safe_serialization=False)
    assert re.match("unet has no safetensors, only pickles, .* use_safetensors=False and save it", refusal(checkpoint))
    with pytest.raises(ValueError, match="has no safetensors, only pickles"):
        HFDDPMPipeline.from_pretrained(checkpoint)
    HFDDPMPipeline.from_pretrained(checkpoint, use_safetensors=False).save_pretrained(checkpoint)
    after = load_pipeline(str(checkpoint)).unet
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "does not contain a JSON object"),
        ('{"recipe": [1]}', "must be JSON objects"),
        ('{"recipe": {"data": "mnist"}}', "must be JSON objects"),
    ],
)
def test_damaged_facts_are_one_sentence(text, said, checkpoint):
    (checkpoint / "training.json").write_text(text)
    with pytest.raises(UserError, match=rf"training\.json.*{said}.*: restore it, or delete it \(.*\)$"):
        cut_of_training(str(checkpoint))
    (checkpoint / "training.json").unlink()
    assert cut_of_training(str(checkpoint)) == {}


def test_nothing_at_the_path(tmp_path):
    with pytest.raises(UserError, match=r"there is no checkpoint folder at .*nothing"):
        load_pipeline(str(tmp_path / "nothing"))


def test_a_folder_that_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"is not a checkpoint: a checkpoint folder contains a model_index\.json"):
        load_pipeline(str(tmp_path))


def test_a_kill_between_two_renames_loses_nothing(checkpoint):
    """The older folder stands aside and the new one is not in place: opening it puts the older one back."""
    checkpoint.rename(checkpoint.with_name(".checkpoint.old"))
    load_pipeline(str(checkpoint))
    assert (checkpoint / "model_index.json").is_file()


def test_a_run_folder_points_to_its_checkpoint(checkpoint):
    with pytest.raises(UserError, match=r"did you mean .*checkpoint"):
        load_pipeline(str(checkpoint.parent))
