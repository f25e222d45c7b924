"""Files of a checkpoint, in a folder or on the Hub, checked before anything is built of them.

A stranger may have written them. So only JSON and safetensors are fetched and read, never code and never a pickle, and
what would fill the memory is refused in one sentence.
"""

import inspect
import json
import os
import re
import reprlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
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

T = TypeVar("T")

HUB_KEYWORDS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
TRANSIENT = (408, 429, 500, 502, 503, 504)
WAITS = (0.5, 1.0, 2.0, 4.0)  # seconds between five attempts
MOST_JSON = 2**26  # bytes; a million betas are 22 MB
MOST_HEADER = 2**24  # bytes; a name, a type and a place for each tensor: 100,000 of them
DEEPEST = 16  # lists in lists
MOST, MOST_ENTRIES = 2**13, 64  # of a whole number in a config, of the entries of a list
BOUNDS = {"layers_per_block": 32, "num_encoder_blocks": 32, "num_decoder_blocks": 32}
BOUNDS |= {"num_train_timesteps": 10**6, "num_class_embeds": 10**5, "hidden_sizes": 2**20}  # HFVAE bounds these too
MAY_BE_ZERO = ("downsample_padding", "freq_shift", "steps_offset", "disable_corrector")
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

    def __init__(self, source: str | os.PathLike, first: str, subfolder: str | None = None, **kwargs: Any) -> None:
        self._source, self._inside = str(source), f"{subfolder}/" if subfolder else ""
        hub = {key: kwargs[key] for key in HUB_KEYWORDS if kwargs.get(key) is not None}
        self._hub = None if os.path.isdir(source) else hub
        root = Path(source) if self._hub is None else self._downloaded([first])
        if self._hub is not None:
            self._hub["revision"] = root.name  # the commit: what follows is of the same one
        self.folder = root / self._inside
        self.names = self._list_names()
        if first not in self.names:
            raise FileNotFoundError(f"{self.shown(first)} is missing: this is no whole checkpoint")

    def fetch(self, names: Sequence[str]) -> None:
        """Have these files in the folder."""
        if self._hub is not None:
            self._downloaded(names)

    def json(self, name: str) -> dict[str, Any]:
        """The JSON object of a file.

        Raises:
            ValueError: it holds something else, or is too long to be a config.
            OSError: it is missing.
        """
        where = self.shown(name)
        if name not in self.names:
            raise OSError(f"{where} is missing: restore it from another copy")
        self.fetch([name])
        file = self.folder / name
        if file.stat().st_size > MOST_JSON:
            raise ValueError(f"{where} has {file.stat().st_size} bytes, and no config needs more than {MOST_JSON}")
        try:
            found = json.loads(file.read_bytes())
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
                _check_safetensors(self.folder / name, self.shown(name))
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
        raise OSError(f"{self.shown(missing)} is missing: copy it again")

    def _check_shards(self, index: str, weights: Sequence[str]) -> None:
        """Refuse an index of shards that names other files than these: it could lead out of the folder."""
        found = self.json(index)
        shards, metadata = found.get("weight_map"), found.get("metadata")
        names = {name.rpartition("/")[2] for name in weights}
        if not isinstance(metadata, dict) or not isinstance(shards, dict):
            raise ValueError(f"{self.shown(index)} must have weight_map and metadata: copy it again")
        strays = [shard for shard in shards.values() if not isinstance(shard, str) or shard not in names]
        if strays:
            raise ValueError(f"{self.shown(index)} names {reprlib.repr(strays[0])}, which is no shard beside it")

    def _downloaded(self, names: Sequence[str]) -> Path:
        """The folder in the cache, with these files in it; exact names, so that nothing else comes along."""
        wanted = [self._inside + name for name in names]
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


def check_config(file: str, kind: type, config: Mapping[str, Any]) -> None:
    """Refuse what `kind` cannot be made of: values of another kind, and sizes that would fill the memory.

    Raises:
        ValueError: the file, the value and what is allowed.
    """
    if config.get("quantization_config") is not None:
        raise ValueError(f"{file} has a quantization_config, which would load further libraries: take the whole model")
    for name, parameter in inspect.signature(kind).parameters.items():
        if name in config and parameter.annotation is not inspect.Parameter.empty:
            _check_value(file, name, config[name], _words(parameter.annotation))


def _words(annotation: object) -> set[str]:
    """What an annotation is made of: `int | tuple[int, ...]` is {"int", "list"}."""
    text = annotation.__name__ if type(annotation) is type else str(annotation)
    names = {"Literal": "str", "Optional": "None", "tuple": "list", "Sequence": "list", "ndarray": "list"}
    names |= {word: word for word in ("int", "float", "bool", "str", "list", "None")}
    text = re.sub(r"'[^']*'", "", text)  # the choices of a Literal
    return {kind for word, kind in names.items() if re.search(rf"\b{word}\b", text)}


def _check_value(file: str, name: str, value: Any, words: set[str]) -> None:
    """Refuse a value of another kind than the words say, or a whole number out of bounds."""
    if isinstance(value, list) and "list" in words:
        longest = BOUNDS["num_train_timesteps"] if name == "trained_betas" else MOST_ENTRIES
        if len(value) > longest:
            raise ValueError(f"{file} has {name} of {len(value)} entries, and {longest} are allowed")
        for entry in value:
            _check_value(file, name, entry, words - {"list", "None"})
        return
    kinds: dict[str, Any] = {"int": int, "float": (int, float), "bool": bool, "str": str, "None": type(None)}
    if words and not any(isinstance(value, kinds[word]) for word in words & kinds.keys()):
        allowed = " or ".join(sorted(words))
        raise ValueError(f"{file} has {name}={reprlib.repr(value)}, which must be {allowed}: mend it")
    least, most = 0 if name in MAY_BE_ZERO else 1, BOUNDS.get(name, MOST)
    if type(value) is int and "float" not in words and not least <= value <= most:
        raise ValueError(f"{file} has {name}={reprlib.repr(value)}, allowed are whole numbers from {least} to {most}")


def _check_safetensors(file: Path, shown: str) -> None:
    """Refuse weights that are cut short, that are no safetensors, or whose header is a lie, before they are mapped."""
    with file.open("rb") as opened:
        header = int.from_bytes(opened.read(8), "little")
    if MOST_HEADER < header <= file.stat().st_size:
        raise ValueError(f"{shown} has a header of {header} bytes, and no network needs more than {MOST_HEADER}")
    try:
        with safe_open(file, "pt"):
            pass
    except SafetensorError as error:
        raise ValueError(f"{shown} is cut short or damaged: copy it again ({error})") from error


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
