"""Files of a checkpoint, in a folder or on the Hub, checked before anything is built of them.

A stranger may have written them. So only JSON and safetensors are fetched and read, never code and never a pickle, and
what would fill the memory is refused in one sentence.
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
MOST_JSON, MOST_SHARDS = 2**20, 2**24  # bytes of a config, of an index of shards
MOST_NAMES = 2**23  # bytes of an index: the names of 100,000 classes
MOST_BYTES = {"model_index.json": MOST_NAMES, "scheduler_config.json": MOST_BETAS}
PICKLES_ONLY = (
    "has no safetensors, only pickles, and opening a pickle may run code: ask its author for safetensors, or, if you "
    "trust it, open it once with use_safetensors=False and save it anew"
)
_BEING_OPENED: ContextVar[Path | None] = ContextVar("_BEING_OPENED", default=None)


def is_checked(place: str | os.PathLike | None) -> bool:
    """Whether a folder lies in one that was looked at and is being opened: its parts are loaded as they are."""
    folder = _BEING_OPENED.get()
    return folder is not None and place is not None and Path(place).absolute().is_relative_to(folder.absolute())


class CheckedFiles:
    """What lies in a folder or in a repository of the Hub, of which files are fetched as they are asked for.

    Args:
        source: the folder, or `user/name`.
        first: the JSON file that must be there.
        subfolder: where in it.
        kwargs: as `from_pretrained` takes them; `HUB_KEYWORDS` say where on the Hub, the rest is not looked at.

    Attributes:
        source: the folder or the repository, as a string.
        folder: where the fetched files are.
        names: of all files there, fetched or not, as `unet/config.json`.

    Raises:
        OSError: nothing there, or the Hub does not give it, in one sentence.
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
            self._hub["revision"] = root.name  # the commit: what follows is of the same one
        self.folder = root / self._inside
        self.names = self._list_names()
        if first not in self.names:
            raise FileNotFoundError(f"{self.shown(first)} is missing: this is no whole checkpoint")

    def fetch(self, names: Sequence[str]) -> None:
        """Have these files in the folder."""
        if self._hub is not None and not self._fetched.issuperset(names):
            self._downloaded(names)

    def json(self, name: str) -> dict[str, Any]:
        """The JSON object of a file, which is read once.

        Raises:
            ValueError: it holds something else, or more than such a file needs.
            OSError: it is missing.
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
                self.check_header(name)
        return of_variant

    def check_header(self, name: str) -> None:
        """Refuse safetensors whose header is a lie; it is read once."""
        if name not in self._headers:
            check_safetensors(self.folder / name, self.shown(name))
            self._headers.add(name)

    @contextmanager
    def being_opened(self) -> Iterator[None]:
        """While diffusers makes something of these files: nothing looks at them again, what does not fit is refused.

        Raises:
            ValueError: a value that passed the checks and that a class does not take.
        """
        token = _BEING_OPENED.set(self.folder)
        try:
            with wrong_kind_as_value_error(self.source):
                yield
        finally:
            _BEING_OPENED.reset(token)

    def open_network(self, kind: Any, **kwargs: Any) -> Any:
        """The network whose config and weights lie here, checked by `fetch_network`.

        Args:
            kind: its class.
            **kwargs: those of its `from_pretrained`.

        Raises:
            ValueError, OSError: what is wrong, in one sentence.
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
        """A file as a sentence names it."""
        return f"{self.source.rstrip('/')}/{self._inside}{name}"

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
        found = self.json(index)
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
        return Path(from_hub(self.source, self._hub or {}, wanted))

    def _list_names(self) -> set[str]:
        if self._hub is not None:
            where = {key: self._hub[key] for key in ("revision", "cache_dir") if key in self._hub}
            try:
                paths = [file.path for file in get_cached_repo_tree(self.source, **where)]
                return {p.removeprefix(self._inside) for p in paths if p.startswith(self._inside)}
            except CachedRepoTreeNotFoundError:
                pass  # a cache that another client filled has no list: what is there is there
        paths_here = [*self.folder.glob("*"), *self.folder.glob("*/*")]
        return {path.relative_to(self.folder).as_posix() for path in paths_here if path.is_file()}
