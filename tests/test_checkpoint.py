"""Folders that are whole or not there, and the sentence for every checkpoint that cannot be opened."""

import shutil

import pytest
from PIL import Image

from hf_ddpm.checkpoint import load_pipeline, new_folder, save_checkpoint, unfinished
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
    with pytest.raises(UserError, match=r"could not be written .*untouched; .* --resume latest$"):
        save_checkpoint(make_pipeline(), checkpoint / "README.md" / "deeper", {}, Image.new("L", (8, 8)))
    assert load_pipeline(str(checkpoint))


def spoil(checkpoint, how):
    weights = checkpoint / "unet" / "diffusion_pytorch_model.safetensors"
    match how:
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "corrupt":
            weights.write_bytes(b"\xff" * 1000)
        case "empty":
            weights.write_bytes(b"")
        case "no weights":
            weights.unlink()
        case "no unet":
            shutil.rmtree(checkpoint / "unet")
        case "bad index":
            (checkpoint / "model_index.json").write_text("{")
        case "bad config":
            (checkpoint / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "nonsense"}')
        case "other network":
            config = checkpoint / "unet" / "config.json"
            config.write_text(config.read_text().replace('"in_channels": 1', '"in_channels": 3'))


@pytest.mark.parametrize(
    "how", ["truncated", "corrupt", "empty", "no weights", "no unet", "bad index", "bad config", "other network"]
)
def test_a_damaged_checkpoint_is_one_sentence(how, checkpoint):
    spoil(checkpoint, how)
    with pytest.raises(UserError, match=r"^the checkpoint '.*checkpoint' cannot be opened: \S") as caught:
        load_pipeline(str(checkpoint))
    assert "\n" not in str(caught.value)


def test_nothing_at_the_path(tmp_path):
    with pytest.raises(UserError, match=r"there is no checkpoint folder at .*nothing"):
        load_pipeline(str(tmp_path / "nothing"))


def test_a_folder_that_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"is not a checkpoint: a checkpoint folder holds a model_index\.json"):
        load_pipeline(str(tmp_path))


def test_a_kill_between_two_renames_loses_nothing(checkpoint):
    """The older folder stands aside and the new one is not in place: opening it puts the older one back."""
    checkpoint.rename(checkpoint.with_name(".checkpoint.old"))
    load_pipeline(str(checkpoint))
    assert (checkpoint / "model_index.json").is_file()


def test_a_run_folder_points_to_its_checkpoint(checkpoint):
    with pytest.raises(UserError, match=r"did you mean .*checkpoint"):
        load_pipeline(str(checkpoint.parent))
