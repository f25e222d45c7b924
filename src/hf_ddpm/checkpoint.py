"""Save pipelines and states in folders that are complete or do not exist, and load them with clear error messages."""

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
GO_ON = (
    "earlier checkpoints are unchanged; free disk space, or move the run's folder and set --output_dir to it, then "
    "continue with --resume latest"
)


def unfinished(final: Path) -> Path:
    """Return where `final` is written until it is complete."""
    return final.with_name(f".{final.name}.unfinished")


def aside(final: Path) -> Path:
    """Return where an older `final` is kept until the new one is in place."""
    return final.with_name(f".{final.name}.old")


@contextlib.contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `final` if the block succeeds, and is deleted if it fails.

    Everything in it is on the disk before the rename; an older `final` is unchanged until then.
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
    """Yield a temporary file that becomes `final` if the block succeeds, and is deleted if it fails.

    Several processes may write the same file: each has its own temporary file, and the last one replaces the others.
    """
    temporary = final.with_name(f".{final.name}.{os.getpid()}.unfinished")
    try:
        yield temporary
        temporary.replace(final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def replace_folder(new: Path, final: Path) -> None:
    """Rename `new` to `final`; an older `final` is moved aside, and deleted only when the new one is in place."""
    older = aside(final)
    shutil.rmtree(older, ignore_errors=True)
    if final.exists():
        final.rename(older)
    new.rename(final)
    _sync(final.parent)
    shutil.rmtree(older, ignore_errors=True)


def recover(final: Path) -> None:
    """Restore the older folder, if the process was killed between the two renames of `replace_folder`."""
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
    """Write a pipeline, a grid of its samples, the measured facts (training.json) and the model card of its kind.

    Args:
        pipeline: The pipeline, whose network has the averaged weights.
        folder: A new folder, or a checkpoint that is replaced.
        facts: The facts of training, for `render_card`.
        samples: The grid of samples; None for a model that draws no images.
        raw: The weights that were not averaged, which `variant="raw"` loads.
        files: Further files, which are copied into the folder if they exist.
        evaluation: The record of the evaluation (evaluation.json), whose figures are among the facts.

    Raises:
        UserError: If the disk is full or the folder cannot be written; an older checkpoint in it is not changed.
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
    """Write the evaluation of an existing checkpoint: the record, the facts, and the model card of these facts."""
    pictured = (folder / "samples.png").is_file()
    files = {EVALUATION_FILE: evaluation, FACTS_FILE: facts}
    texts = {name: json.dumps(found, indent=2) + "\n" for name, found in files.items()}
    with writing(folder, remedy=GO_ON):
        for name, text in (texts | {"README.md": render_card(facts, kind, pictured=pictured)}).items():
            with new_file(folder / name) as new:
                new.write_text(text)


@contextlib.contextmanager
def writing(target: Path, *, remedy: str = "free disk space or choose another path") -> Iterator[None]:
    """Turn errors of writing to `target` into one sentence that ends with the remedy."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "writ" not in str(error):  # not an error of torch.save
            raise
        reason = str(error).splitlines()[0]
        raise UserError(f"{target} could not be written ({reason}): {remedy}") from error


def load_pipeline(source: str, **kwargs: Any) -> "HFDDPMPipeline":
    """Load the checkpoint of a diffusion model.

    Raises:
        UserError: As in `load_checkpoint`, and for a checkpoint of another kind.
    """
    pipeline: Any = load_checkpoint(source, **kwargs)
    kind = kind_of(pipeline)
    if not kind.walks:
        raise UserError(f"{source!r} contains a {kind.word}: pass a diffusion model, such as `make train` saves")
    return pipeline


def load_checkpoint(source: str, **kwargs: Any) -> DiffusionPipeline:
    """Load the pipeline that the checkpoint's index names, with `from_pretrained`; every error is one sentence.

    Raises:
        UserError: If the path does not exist, the folder is not a checkpoint, or files are missing, corrupted or
            truncated.
    """
    folder = find_folder(source)
    if folder is not None:
        check_index_is_there(source, folder)
    with failed_opening_as_user_error(f"the checkpoint {source!r} cannot be opened", folder):
        return _open(folder or source, **kwargs)


def find_kind(source: str) -> Kind:
    """Return the kind of a saved checkpoint, of which only the index is read.

    Raises:
        UserError: As in `load_checkpoint`.
    """
    folder = find_folder(source)
    if folder is not None:
        check_index_is_there(source, folder)
    with failed_opening_as_user_error(f"the checkpoint {source!r} cannot be opened", folder):
        return kind_of_index(CheckedFiles(folder or source, INDEX).json(INDEX))


def find_folder(source: str) -> Path | None:
    """Return the folder that a user names, which is restored first if a save was interrupted; None for a Hub name.

    Raises:
        UserError: If the folder does not exist, or is a file.
    """
    folder = Path(source).expanduser()
    recover(folder.resolve())
    if source and folder.is_dir():
        return folder
    if folder.exists() or source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise UserError(f"there is no checkpoint folder at {source!r}: pass a folder saved by training, or a Hub name")
    return None


def check_index_is_there(source: str, folder: Path) -> None:
    """Reject a folder without an index, which the user calls `source`."""
    if not (folder / INDEX).is_file():
        raise UserError(f"{source!r} is not a checkpoint: {hint_at_checkpoint(folder)}")


def hint_at_checkpoint(folder: Path) -> str:
    """Return what to pass instead of a folder without an index: the checkpoint in it or beside it, if there is one."""
    beside = [
        parent / "checkpoint" / INDEX for parent in list(folder.parents)[:2]
    ]  # the folder may be of a run's states
    inside = [index for index in folder.glob(f"*/{INDEX}") if not index.parent.name.startswith(".")]  # not unfinished
    inside.sort(key=lambda index: (index.parent.name != "checkpoint", index))
    near = [*inside, *(index for index in beside if index.is_file())]
    return f"did you mean {near[0].parent}?" if near else f"a checkpoint folder contains a {INDEX}"


@contextlib.contextmanager
def failed_opening_as_user_error(what: str, folder: Path | None) -> Iterator[None]:
    """Turn errors of `from_pretrained` into one sentence that begins with `what`.

    Args:
        folder: The folder of the files, to which the sentence shortens their paths; None for a Hub name.
    """
    try:
        yield
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        reason, stray, _ = str(error).partition(". If you want to instead overwrite randomly initialized weights")
        if stray:  # diffusers continues with how to run an untrained network
            reason += f": {NOT_OF_ONE_MODEL}"
        if folder is not None:
            reason = reason.replace(f"{folder}{os.sep}", "")
        raise UserError(f"{what}: {quoted(reason)}") from error


def read_object(file: Path, remedy: str = "restore it from another copy") -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        UserError: If the file is missing, truncated or contains something else; the sentence ends with the remedy.
    """
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read as JSON ({error})"
        raise UserError(f"{file} {reason}: {remedy}") from error
    if not isinstance(found, dict):
        raise UserError(f"{file} does not contain a JSON object {{...}}: {remedy}")
    return found


def _open(source: Path | str, **kwargs: Any) -> DiffusionPipeline:
    """Call `from_pretrained`, and reject a sample_size that does not fit the network."""
    files = CheckedFiles(source, INDEX, **kwargs)
    kind = kind_of_index(files.json(INDEX))
    pipeline = open_files(resolve(kind.pipeline), files, **kwargs)
    if kind.walks:
        with as_user_error("sample_size in config.json of the UNet"):
            check_sample_size(pipeline.unet.config)
    return pipeline


def check_folder(folder: Path) -> dict[str, str]:
    """Reject a folder that `load_checkpoint` would not open, without building anything.

    Returns:
        dict: The config file of each component, as `check_files` returns it.

    Raises:
        UserError: If a file is missing, corrupted or truncated.
    """
    with failed_opening_as_user_error(f"the checkpoint {str(folder)!r} is incomplete or damaged", folder):
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
