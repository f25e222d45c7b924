"""Open a dataset by its name: the embedded digits, files on this disk, or a dataset on the Hugging Face Hub.

What exists on this disk is local, what only looks like a path is a missing path, and every other name is on the Hub.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from hf_ddpm.data import hub
from hf_ddpm.data.listing import ARCHIVES, suffix_of
from hf_ddpm.data.local import Images, Tables, image_rows, look, look_into_archive
from hf_ddpm.data.splits import check_slice, empty_error, parts_of, slices, split_error
from hf_ddpm.data.stacked_digits import stack_digits
from hf_ddpm.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset

Origin = Literal["package", "local", "url", "hub"]  # the dataset is in this package, on this disk, at a URL, on the Hub
DIGITS, STACKED_DIGITS = EMBEDDED = ("digits", "stacked-digits")
DIGITS_FILE = Path(__file__).parent / "digits" / "digits.parquet"
_OF_PATHS = (
    *hub.BUILDERS,
    *ARCHIVES,
    ".png",
    ".jpg",
    ".jpeg",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
)


class Opened(NamedTuple):
    """An opened dataset.

    Attributes:
        rows: A `Dataset`, or an `IterableDataset` for a stream.
        of_folders: Whether the classes are folders that were found, and not declared by the data.
        left_out: The number of unused files, by the reason.
        contents: A hash of the data, the same on every machine; None if it requires reading them.
    """

    rows: Any
    of_folders: bool = False
    left_out: Mapping[str, int] = {}
    contents: str | None = None


def open_source(
    source: str,
    *,
    config_name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    streaming: bool = False,
) -> Opened:
    """Open a dataset.

    `source` is one of:

    - "digits": 5,000 MNIST digits that are part of hf_ddpm (see digits/README.md); no network is needed;
    - "stacked-digits": images with three of these digits, one in each channel;
    - a folder of images, of parquet or arrow files, or of zip or tar archives of images, including webdataset shards;
    - such files, one or a pattern ("shards/*.tar");
    - a folder saved by `save_to_disk`, or one whose README.md declares the files of a dataset;
    - a URL of such files (https://, hf://, s3://...);
    - the name of a dataset on the Hub, with its `config_name` and `revision`.

    Images are found by their content, in folders and in archives. Their folders are classes. Folders, tables or
    archives called train, validation and test are splits if there is nothing else beside them; otherwise, everything
    is "train". `split` may be a slice, such as "train[:4500]", except for streams.

    Raises:
        UserError: If the dataset cannot be opened.
    """
    check_slice(split)
    if source in EMBEDDED or _is_saved_to_disk(source):
        _refuse_hub_options(source, config_name, revision)
        splits = {"train": _embedded(source)} if source in EMBEDDED else _saved_splits(source, split)
        rows = _take_split(splits, split, source)
        return Opened(rows.to_iterable_dataset() if streaming else rows)
    if "://" in source:
        _refuse_hub_options(source, config_name, revision)
        suffix = suffix_of(source.partition("?")[0])
        if suffix in ARCHIVES and not (streaming and suffix in hub.BUILDERS):
            return _opened_images(look_into_archive(_download(source)), source, split, streaming)
        files, builder = {"train": [source]}, hub.BUILDERS.get(suffix, "imagefolder")
        return Opened(_load(source, builder, data_files=files, split=split, streaming=streaming))
    path, files_of_pattern = _local_files(source)
    if path is None and config_name is None and hub.undeclared(source, revision):
        return _open_undeclared(source, split, revision, streaming)
    if path is None or (not files_of_pattern and hub.declares_its_data(path / "README.md")):
        rows = _load(source, source, name=config_name, split=split, revision=revision, streaming=streaming)
        return Opened(rows, of_folders=rows.info.builder_name == "imagefolder")
    _refuse_hub_options(source, config_name, revision)
    return _open_found(look(source, path, files_of_pattern), source, split, streaming)


def origin_of(source: str) -> Origin:
    """Return where a source is that `open_source` has opened; addresses that begin with hf:// are on the Hub."""
    if source in EMBEDDED:
        return "package"
    if "://" in source:
        return "hub" if source.startswith("hf://") else "url"
    path = Path(source).expanduser()
    return "local" if path.exists() or _glob(path) else "hub"


def _open_undeclared(source: str, split: str, revision: str | None, streaming: bool) -> Opened:
    """Open a dataset on the Hub like a folder; as a stream without a download where its files allow it."""
    with _opening(source):
        where = hub.addresses(source, revision) if streaming else None
    if where is not None:
        return Opened(_load(source, where.builder, data_files=where.files, split=split, streaming=True))
    with _opening(source):
        folder = hub.download(source, revision)
    return _open_found(look(source, folder, []), source, split, streaming)


def _open_found(found: Tables | Images, source: str, split: str, streaming: bool) -> Opened:
    if isinstance(found, Images):
        return _opened_images(found, source, split, streaming)
    rows = _load(source, found.builder, data_files=found.files, split=split, streaming=streaming)
    return Opened(rows, contents=found.contents)


def _opened_images(images: Images, source: str, split: str, streaming: bool) -> Opened:
    rows, contents = image_rows(images, source, split, streaming=streaming)
    return Opened(rows, images.classes is not None, dict(images.left_out), contents)


def _local_files(source: str) -> tuple[Path | None, list[Path]]:
    """Return a folder; or files and the folder to which their names are relative; or None for a name on the Hub."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path, []
    if path.is_file():
        return path.parent, [path]
    if files := _glob(path):
        return next(parent for parent in path.parents if not _has_pattern(parent)), files
    if _looks_like_a_path(source):
        neighbours = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(
            f"the data path {source!r} does not exist: pass an existing folder or file, the name of a dataset on the "
            f"Hub, or {DIGITS!r}{did_you_mean(path.name, neighbours, path.parent)}"
        )
    return None, []


def _download(url: str) -> Path:
    """Download a file to the cache of `datasets`, and return its path."""
    import datasets

    try:
        return Path(datasets.DownloadManager().download(url))
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise UserError(_cannot_open(url, False, error)) from error


def _glob(path: Path) -> list[Path]:
    if not _has_pattern(path):
        return []
    return sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))


def _has_pattern(path: Path) -> bool:
    return re.search(r"[*?\[]", str(path)) is not None


def _looks_like_a_path(source: str) -> bool:
    if source.startswith((".", "/", "~", "\\")) or re.search(r"[*?\[\\]|^[A-Za-z]:", source):
        return True
    return suffix_of(source) in _OF_PATHS or (source.count("/") > 1 and not source.startswith("buckets/"))


def _embedded(source: str) -> "Dataset":
    """Return a dataset that is part of hf_ddpm."""
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
    """Return the splits of a `save_to_disk` folder; a dataset saved without splits has every split name."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(Path(source).expanduser()))
    except IndexError as error:  # raised by `datasets` for a folder saved without rows
        raise empty_error(source, split) from error
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"the saved dataset {source!r} cannot be read: {_first_line(error)}") from error
    return dict(saved) if isinstance(saved, datasets.DatasetDict) else {re.split(r"\W", split)[0] or "train": saved}


def _take_split(splits: "dict[str, Dataset]", split: str, source: str) -> "Dataset":
    import datasets

    parts = parts_of(split, {name: len(rows) for name, rows in splits.items()}, source)
    return datasets.concatenate_datasets([splits[name].select(rows) for name, rows in parts])


def _load(source: str, path: str, *, split: str, streaming: bool, **options: Any) -> Any:
    """Do what `datasets.load_dataset` does, and turn its errors into one sentence."""
    import datasets

    from hf_ddpm.data.row_groups import read_row_groups

    local = Path(path).expanduser()
    with _opening(source, split=split, is_folder=local.is_dir()):
        # absolute, because `datasets` would take a folder called "parquet" for a builder
        builder = read_row_groups(
            datasets.load_dataset_builder(str(local.resolve()) if local.is_dir() else path, **options)
        )
        if streaming:
            return builder.as_streaming_dataset(split=split)
        builder.download_and_prepare()
        loaded = builder.as_dataset(split=split)
    if "[" in split:  # `datasets` reads train[3:2] to the end
        lengths = {name: info.num_examples for name, info in loaded.info.splits.items()}
        slices(split, datasets.ReadInstruction.from_spec(split).to_absolute(lengths), lengths)
    return loaded


@contextmanager
def _opening(source: str, *, split: str = "train", is_folder: bool = False) -> Iterator[None]:
    """Turn the errors of `datasets` and of the Hub into one sentence."""
    import datasets
    from huggingface_hub.errors import HTTPError  # of the client library that this version of the Hub package uses

    try:
        yield
    except (
        datasets.exceptions.DatasetsError,
        HTTPError,
        OSError,
        ValueError,
        RuntimeError,
        NotImplementedError,
        ImportError,
    ) as error:
        available = re.search(r"(?:Should be one of|Available splits:) \[(.*)\]", str(error))
        if available is not None:
            raise split_error(source, split, re.findall(r"'([^']+)'", available[1])) from error
        if "corresponds to no data" in str(error):
            raise empty_error(source, split) from error
        raise UserError(_cannot_open(source, is_folder, error)) from error


def _cannot_open(source: str, is_folder: bool, error: BaseException) -> str:
    reason = _first_line(
        error.__cause__ if type(error).__name__ == "DatasetGenerationError" and error.__cause__ else error
    )
    if isinstance(error, ImportError) and "://" in source:
        needed = "run pip install aiohttp" if source.startswith("http") else "install the package that it names"
        return f"the address {source!r} cannot be opened ({reason}): {needed}, or download the file"
    if is_folder and hub.declares_its_data(Path(source).expanduser() / "README.md"):
        return (
            f"the files that {source}/README.md declares cannot be opened ({reason}): correct or remove its `configs`"
        )
    if is_folder:
        return f"no dataset can be read from the folder {source!r}: {reason}; put images, parquet or tar files into it"
    if isinstance(error, ConnectionError) or "Couldn't reach" in reason:
        return f"the dataset {source!r} is not on this disk and the Hub cannot be reached ({reason}); pass a local path"
    return f"the dataset {source!r} cannot be opened: {reason}"


def _refuse_hub_options(source: str, config_name: str | None, revision: str | None) -> None:
    if config_name is not None or revision is not None:
        raise UserError(f"config_name and revision are for datasets on the Hub, but {source!r} is not one; remove them")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:300]
