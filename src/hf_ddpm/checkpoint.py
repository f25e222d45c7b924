"""Folders that are whole or not there: saving pipelines and states, opening them with a clear word when it fails."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from hf_ddpm.errors import UserError
from hf_ddpm.model_card import render_card
from hf_ddpm.pipelines import HFDDPMPipeline

if TYPE_CHECKING:
    from PIL.Image import Image

FACTS_FILE = "training.json"
GO_ON = "what was saved before is untouched; make room or choose another place, then go on with --resume latest"


def unfinished(final: Path) -> Path:
    """Where `final` is written before it is whole."""
    return final.with_name(f".{final.name}.unfinished")


def aside(final: Path) -> Path:
    """Where an older `final` waits until the new one is in place."""
    return final.with_name(f".{final.name}.old")


@contextlib.contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A temporary folder that becomes `final` when the block ends well, and vanishes when it fails.

    Everything in it reaches the disk before the rename; an older `final` stays whole until then.
    """
    temporary = unfinished(final)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _sync(temporary)
        replace_folder(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def replace_folder(new: Path, final: Path) -> None:
    """Rename `new` to `final`; an older `final` steps aside and is removed only when the new one is in place."""
    older = aside(final)
    shutil.rmtree(older, ignore_errors=True)
    if final.exists():
        final.rename(older)
    new.rename(final)
    _sync_one(final.parent)
    shutil.rmtree(older, ignore_errors=True)


def recover(final: Path) -> None:
    """Put back the older folder, if a kill between the two renames of `replace_folder` left it aside."""
    if aside(final).exists() and not final.exists():
        aside(final).rename(final)


def save_checkpoint(pipeline: HFDDPMPipeline, folder: Path, facts: dict[str, Any], samples: "Image") -> None:
    """Write a pipeline, a grid of its samples, the measured facts (training.json) and the card rendered from them.

    Raises:
        UserError: the disk is full or the folder cannot be written; an older checkpoint there stays as it was.
    """
    with writing(folder, remedy=GO_ON), new_folder(folder) as temporary:
        pipeline.save_pretrained(temporary)
        (temporary / FACTS_FILE).write_text(json.dumps(facts, indent=2) + "\n")
        samples.save(temporary / "samples.png")
        (temporary / "README.md").write_text(render_card(facts))


@contextlib.contextmanager
def writing(target: Path, *, remedy: str = "make room or choose another place") -> Iterator[None]:
    """Turn the ways in which a write to `target` can fail into one sentence that ends with the remedy."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "writ" not in str(error):  # torch.save's own complaint, nothing else
            raise
        reason = str(error).splitlines()[0]
        raise UserError(f"{target} could not be written ({reason}): {remedy}") from error


def load_pipeline(source: str, **kwargs: Any) -> HFDDPMPipeline:
    """`HFDDPMPipeline.from_pretrained` with every failure in one sentence.

    Raises:
        UserError: nothing at the path, a folder that is no checkpoint, files that are missing, corrupt or cut short.
    """
    folder = Path(source).expanduser()
    recover(folder.resolve())
    if not folder.is_dir():
        if folder.exists() or source.startswith((".", "/", "~")) or source.count("/") != 1:
            raise UserError(
                f"there is no checkpoint folder at {source!r}: give a folder saved by training, or a Hub name"
            )
    elif not (folder / "model_index.json").is_file():
        inside = sorted(str(p.parent) for p in folder.glob("*/model_index.json"))
        hint = f"did you mean {inside[0]}?" if inside else "a checkpoint folder holds a model_index.json"
        raise UserError(f"{source!r} is not a checkpoint: {hint}")
    try:
        return HFDDPMPipeline.from_pretrained(folder if folder.is_dir() else source, **kwargs)
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the checkpoint {source!r} cannot be opened: {reason[:300]}") from error


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync_one(path)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
