"""Files of a checkpoint, in a folder or on the Hub, checked before anything is built from them.

They may come from a stranger. Therefore only JSON and safetensors are downloaded and read, never code, and pickles only
if the caller asks for them; whatever would fill the memory is rejected in one sentence.
"""

import os
import re
import reprlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import get_cached_repo_tree
from huggingface_hub.errors import CachedRepoTreeNotFoundError

from hf_ddpm.gate.config_checks import check_config
from hf_ddpm.gate.hub_access import from_hub
from hf_ddpm.gate.weights import check_safetensors, check_weights
from hf_ddpm.schedulers.config_files import MOST_BETAS, read_config, wrong_kind_as_value_error

HUB_KEYWORDS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
MOST_JSON, MOST_SHARDS = 2**20, 2**24  # bytes of a config, and of an index of shards
MOST_NAMES = 2**23  # bytes of a model_index.json with the names of 100,000 classes
MOST_BYTES = {"model_index.json": MOST_NAMES, "scheduler_config.json": MOST_BETAS}
PICKLES_ONLY = "has no safetensors, only pickles, and opening a pickle may run code: ask its author for safetensors"
TRUSTED_PICKLE = " or, if you trust it, load it once with use_safetensors=False and save it again"  # of diffusers
_BEING_OPENED: ContextVar[Path | None] = ContextVar("_BEING_OPENED", default=None)


def is_checked(place: str | os.PathLike | None) -> bool:
    """Return whether a folder is inside the one that is being opened, whose files are already checked."""
    folder = _BEING_OPENED.get()
    return folder is not None and place is not None and Path(place).absolute().is_relative_to(folder.absolute())


class CheckedFiles:
    """The files in a folder or in a repository of the Hub, which are downloaded when they are needed.

    Args:
        source: The folder, or the repository `user/name`.
        first: The JSON file that must exist.
        subfolder: The sub-folder of the files.
        kwargs: Arguments of `from_pretrained`; those of `HUB_KEYWORDS` are used for downloads, and the others ignored.

    Attributes:
        source: The folder or the repository, as a string.
        folder: The local folder of the files.
        names: The names of all files, downloaded or not, such as `unet/config.json`.

    Raises:
        OSError: If there is no such file, or the Hub does not return it, in one sentence.
    """

    def __init__(self, source: str | os.PathLike | None, first: str, subfolder: str | None = None, **kwargs: Any):
        self.source = str(source or "")
        inside = PurePosixPath(subfolder or ".")
        self._inside = "" if inside == PurePosixPath(".") else f"{inside}/"
        self._fetched: set[str] = set()
        self._headers: set[str] = set()
        self._read: dict[str, dict[str, Any]] = {}
        hub = {key: kwargs[key] for key in HUB_KEYWORDS if kwargs.get(key) is not None}
        self._hub = None if os.path.isdir(self.source) else hub
        root = Path(self.source) if self._hub is None else self._downloaded([first])
        if self._hub is not None:
            self._hub["revision"] = root.name  # the commit, so that all files come from the same one
        self.folder = root / self._inside
        self.names = self._list_names()
        if first not in self.names:
            whole = "the checkpoint is incomplete"
            if "model_index.json" in self.names:  # a network is loaded from the folder of a pipeline
                whole = "this is the folder of a pipeline, pass subfolder with the folder of the network in it"
            raise FileNotFoundError(f"{self.shown(first)} is missing: {whole}")

    def fetch(self, names: Sequence[str]) -> None:
        """Download these files into the folder, if they are not there yet."""
        if self._hub is not None and not self._fetched.issuperset(names):
            self._downloaded(names)

    def json(self, name: str) -> dict[str, Any]:
        """Return the JSON object in a file, which is read only once.

        Raises:
            ValueError: If the file contains something else, or more than such a file needs.
            OSError: If the file is missing.
        """
        where = self.shown(name)
        if name not in self.names:
            raise OSError(f"{where} is missing: restore it from another copy")
        self.fetch([name])
        if name not in self._read:
            most = MOST_SHARDS if ".index." in name else MOST_BYTES.get(name.rpartition("/")[2], MOST_JSON)
            self._read[name] = read_config(self.folder / name, most, where)
        return self._read[name]

    def fetch_network(self, place: str, kind: type, variant: str | None = None, *, pickles: bool = False) -> bool:
        """Download and check the config and the weights of a network.

        Args:
            place: The folder of the network, or "" for the root.
            kind: The class of the network, whose constructor determines what the config may contain.
            variant: The variant of the weights, which is used if it exists.
            pickles: Whether to use pickles instead of safetensors; they are not checked and may run code.

        Returns:
            bool: Whether the weights are of the variant.

        Raises:
            ValueError, OSError: If a file is invalid or missing, in one sentence.
        """
        config = f"{place}/config.json".lstrip("/")
        check_config(self.shown(config), kind, self.json(config))
        weights, of_variant = self._weights(place, variant, "bin" if pickles else "safetensors")
        self.fetch(weights)
        for name in weights:
            if name.endswith(".json"):
                self._check_shards(name, weights)
            elif not pickles:
                self.check_header(name)
        return of_variant

    def check_header(self, name: str) -> None:
        """Reject safetensors with an invalid header, which is read only once."""
        if name not in self._headers:
            check_safetensors(self.folder / name, self.shown(name))
            self._headers.add(name)

    @contextmanager
    def being_opened(self) -> Iterator[None]:
        """Mark these files as checked while diffusers builds something from them, so that they are not checked again.

        Raises:
            ValueError: If a class does not accept a value that passed the checks.
        """
        token = _BEING_OPENED.set(self.folder)
        try:
            with wrong_kind_as_value_error(self.source):
                yield
        finally:
            _BEING_OPENED.reset(token)

    def open_network(self, kind: Any, **kwargs: Any) -> Any:
        """Load the network whose config and weights are in this folder, after `fetch_network` has checked them.

        Args:
            kind: The class of the network.
            **kwargs: Arguments of its `from_pretrained`.

        Raises:
            ValueError, OSError: If a file is invalid or missing, in one sentence.
        """
        if kwargs.get("use_safetensors") is None:
            kwargs["use_safetensors"] = True
        self.fetch_network("", kind, kwargs.get("variant"), pickles=not kwargs["use_safetensors"])
        with self.being_opened():
            network = kind.from_pretrained(self.folder, **kwargs)
        check_weights(network)
        network.register_to_config(_name_or_path=self.source)
        return network

    def shown(self, name: str) -> str:
        """Return the name of a file for a message."""
        return f"{self.source.rstrip('/')}/{self._inside}{name}"

    def _weights(self, place: str, variant: str | None, suffix: str) -> tuple[list[str], bool]:
        """Return the files of the weights, of the variant if it exists, and whether they are of the variant."""
        here = {name.rpartition("/")[2]: name for name in self.names if name.rpartition("/")[0] == place}
        for infix in (f".{variant}", "") if variant else ("",):
            shards = rf"diffusion_pytorch_model{re.escape(infix)}(-\d{{5}}-of-\d{{5}})?\.{suffix}"
            index = rf"diffusion_pytorch_model\.{suffix}\.index{re.escape(infix)}\.json"
            found = sorted(here[name] for name in here if re.fullmatch(f"{shards}|{index}", name))
            if found:
                return found, infix != ""
        if suffix == "safetensors" and any(name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl")) for name in here):
            of_diffusers = any(re.fullmatch(r"diffusion_pytorch_model.*\.bin", name) for name in here)
            raise ValueError(f"{self.shown(place)} {PICKLES_ONLY}{TRUSTED_PICKLE if of_diffusers else ''}")
        missing = f"{place}/diffusion_pytorch_model.{suffix}".lstrip("/")
        of_others = [re.fullmatch(rf"diffusion_pytorch_model\.(\w+)\.{suffix}", name) for name in sorted(here)]
        variants = "".join(f", or pass variant={match[1]!r}" for match in of_others if match)
        raise OSError(f"{self.shown(missing)} is missing: restore it from another copy{variants}")

    def _check_shards(self, index: str, weights: Sequence[str]) -> None:
        """Reject an index of shards that names other files than these, which could be outside of the folder."""
        found = self.json(index)
        shards, metadata = found.get("weight_map"), found.get("metadata")
        names = {name.rpartition("/")[2] for name in weights if name != index}
        if not isinstance(metadata, dict) or not isinstance(shards, dict):
            raise ValueError(f"{self.shown(index)} must have weight_map and metadata: restore it from another copy")
        strays = [shard for shard in shards.values() if not isinstance(shard, str) or shard not in names]
        if strays:
            raise ValueError(f"{self.shown(index)} names {reprlib.repr(strays[0])}, which is not a shard in its folder")

    def _downloaded(self, names: Sequence[str]) -> Path:
        """Download exactly these files, and return their folder in the cache."""
        wanted = [escape(self._inside + name) for name in names]
        self._fetched |= {*names}
        return Path(from_hub(self.source, self._hub or {}, wanted))

    def _list_names(self) -> set[str]:
        if self._hub is not None:
            where = {key: self._hub[key] for key in ("revision", "cache_dir") if key in self._hub}
            try:
                paths = [file.path for file in get_cached_repo_tree(self.source, **where)]
                return {p.removeprefix(self._inside) for p in paths if p.startswith(self._inside)}
            except CachedRepoTreeNotFoundError:
                pass  # a cache that another client filled has no list, so the folder is listed
        paths_here = [*self.folder.glob("*"), *self.folder.glob("*/*")]
        return {path.relative_to(self.folder).as_posix() for path in paths_here if path.is_file()}
