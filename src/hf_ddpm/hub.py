"""Push a checkpoint to the Hub in one commit, with one sentence for every error."""

import io
import json
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import httpx2
import yaml
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id
from safetensors import safe_open

from hf_ddpm.checkpoint import (
    EVALUATION_FILE,
    FACTS_FILE,
    INDEX,
    check_folder,
    check_index_is_there,
    read_object,
    recover,
)
from hf_ddpm.errors import UserError, quoted
from hf_ddpm.gate.hub_access import TRANSIENT, patient
from hf_ddpm.kinds import KINDS, Kind, kind_of, kind_of_index
from hf_ddpm.model_card import render_card
from hf_ddpm.model_card_metrics import metrics_of
from hf_ddpm.pipelines.doors import STOCK_PIPELINE
from hf_ddpm.places import names_on_the_hub, without_places
from hf_ddpm.schedulers.config_files import WRONG_KIND
from hf_ddpm.weights import weights_of

# The files of a checkpoint. Nothing else in a folder is uploaded: no pickle, no state, no hidden file.
UPLOADED = [INDEX, "README.md", FACTS_FILE, EVALUATION_FILE, "recipe.yaml", "log.jsonl", "samples.png", "*.py"]
OF_A_COMPONENT = ["*.json", "*.safetensors"]
GUIDE = "classifier"  # the component of a diffusion model that another training run produced


def push_checkpoint(
    source: str,
    repo_id: str,
    *,
    private: bool = False,
    create_pr: bool = False,
    revision: str = "main",
    tag: str | None = None,
    move_tag: bool = False,
    message: str | None = None,
    metrics: Sequence[str | Path] = (),
    token: str | None = None,
) -> str:
    """Upload a checkpoint in one commit, with a model card rendered from what was measured.

    Files of an earlier checkpoint that this one does not have are deleted from the repository; other files are kept.
    Weights that were already uploaded, even by an interrupted push, are not sent again.

    Args:
        source: The folder of the checkpoint.
        repo_id: `user/name`, or a name in your own namespace; the repository is created if it does not exist.
        private: Whether the repository must be private; a new one is created private.
        create_pr: Whether to open a pull request instead of committing to `revision`.
        revision: The branch, which is created if it does not exist.
        tag: A tag for the commit, such as `v1`.
        move_tag: Whether to move an existing tag, which is an error otherwise; its old commit stays in the history.
        message: The commit message.
        metrics: JSON files that `hf-ddpm evaluate` and `hf-ddpm likelihood` wrote for these weights.
        token: A token to use instead of `HF_TOKEN` or the one of `hf auth login`.

    Returns:
        str: The address of the pushed checkpoint.

    Raises:
        UserError: If the folder is not a complete checkpoint, the metrics are of other weights, the tag exists, or the
            Hub refuses the upload.
    """
    check_name(repo_id)
    folder = _whole(source)
    facts = _facts(folder, metrics)
    files = _files(folder, names_on_the_hub(facts)) | _records(
        folder, facts
    )  # raises errors of damaged files before a repository is created
    with hub_sentences(repo_id):
        api = HfApi(token=token)
        repo_id = patient(lambda: api.create_repo(repo_id, private=private or None, exist_ok=True)).repo_id
        if private:
            check_private(api, repo_id)
        taken = tag is not None and _is_tag(api, repo_id, tag)
        if taken and not move_tag:  # others may rely on its commit
            raise UserError(f"{repo_id} already has a tag {tag!r}: choose another one, or delete it on the Hub")
        if revision != "main":
            patient(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))
        files |= _records(folder, facts | {"repo_id": repo_id})
        commit, pr_url = _commit(api, repo_id, revision, files, message or _message(facts), create_pr)
        if tag is not None:
            if taken:
                patient(lambda: api.delete_tag(repo_id, tag=tag))
            patient(lambda: api.create_tag(repo_id, tag=tag, revision=commit, exist_ok=True))
    if create_pr and pr_url is None:
        raise UserError(f"{repo_id} already contains exactly these files: there is nothing to open a pull request for")
    return pr_url or f"{api.endpoint}/{repo_id}" + ("" if revision == "main" else f"/tree/{revision}")


def push_pipeline(pipeline: DiffusionPipeline, repo_id: str, **kwargs: Any) -> str:
    """Save a pipeline and push it, with the files that training wrote beside the weights that it was loaded from.

    Args:
        pipeline: A pipeline of one of the kinds in `hf_ddpm.kinds`.
        repo_id: As in `push_checkpoint`.
        **kwargs: Arguments of `push_checkpoint`.

    Returns:
        str: The address of the pushed checkpoint.

    Raises:
        UserError: As in `push_checkpoint`, and for a classifier of transformers.
    """
    if pipeline.components.get("image_processor") is not None:
        raise UserError(
            "a classifier of transformers cannot be part of a checkpoint: set pipeline.classifier and "
            "pipeline.image_processor to None before the push, and pass them when you sample"
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "checkpoint"
        pipeline.save_pretrained(folder)
        source = Path(pipeline.config.get("_name_or_path") or folder)
        _take_along(source, folder, kind_of(pipeline))
        return push_checkpoint(str(folder), repo_id, **kwargs)


def _take_along(source: Path, folder: Path, kind: Kind) -> None:
    """Copy the files that training wrote from `source` into `folder`, if they were measured on the same networks.

    The classifier that guides may be different, new or missing, because a model is measured without it.
    """
    there, here = weights_of(source), weights_of(folder)
    changed = {part for part in there.keys() | here.keys() if there.get(part) != here.get(part)}
    if not there or not changed <= {GUIDE} - {kind.network}:  # sharded weights are not compared
        return
    for file in source.rglob("*"):
        name = file.relative_to(source).as_posix()
        if _is_ours(name) and name.split("/")[0] not in changed and not (folder / name).exists():
            shutil.copy2(file, folder / name)


@contextmanager
def hub_sentences(repo_id: str) -> Iterator[None]:
    """Turn errors of the Hub's client into one sentence with the repository and the remedy."""
    try:
        yield
    except HfHubHTTPError as error:
        raise UserError(f"{repo_id}: {_reason(error)}") from error
    except OfflineModeIsEnabled as error:
        raise UserError(f"{repo_id}: HF_HUB_OFFLINE is set, so nothing can be sent: unset it") from error
    except UnicodeEncodeError as error:
        raise UserError(
            f"{repo_id}: the token contains {error.object[error.start]!r}, which a token cannot have: check HF_TOKEN"
        ) from error
    except httpx2.TransportError as error:
        raise UserError(
            f"{repo_id}: no connection to {constants.ENDPOINT} ({quoted(error)}): check the network and HF_ENDPOINT, "
            "then push again; files that were uploaded are not sent again"
        ) from error


def check_name(repo_id: str) -> None:
    """Reject an invalid repository name before the Hub is contacted."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(
            f"{repo_id!r} cannot be the name of a repository: use user/name with letters and digits, with single "
            "'-', '_' and '.' between them, at most 96 characters and no .git at the end"
        ) from error


def _whole(source: str) -> Path:
    """Return the folder of a complete checkpoint."""
    folder = Path(source).expanduser()
    recover(folder.resolve())
    if not source or not folder.is_dir():
        raise UserError(f"there is no folder {source!r}: pass the folder of a checkpoint saved by training")
    check_index_is_there(source, folder)
    lacking = [f"{name}/{file}" for name, file in check_folder(folder).items() if "/" not in file]
    if not (folder / "pipeline.py").is_file():
        lacking.append("pipeline.py")
    if lacking:
        raise UserError(
            f"{source!r} does not contain {lacking[0]}, which others need to open it: open it with hf_ddpm and save it "
            "again with save_pretrained"
        )
    return folder


def _facts(folder: Path, metrics: Sequence[str | Path]) -> dict[str, Any]:
    """Return what training measured, if it is recorded, with the figures of `metrics`, without local folders."""
    facts = read_object(folder / FACTS_FILE) if (folder / FACTS_FILE).is_file() else {}
    earlier = facts.get("metrics") or []
    if not isinstance(earlier, list):
        raise UserError(
            f"{folder / FACTS_FILE} has metrics={earlier!r}, which must be a list: restore it, or delete it"
        )
    measured = [entry for file in dict.fromkeys(metrics) for entry in metrics_of(Path(file), folder)]
    index = read_object(folder / INDEX)
    found = {"stock": index["_class_name"] == STOCK_PIPELINE, "guided_by": _guide(folder, index)}
    found["with_discriminator"] = "discriminator" in index
    facts = {**facts, **found, "metrics": [*earlier, *measured]}
    for entry in [facts, *facts["metrics"]]:
        if isinstance(entry, dict) and isinstance(entry.get("data"), str):  # a sentence, which older versions wrote
            del entry["data"]
    return without_places(facts, names_on_the_hub(facts))


def _guide(folder: Path, index: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what the card shows about the classifier that guides a model; None without one, and for a classifier."""
    if GUIDE not in index or kind_of_index(index).network == GUIDE:
        return None
    config = read_object(folder / GUIDE / "config.json")
    return {"class": index[GUIDE][1], **{key: config.get(key) for key in ("num_classes", "id2label")}}


def _files(folder: Path, on_the_hub: Set[str]) -> dict[str, Path | bytes]:
    """Return the files of the folder that are uploaded, by their path in the repository."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    files: dict[str, Path | bytes] = {p.relative_to(folder).as_posix(): p for p in paths}
    files = {name: path for name, path in files.items() if _is_ours(name)}
    configs = [name for name in files if name.endswith(".json") and not name.endswith(".index.json")]
    files |= {name: _config(folder / name, on_the_hub) for name in configs}
    if "recipe.yaml" in files:
        files["recipe.yaml"] = _recipe(folder / "recipe.yaml", on_the_hub)
    for name in files:
        if name.endswith(".safetensors"):
            _check_metadata(folder, name)
    if "samples.png" in files:
        files["samples.png"] = _picture(folder / "samples.png")
    return files


def _records(folder: Path, facts: dict[str, Any]) -> dict[str, bytes]:
    """Return the facts and the model card, which are written for the Hub."""
    kind = kind_of_index(read_object(folder / INDEX))
    try:
        card = render_card(facts, kind, pictured=(folder / "samples.png").is_file())
    except (*WRONG_KIND, ValueError) as error:
        raise UserError(
            f"{folder / FACTS_FILE} is not a file that training wrote ({quoted(error)}): restore it, or delete it"
        ) from error
    return {FACTS_FILE: (json.dumps(facts, indent=2) + "\n").encode(), "README.md": card.encode()}


def _config(file: Path, on_the_hub: Set[str]) -> Path | bytes:
    """Return the file, or its content without the folder that a pipeline or network was loaded from."""
    config = read_object(file)
    clean = without_places(config, on_the_hub)
    return file if clean == config else (json.dumps(clean, indent=2) + "\n").encode()


def _recipe(file: Path, on_the_hub: Set[str]) -> bytes:
    try:
        recipe = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{file} cannot be read as YAML ({quoted(error)}): restore it, or delete it") from error
    return yaml.safe_dump(without_places(recipe, on_the_hub), sort_keys=False).encode()


def _check_metadata(folder: Path, name: str) -> None:
    """Reject weights with more in their header than `save_pretrained` writes: other trainers keep settings there."""
    with safe_open(folder / name, "pt") as weights:
        more = sorted((weights.metadata() or {}).keys() - {"format"})
    if more:
        raise UserError(
            f"{folder / name} has {more[0]!r} in its header, which may contain folders of your machine: load it with "
            "hf_ddpm and save it with save_pretrained in a new folder, or delete this file if it is a variant"
        )


def _picture(file: Path) -> Path | bytes:
    """Return the file, or only its pixels if it has metadata: `hf-ddpm figure` writes its command into its images."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            image.load()
            if not image.info:
                return file
            clean = io.BytesIO()
            image.info = {key: value for key, value in image.info.items() if key == "transparency"}
            image.save(clean, "PNG")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{file} cannot be read as an image ({quoted(error)}): restore it, or delete it") from error
    return clean.getvalue()


def _is_ours(name: str) -> bool:
    parts = {part for kind in KINDS.values() for part in kind.components}  # an earlier push may be of another kind
    patterns = [*UPLOADED, *(f"{part}/{pattern}" for part in parts for pattern in OF_A_COMPONENT)]
    return any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)


def check_private(api: HfApi, repo_id: str, repo_type: str = "model") -> None:
    """Reject a repository that is already public, before anything is uploaded."""
    if not patient(lambda: api.repo_info(repo_id, repo_type=repo_type)).private:
        raise UserError(
            f"{repo_id} is already public, which --private does not change: make it private in its settings, or push "
            "to a new name"
        )


def _is_tag(api: HfApi, repo_id: str, tag: str) -> bool:
    return tag in [ref.name for ref in patient(lambda: api.list_repo_refs(repo_id)).tags]


def _message(facts: Mapping[str, Any]) -> str:
    steps = facts.get("steps")
    return f"{facts.get('name') or 'A checkpoint'}" + (f", step {steps:,}" if isinstance(steps, int) else "")


def _commit(
    api: HfApi, repo_id: str, revision: str, files: Mapping[str, Path | bytes], message: str, create_pr: bool
) -> tuple[str, str | None]:
    """Create one commit that replaces the branch's files of a checkpoint with `files`, on top of its current head.

    Returns:
        tuple: The commit, and the address of the pull request.
    """
    head = patient(lambda: api.model_info(repo_id, revision=revision))
    stale = {file.rfilename for file in head.siblings or [] if _is_ours(file.rfilename)} - files.keys()
    mark = f"hf_ddpm push {uuid.uuid4()}"  # by which this push recognises its commit

    def attempt() -> Any:
        additions = [
            CommitOperationAdd(name, io.BytesIO(content) if isinstance(content, bytes) else content)
            for name, content in files.items()
        ]
        return api.create_commit(
            repo_id,
            [*additions, *(CommitOperationDelete(name) for name in sorted(stale))],
            commit_message=message,
            commit_description=mark,
            revision=revision,
            parent_commit=head.sha,
            create_pr=create_pr,
        )

    try:
        made = patient(attempt)
    except HfHubHTTPError as error:
        if error.response.status_code != 412:
            raise
        last = patient(lambda: api.list_repo_commits(repo_id, revision=revision))[0]
        if mark not in last.message:
            raise
        return last.commit_id, None  # it is ours: the response to the first attempt was lost
    return made.oid, made.pr_url


def _reason(error: HfHubHTTPError) -> str:
    """Return what an error of the Hub means, and what to do."""
    status, said = error.response.status_code, quoted(error.server_message or error)
    if status == 401 and "authorization" not in error.response.request.headers:
        return "the Hub needs a token, and none is set: run `hf auth login`, or set HF_TOKEN to one with write access"
    if status == 401:
        return "the Hub rejects this token: run `hf auth login`, or set HF_TOKEN to one with write access"
    if status == 403:
        return f"this token has no write access there ({said}): use one with the role write, or a repository of yours"
    if status == 404:
        return "the repository or revision does not exist, or this token cannot read it: check the name and HF_TOKEN"
    if status == 412:
        return "somebody else pushed at the same time, so nothing was committed: push again"
    if status in TRANSIENT:
        return (
            f"the Hub is not available (status {status}, {said}): push again later; files that were uploaded are not "
            "sent again"
        )
    return f"the Hub refused the request (status {status}): {said}"
