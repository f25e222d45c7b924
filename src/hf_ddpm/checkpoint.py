"""Folders that are whole or not there: saving pipelines and states, opening them with a clear word when it fails."""

import contextlib
import fnmatch
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from hf_ddpm.errors import UserError, as_user_error, quoted
from hf_ddpm.gate.checked_files import CheckedFiles
from hf_ddpm.gate.weights import NOT_OF_ONE_MODEL
from hf_ddpm.kinds import Kind, kind_of, kind_of_index, resolve
from hf_ddpm.model_card import render_card
from hf_ddpm.models.unet_checks import check_sample_size
from hf_ddpm.opening import check_files, open_files
from hf_ddpm.pipelines.doors import INDEX

if TYPE_CHECKING:
    from PIL.Image import Image

    from hf_ddpm.pipelines import HFDDPMPipeline

FACTS_FILE = "training.json"
EVALUATION_FILE = "evaluation.json"
RAW_WEIGHTS = "diffusion_pytorch_model.raw.safetensors"
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
        for path in [*temporary.rglob("*"), temporary]:
            _sync(path)
        replace_folder(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextlib.contextmanager
def new_file(final: Path) -> Iterator[Path]:
    """A temporary file that becomes `final` when the block ends well, and vanishes when it fails.

    Several processes may write the same file: each has its own, and the last stays.
    """
    temporary = final.with_name(f".{final.name}.{os.getpid()}.unfinished")
    try:
        yield temporary
        temporary.replace(final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def replace_folder(new: Path, final: Path) -> None:
    """Rename `new` to `final`; an older `final` steps aside and is removed only when the new one is in place."""
    older = aside(final)
    shutil.rmtree(older, ignore_errors=True)
    if final.exists():
        final.rename(older)
    new.rename(final)
    _sync(final.parent)
    shutil.rmtree(older, ignore_errors=True)


def recover(final: Path) -> None:
    """Put back the older folder, if a kill between the two renames of `replace_folder` left it aside."""
    if aside(final).exists() and not final.exists():
        aside(final).rename(final)


def save_checkpoint(
    pipeline: DiffusionPipeline,
    folder: Path,
    facts: dict[str, Any],
    samples: "Image | None",
    *,
    raw: Mapping[str, Tensor] | None = None,
    files: Sequence[Path] = (),
    evaluation: Mapping[str, Any] | None = None,
) -> None:
    """Write a pipeline, a grid of its samples, the measured facts (training.json) and the card of its kind.

    Args:
        pipeline: whose network has the averaged weights.
        folder: a new one, or a checkpoint that is replaced.
        facts: of training, for `render_card`.
        samples: the grid; None for a model that draws no pictures.
        raw: weights of the network that was not averaged, which `variant="raw"` opens.
        files: further ones, which are copied into it if they are there.
        evaluation: the record of its samples (evaluation.json), whose figures are among the facts.

    Raises:
        UserError: the disk is full or the folder cannot be written; an older checkpoint there stays as it was.
    """
    with writing(folder, remedy=GO_ON), new_folder(folder) as temporary:
        pipeline.save_pretrained(temporary)
        (temporary / FACTS_FILE).write_text(json.dumps(facts, indent=2) + "\n")
        if evaluation is not None:
            (temporary / EVALUATION_FILE).write_text(json.dumps(evaluation, indent=2) + "\n")
        if samples is not None:
            samples.save(temporary / "samples.png")
        kind = kind_of(pipeline)
        (temporary / "README.md").write_text(render_card(facts, kind, pictured=samples is not None))
        if raw is not None:
            weights = {name: value.detach().cpu().contiguous() for name, value in raw.items()}
            save_file(weights, temporary / kind.network / RAW_WEIGHTS, metadata={"format": "pt"})
        for file in files:
            if file.is_file():
                shutil.copy2(file, temporary)


def add_evaluation(folder: Path, facts: dict[str, Any], kind: Kind, evaluation: Mapping[str, Any]) -> None:
    """Write what was measured of a checkpoint that is there: the record, the facts, and the card that they make."""
    pictured = (folder / "samples.png").is_file()
    files = {EVALUATION_FILE: evaluation, FACTS_FILE: facts}
    texts = {name: json.dumps(found, indent=2) + "\n" for name, found in files.items()}
    with writing(folder, remedy=GO_ON):
        for name, text in (texts | {"README.md": render_card(facts, kind, pictured=pictured)}).items():
            with new_file(folder / name) as new:
                new.write_text(text)


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


def load_pipeline(source: str, **kwargs: Any) -> "HFDDPMPipeline":
    """`load_checkpoint` of a diffusion model.

    Raises:
        UserError: as there, and for a checkpoint of another kind.
    """
    pipeline: Any = load_checkpoint(source, **kwargs)
    kind = kind_of(pipeline)
    if not kind.walks:
        raise UserError(f"{source!r} holds a {kind.word}: this is for diffusion models, such as `make train` leaves")
    return pipeline


def load_checkpoint(source: str, **kwargs: Any) -> DiffusionPipeline:
    """`from_pretrained` of the pipeline that the checkpoint's index names, with every failure in one sentence.

    Raises:
        UserError: nothing at the path, a folder that is no checkpoint, files that are missing, corrupt or cut short.
    """
    folder = find_folder(source)
    if folder is not None:
        check_index_is_there(source, folder)
    with failed_opening_as_user_error(f"the checkpoint {source!r} cannot be opened", folder):
        return _open(folder or source, **kwargs)


def find_kind(source: str) -> Kind:
    """The kind of a saved checkpoint, of which the index alone is read.

    Raises:
        UserError: as `load_checkpoint`.
    """
    folder = find_folder(source)
    if folder is not None:
        check_index_is_there(source, folder)
    with failed_opening_as_user_error(f"the checkpoint {source!r} cannot be opened", folder):
        return kind_of_index(CheckedFiles(folder or source, INDEX).json(INDEX))


def find_folder(source: str) -> Path | None:
    """The folder that a user names, put in place if a kill left it aside; None for a Hub name.

    Raises:
        UserError: nothing is there, or a file.
    """
    folder = Path(source).expanduser()
    recover(folder.resolve())
    if source and folder.is_dir():
        return folder
    if folder.exists() or source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise UserError(f"there is no checkpoint folder at {source!r}: give a folder saved by training, or a Hub name")
    return None


def check_index_is_there(source: str, folder: Path) -> None:
    """Refuse a folder without an index, which the user calls `source`."""
    if not (folder / INDEX).is_file():
        raise UserError(f"{source!r} is not a checkpoint: {hint_at_checkpoint(folder)}")


def hint_at_checkpoint(folder: Path) -> str:
    """What to give instead of a folder without an index: the checkpoint in it or beside it, if there is one."""
    beside = [parent / "checkpoint" / INDEX for parent in list(folder.parents)[:2]]  # of a run's states, or one of them
    near = [*sorted(folder.glob(f"*/{INDEX}")), *(index for index in beside if index.is_file())]
    return f"did you mean {near[0].parent}?" if near else f"a checkpoint folder holds a {INDEX}"


@contextlib.contextmanager
def failed_opening_as_user_error(what: str, folder: Path | None) -> Iterator[None]:
    """Turn the ways in which `from_pretrained` fails into one sentence that begins with `what`.

    Args:
        folder: where it opens files, which the sentence names from there; None for a Hub name.
    """
    try:
        yield
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        reason, stray, _ = str(error).partition(". If you want to instead overwrite randomly initialized weights")
        if stray:  # diffusers goes on with how to run an untrained network
            reason += f": {NOT_OF_ONE_MODEL}"
        if folder is not None:
            reason = reason.replace(f"{folder}{os.sep}", "")
        raise UserError(f"{what}: {quoted(reason)}") from error


def read_object(file: Path, remedy: str = "restore it from another copy") -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        UserError: the file is missing, cut short or holds something else; the sentence ends with the remedy.
    """
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read as JSON ({error})"
        raise UserError(f"{file} {reason}: {remedy}") from error
    if not isinstance(found, dict):
        raise UserError(f"{file} holds no JSON object {{...}}: {remedy}")
    return found


def _open(source: Path | str, **kwargs: Any) -> DiffusionPipeline:
    """`from_pretrained`, with a word for a size that fits no network."""
    files = CheckedFiles(source, INDEX, **kwargs)
    kind = kind_of_index(files.json(INDEX))
    pipeline = open_files(resolve(kind.pipeline), files, **kwargs)
    if kind.walks:
        with as_user_error("sample_size in config.json of the UNet"):
            check_sample_size(pipeline.unet.config)
    return pipeline


def check_folder(folder: Path) -> dict[str, str]:
    """Refuse a folder that `load_checkpoint` would not open, without building anything.

    Returns:
        dict: the config's file of each component, as `check_files` finds it.

    Raises:
        UserError: what is missing, corrupt or cut short.
    """
    with failed_opening_as_user_error(f"the checkpoint {str(folder)!r} is not whole", folder):
        files = CheckedFiles(folder, INDEX)
        configs = check_files(resolve(kind_of_index(files.json(INDEX)).pipeline), files, set(), None)
        for name in fnmatch.filter(files.names, "*/*.safetensors"):  # variants too
            files.check_header(name)
    return configs


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
