"""Open a data set by its name: the embedded digits, something on this disk, or a data set of the Hugging Face Hub.

What exists on disk is local; what only looks like a path is a missing path; everything else is a name on the Hub.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hf_ddpm.data.stacked_digits import stack_digits
from hf_ddpm.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

Origin = Literal["package", "local", "url", "hub"]  # what ships with hf_ddpm, on this machine, elsewhere, on the Hub
DIGITS, STACKED_DIGITS = EMBEDDED = ("digits", "stacked-digits")
DIGITS_FILE = Path(__file__).parent / "digits" / "digits.parquet"
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".zip")
_BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"} | dict.fromkeys(
    _IMAGE_SUFFIXES, "imagefolder"
)


def open_source(
    source: str,
    *,
    config_name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    streaming: bool = False,
) -> "Dataset | IterableDataset":
    """Open `source`, which is one of

    - "digits": 5,000 MNIST digits that ship with hf_ddpm (see digits/README.md), no network;
    - "stacked-digits": the same, three of them in the channels of each image;
    - a folder of images (class sub-folders become labels), of parquet or arrow files, or of webdataset tar shards;
    - such files themselves, one or a glob ("shards/*.tar"), as split "train";
    - a folder written by `save_to_disk`;
    - a URL of such files (https://, hf://, s3://...);
    - the name of a data set on the Hub, with its `config_name` and `revision`.

    `split` may be a slice, as in "train[:4500]", except when streaming. Raises `UserError` for what cannot be opened.
    """
    _check_slice(split)
    if source in EMBEDDED or _is_saved_to_disk(source):
        _refuse_hub_options(source, config_name, revision)
        splits = {"train": _embedded(source)} if source in EMBEDDED else _saved_splits(source, split)
        rows = _take_split(splits, split, source)
        return rows.to_iterable_dataset() if streaming else rows
    builder, files = _local_files(source)
    if builder is None:
        return _load(source, source, name=config_name, split=split, revision=revision, streaming=streaming)
    _refuse_hub_options(source, config_name, revision)
    return _load(source, builder, data_files={"train": files}, split=split, streaming=streaming)


def origin_of(source: str) -> Origin:
    """Where a source lies that `open_source` has opened; addresses that begin with hf:// are on the Hub."""
    if source in EMBEDDED:
        return "package"
    if "://" in source:
        return "hub" if source.startswith("hf://") else "url"
    path = Path(source).expanduser()
    return "local" if path.exists() or _glob(path) else "hub"


def names_folders(source: str, dataset: "Dataset | IterableDataset") -> bool:
    """Whether the classes of an opened data set are folders that `datasets` has found, and not declared by the data."""
    return dataset.info.builder_name == "imagefolder" and not _is_saved_to_disk(source)


def _local_files(source: str) -> tuple[str | None, list[str]]:
    """The builder of `datasets` and the files that `source` names; (None, []) for a folder or a name on the Hub."""
    suffix = Path(source).suffix.lower()
    if "://" in source:
        return _BUILDERS.get(suffix), [source]
    path = Path(source).expanduser()
    if path.is_dir():
        return None, []
    files = [path] if path.is_file() else _glob(path)
    if files:
        suffixes = {file.suffix.lower() for file in files}
        builders = {_BUILDERS.get(suffix) for suffix in suffixes}
        if len(builders) > 1 or None in builders:
            raise UserError(
                f"{source!r} names files of type {_listed(suffixes)}; allowed is one kind of {_listed(_BUILDERS)}"
            )
        return builders.pop(), [str(file) for file in files]
    if _looks_like_a_path(source):
        neighbours = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(
            f"the data path {source!r} does not exist: give an existing folder or file, the name of a data set on the "
            f"Hub, or {DIGITS!r}{did_you_mean(path.name, neighbours)}"
        )
    return None, []


def _glob(path: Path) -> list[Path]:
    if not re.search(r"[*?\[]", str(path)):
        return []
    return sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))


def _looks_like_a_path(source: str) -> bool:
    if source.startswith((".", "/", "~", "\\")) or re.search(r"[*?\[\\]|^[A-Za-z]:", source):
        return True
    return Path(source).suffix.lower() in _BUILDERS or (source.count("/") > 1 and not source.startswith("buckets/"))


def _embedded(source: str) -> "Dataset":
    """What ships with hf_ddpm."""
    import datasets
    import numpy as np
    import pyarrow.parquet as pq
    import torch

    digits = datasets.Dataset(datasets.table.InMemoryTable(pq.read_table(DIGITS_FILE)))
    if source == DIGITS:
        return digits
    return stack_digits(torch.from_numpy(np.stack([*map(np.asarray, digits["image"])]))[:, None], seed=0)


def _is_saved_to_disk(source: str) -> bool:
    folder = Path(source).expanduser()
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _saved_splits(source: str, split: str) -> "dict[str, Dataset]":
    """The splits of a `save_to_disk` folder; a data set saved without splits answers to any plain split name."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(Path(source).expanduser()))
    except IndexError as error:  # how `datasets` reads a folder saved without rows
        raise _empty_error(source, split) from error
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"the saved data set {source!r} cannot be read: {_first_line(error)}") from error
    return dict(saved) if isinstance(saved, datasets.DatasetDict) else {re.split(r"\W", split)[0] or "train": saved}


def _take_split(splits: "dict[str, Dataset]", split: str, source: str) -> "Dataset":
    import datasets

    lengths = {name: len(rows) for name, rows in splits.items()}
    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
    except (ValueError, AssertionError) as error:
        raise _split_error(source, split, list(splits)) from error
    chosen = [splits[name].select(rows) for name, rows in _slices(split, parts, lengths) if len(rows)]
    if not chosen:
        raise _empty_error(source, split)
    return datasets.concatenate_datasets(chosen)


def _load(source: str, path: str, *, split: str, **options: Any) -> "Dataset | IterableDataset":
    """`datasets.load_dataset`, with its many errors turned into one sentence."""
    import datasets
    from huggingface_hub.errors import HTTPError  # of the client library that this version of the Hub package uses

    local = Path(path).expanduser()
    try:
        # absolute, or a folder called "parquet" would be taken for a builder
        loaded = datasets.load_dataset(str(local.resolve()) if local.is_dir() else path, split=split, **options)
    except (
        datasets.exceptions.DatasetsError,
        HTTPError,
        OSError,
        ValueError,
        RuntimeError,
        NotImplementedError,
    ) as error:
        available = re.search(r"(?:Should be one of|Available splits:) \[(.*)\]", str(error))
        if available is not None:
            raise _split_error(source, split, re.findall(r"'([^']+)'", available[1])) from error
        if "corresponds to no data" in str(error):
            raise _empty_error(source, split) from error
        raise UserError(_cannot_open(source, local.is_dir(), error)) from error
    if "[" in split:  # `datasets` reads train[3:2] to the end
        lengths = {name: info.num_examples for name, info in loaded.info.splits.items()}
        _slices(split, datasets.ReadInstruction.from_spec(split).to_absolute(lengths), lengths)
    return loaded


def _cannot_open(source: str, is_folder: bool, error: BaseException) -> str:
    reason = _first_line(
        error.__cause__ if type(error).__name__ == "DatasetGenerationError" and error.__cause__ else error
    )
    if is_folder:
        return f"no data set can be read from the folder {source!r}: {reason}; put images, parquet or tar files there"
    if isinstance(error, ConnectionError) or "Couldn't reach" in reason:
        return f"the data set {source!r} is not on this disk and the Hub cannot be reached ({reason}); use a local path"
    return f"the data set {source!r} cannot be opened: {reason}"


def _check_slice(split: str) -> None:
    """Refuse what looks like a slice and is none, before anything is opened."""
    if not re.search(r"[\[\]]", split):
        return
    import datasets

    try:
        datasets.ReadInstruction.from_spec(split)
    except (ValueError, AssertionError) as error:
        raise UserError(
            f"split {split!r} is no slice; write 'train[:5000]', 'train[5000:]', 'train[-5000:]' or 'train[:90%]'"
        ) from error


def _slices(split: str, parts: Sequence[Any], lengths: dict[str, int]) -> list[tuple[str, range]]:
    """Split and rows of each absolute instruction of `split`; `UserError` for one that ends before it begins."""
    slices = []
    for part in parts:
        start, stop = part.from_ or 0, lengths[part.splitname] if part.to is None else part.to
        if stop < start:
            raise UserError(
                f"split {split!r} begins at row {start} and ends before row {stop} of {lengths[part.splitname]}; "
                "write 'train[first:last]' with first below last"
            )
        slices.append((part.splitname, range(start, stop)))
    return slices


def _empty_error(source: str, split: str) -> UserError:
    return UserError(f"the data set {source!r}, split {split!r}, is empty")


def _split_error(source: str, split: str, available: list[str]) -> UserError:
    return UserError(
        f"there is no split {split!r} in {source!r}; available: {_listed(available)}{did_you_mean(split, available)}"
    )


def _refuse_hub_options(source: str, config_name: str | None, revision: str | None) -> None:
    if config_name is not None or revision is not None:
        raise UserError(
            f"config_name and revision choose among data sets on the Hub, but {source!r} is local; leave them out"
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:300]
