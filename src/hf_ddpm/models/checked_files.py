"""Files of a checkpoint, in a folder or on the Hub, checked before anything is built of them.

A stranger may have written them. So only JSON and safetensors are fetched and read, never code and never a pickle, and
what would fill the memory is refused in one sentence.
"""

import json
import logging
import os
import re
import reprlib
import time
from collections.abc import Callable, Mapping, Sequence
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from huggingface_hub import get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open

from hf_ddpm.models.config_checks import check_config

T = TypeVar("T")
logger = logging.getLogger(__name__)

HUB_KEYWORDS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
TRANSIENT = (408, 429, 500, 502, 503, 504)
WAITS = (0.5, 1.0, 2.0, 4.0)  # seconds between five attempts
MOST_JSON, MOST_BETAS, MOST_SHARDS = 2**20, 2**25, 2**24  # bytes of a config, of one with a million betas, of an index
MOST_OBJECTS = 10**4  # lists and objects in a file: 64 bytes and more each, whose text has two
DEEPEST = 16  # of lists in lists
MOST_HEADER = 2**24  # bytes; a name, a type and a place for each tensor: 100,000 of them
KINDS_OF_WEIGHTS = ("F64", "F32", "F16", "BF16")
PICKLES_ONLY = (
    "has no safetensors, only pickles, and opening a pickle may run code: ask its author for safetensors, or, if you "
    "trust it, open it once with use_safetensors=False and save it anew"
)


class CheckedFiles:
    """What lies in a folder or in a repository of the Hub, of which files are fetched as they are asked for.

    Args:
        source: the folder, or `user/name`.
        first: the JSON file that must be there.
        subfolder: where in it.
        kwargs: as `from_pretrained` takes them; `HUB_KEYWORDS` say where on the Hub, the rest is not looked at.

    Attributes:
        folder: where the fetched files are.
        names: of all files there, fetched or not, as `unet/config.json`.

    Raises:
        OSError: nothing there, or the Hub does not give it, in one sentence.
    """

    def __init__(self, source: str | os.PathLike | None, first: str, subfolder: str | None = None, **kwargs: Any):
        self._source = str(source or "")
        inside = PurePosixPath(subfolder or ".")
        self._inside = "" if inside == PurePosixPath(".") else f"{inside}/"
        self._fetched: set[str] = set()
        hub = {key: kwargs[key] for key in HUB_KEYWORDS if kwargs.get(key) is not None}
        self._hub = None if os.path.isdir(self._source) else hub
        root = Path(self._source) if self._hub is None else self._downloaded([first])
        if self._hub is not None:
            self._hub["revision"] = root.name  # the commit: what follows is of the same one
        self.folder = root / self._inside
        self.names = self._list_names()
        if first not in self.names:
            raise FileNotFoundError(f"{self.shown(first)} is missing: this is no whole checkpoint")

    def fetch(self, names: Sequence[str]) -> None:
        """Have these files in the folder."""
        if self._hub is not None and not self._fetched.issuperset(names):
            self._downloaded(names)

    def json(self, name: str, most: int = MOST_JSON) -> dict[str, Any]:
        """The JSON object of a file of at most so many bytes.

        Raises:
            ValueError: it holds something else, or more than such a file needs.
            OSError: it is missing.
        """
        where = self.shown(name)
        if name not in self.names:
            raise OSError(f"{where} is missing: restore it from another copy")
        self.fetch([name])
        file = self.folder / name
        if file.stat().st_size > most:
            raise ValueError(f"{where} has {file.stat().st_size} bytes, and {most} are allowed")
        text = file.read_bytes()
        objects = text.count(b"{") + text.count(b"[")
        if objects > MOST_OBJECTS:
            raise ValueError(f"{where} has {objects} lists and objects, and {MOST_OBJECTS} are allowed")
        try:
            found = json.loads(text.decode())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} cannot be read as JSON ({error}): restore it from another copy") from error
        if not isinstance(found, dict):
            raise ValueError(f"{where} holds no JSON object {{...}}: restore it from another copy")
        if _is_deep(found, DEEPEST):
            raise ValueError(f"{where} nests more than {DEEPEST} lists and objects, which no config does")
        return found

    def fetch_network(self, place: str, kind: type, variant: str | None = None, *, pickles: bool = False) -> bool:
        """Fetch and check the config and the weights of a network.

        Args:
            place: its folder, or "" for the root.
            kind: its class, whose constructor says what the config may hold.
            variant: of the weights, if there are such.
            pickles: instead of safetensors; nothing protects from what they do.

        Returns:
            bool: whether the weights are of the variant.

        Raises:
            ValueError, OSError: what is wrong, in one sentence.
        """
        config = f"{place}/config.json".lstrip("/")
        check_config(self.shown(config), kind, self.json(config))
        weights, of_variant = self._weights(place, variant, "bin" if pickles else "safetensors")
        self.fetch(weights)
        for name in weights:
            if name.endswith(".json"):
                self._check_shards(name, weights)
            elif not pickles:
                check_safetensors(self.folder / name, self.shown(name))
        return of_variant

    def shown(self, name: str) -> str:
        """A file as a sentence names it."""
        return f"{self._source.rstrip('/')}/{self._inside}{name}"

    def _weights(self, place: str, variant: str | None, suffix: str) -> tuple[list[str], bool]:
        """The files of the variant, else of the weights that have none; whether they are the variant's."""
        here = {name.rpartition("/")[2]: name for name in self.names if name.rpartition("/")[0] == place}
        for infix in (f".{variant}", "") if variant else ("",):
            shards = rf"diffusion_pytorch_model{re.escape(infix)}(-\d{{5}}-of-\d{{5}})?\.{suffix}"
            index = rf"diffusion_pytorch_model\.{suffix}\.index{re.escape(infix)}\.json"
            found = sorted(here[name] for name in here if re.fullmatch(f"{shards}|{index}", name))
            if found:
                return found, infix != ""
        if suffix == "safetensors" and any(name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl")) for name in here):
            raise ValueError(f"{self.shown(place)} {PICKLES_ONLY}")
        missing = f"{place}/diffusion_pytorch_model.{suffix}".lstrip("/")
        of_others = [re.fullmatch(rf"diffusion_pytorch_model\.(\w+)\.{suffix}", name) for name in sorted(here)]
        variants = "".join(f", or take variant={match[1]!r}" for match in of_others if match)
        raise OSError(f"{self.shown(missing)} is missing: copy it again{variants}")

    def _check_shards(self, index: str, weights: Sequence[str]) -> None:
        """Refuse an index of shards that names other files than these: it could lead out of the folder."""
        found = self.json(index, MOST_SHARDS)
        shards, metadata = found.get("weight_map"), found.get("metadata")
        names = {name.rpartition("/")[2] for name in weights if name != index}
        if not isinstance(metadata, dict) or not isinstance(shards, dict):
            raise ValueError(f"{self.shown(index)} must have weight_map and metadata: copy it again")
        strays = [shard for shard in shards.values() if not isinstance(shard, str) or shard not in names]
        if strays:
            raise ValueError(f"{self.shown(index)} names {reprlib.repr(strays[0])}, which is no shard beside it")

    def _downloaded(self, names: Sequence[str]) -> Path:
        """The folder in the cache, with these files in it; exact names, so that nothing else comes along."""
        wanted = [escape(self._inside + name) for name in names]
        self._fetched |= {*names}
        return Path(_from_hub(self._source, self._hub or {}, wanted))

    def _list_names(self) -> set[str]:
        if self._hub is not None:
            where = {key: self._hub[key] for key in ("revision", "cache_dir") if key in self._hub}
            try:
                paths = [file.path for file in get_cached_repo_tree(self._source, **where)]
                return {p.removeprefix(self._inside) for p in paths if p.startswith(self._inside)}
            except CachedRepoTreeNotFoundError:
                pass  # a cache that another client filled has no list: what is there is there
        paths_here = [*self.folder.glob("*"), *self.folder.glob("*/*")]
        return {path.relative_to(self.folder).as_posix() for path in paths_here if path.is_file()}


def _is_deep(value: Any, levels: int) -> bool:
    inside = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deep(entry, levels - 1) for entry in inside if isinstance(entry, (dict, list)))


def check_safetensors(file: Path, shown: str) -> None:
    """Refuse weights that are cut short, that are no safetensors, or whose header is a lie, before they are mapped."""
    with file.open("rb") as opened:
        header = int.from_bytes(opened.read(8), "little")
    if MOST_HEADER < header <= file.stat().st_size:
        raise ValueError(f"{shown} has a header of {header} bytes, and no network needs more than {MOST_HEADER}")
    try:
        with safe_open(file, "pt") as weights:
            kinds = {name: weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118  # no mapping
    except SafetensorError as error:
        raise ValueError(f"{shown} is cut short or damaged: copy it again ({error})") from error
    for name, kind in kinds.items():
        if kind not in KINDS_OF_WEIGHTS:
            raise ValueError(f"{shown} has {name} of {kind}, allowed are {', '.join(KINDS_OF_WEIGHTS)}")


def _from_hub(repo_id: str, hub: Mapping[str, Any], names: Sequence[str]) -> str:
    """`snapshot_download` of these files, tried again while the Hub is busy.

    Raises:
        OSError: one sentence.
    """
    try:
        return patient(lambda: snapshot_download(repo_id, allow_patterns=[*names], **hub))
    except (OSError, HTTPError, HFValidationError) as error:
        raise OSError(f"{repo_id}: {_reason(error, hub)}") from error


def patient(call: Callable[[], T]) -> T:
    """The result of a call to the Hub, which is made again, later and later, while the Hub is busy or out of reach."""
    for wait in WAITS:
        try:
            return call()
        except (OSError, HTTPError) as error:
            answer = error if isinstance(error, HTTPError) else error.__cause__
            refused = isinstance(answer, HfHubHTTPError) and answer.response.status_code not in TRANSIENT
            if refused or not isinstance(answer, HTTPError):
                raise
            what = f"status {answer.response.status_code}" if isinstance(answer, HfHubHTTPError) else "no connection"
            logger.warning(f"The Hub does not answer ({what}): trying again in {wait:g} s.")
            time.sleep(wait)
    return call()


def _reason(error: Exception, hub: Mapping[str, Any]) -> str:
    """What the Hub's refusal means, and what to do."""
    if isinstance(error, HFValidationError):
        return f"this is no name of a repository, give user/name ({error})"
    if isinstance(error, RevisionNotFoundError):
        return f"there is no revision {hub.get('revision', 'main')!r}: see the branches and tags on its page"
    if isinstance(error, GatedRepoError):
        return "its owner admits readers one by one: ask on its page, then give a token of yours"
    answer = error if isinstance(error, HfHubHTTPError) else error.__cause__
    status = answer.response.status_code if isinstance(answer, HfHubHTTPError) else None
    if status == 401 and not isinstance(error, RepositoryNotFoundError):
        return "the Hub does not know this token: `hf auth login`, set HF_TOKEN to another, or give none"
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403, 404):
        return "there is no such repository, or it is private and this token may not read it: check name and HF_TOKEN"
    if status is not None:
        return f"the Hub is busy or broken (status {status}): try again later, what has arrived is kept"
    said = " ".join(str(error).split())[:200]
    return f"it is not whole in the cache, and the Hub gives nothing: go online, or try again ({said})"
