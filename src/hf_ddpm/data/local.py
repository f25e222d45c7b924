"""Image files on this disk, in folders or archives, as a dataset of `datasets` with one row for each file.

`datasets` receives the files one by one with their classes, and does not guess anything from their names.
"""

import glob
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_ddpm.data.columns import natural_order
from hf_ddpm.data.listing import (
    TABLES,
    Entry,
    Listing,
    by_split,
    classes_of,
    files_of_archive,
    files_of_folder,
    list_files,
    named_files,
    read_archive,
    suffix_of,
)
from hf_ddpm.data.splits import parts_of
from hf_ddpm.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset, Features

KnownFile = tuple[str, int, int]  # its path, size and modification time, which identify it in a cache


class Tables(NamedTuple):
    """Parquet or arrow files: the name of their format in `datasets`, the files of each split, and a hash of them."""

    builder: str
    files: dict[str, list[str]]
    contents: str


class Images(NamedTuple):
    """Image files.

    Attributes:
        entries: The images, by split.
        classes: The class of each image, which is its folder; None without folders.
        columns: The values of metadata files.
        root: The folder of the files; None for archives.
        archives: The archives that contain the images.
        left_out: The number of unused files, by the reason.
    """

    entries: dict[str, list[Entry]]
    classes: dict[Entry, str] | None
    columns: Mapping[tuple[int, str], Mapping[str, Any]]
    root: Path | None
    archives: list[Path]
    left_out: Counter[str]


def look(source: str, path: Path, files: Sequence[Path]) -> Tables | Images:
    """Return the images or tables in a folder, or among some files.

    Args:
        source: The name that the user gave.
        path: The folder; or the folder to which the names of the files are relative.
        files: The files; empty for a folder.

    Raises:
        UserError: If there are no images, or images in more than one form.
    """
    left_out: Counter[str] = Counter()
    listing = list_files([named_files(path, files, left_out) if files else files_of_folder(path, left_out)])
    listing.left_out.update(left_out)
    tables = {kind: [name for name in listing.tables if suffix_of(name) == suffix] for suffix, kind in TABLES.items()}
    names: dict[str, list[str]] = {
        "image": [entry.name for entry in listing.images],
        **tables,
        "archive": listing.archives,
    }
    kinds = {kind: found for kind, found in names.items() if found}
    if not kinds:
        raise _nothing(source, listing)
    if len(kinds) > 1:
        raise _several(source, kinds)
    if listing.images:
        return _images(listing, path, [])
    if listing.archives:
        return _of_archives([path / name for name in listing.archives], listing.left_out)
    (builder,) = kinds
    splits: dict[str, list[str]] = {}
    for name, split in zip(listing.tables, by_split(listing.tables, folders=False), strict=True):
        splits.setdefault(split, []).append(glob.escape(str((path / name).absolute())))
    return Tables(builder, splits, contents_of([known(path / name) for name in listing.tables]))


def look_into_archive(archive: Path) -> Images:
    """Return the images in one archive, whatever its name is."""
    return _of_archives([archive], Counter())


def image_rows(images: Images, source: str, split: str, *, streaming: bool) -> tuple[Any, str]:
    """Return the dataset of a split, a `Dataset` or an `IterableDataset`, and a hash of its files without their folder.

    It has a column `image`, and may have `label`, `cls` and the columns of metadata files.

    Raises:
        UserError: If the split does not exist, or an archive cannot be read.
    """
    parts = parts_of(split, {name: len(entries) for name, entries in images.entries.items()}, source)
    chosen = [images.entries[name][row] for name, rows in parts for row in rows]
    for name, entries in images.entries.items():
        if name not in dict(parts):
            images.left_out[f"of split {name!r}"] += len(entries)
    columns, features = _columns(images, chosen)
    if images.classes is not None:
        import datasets

        names = sorted({*images.classes.values()}, key=natural_order)
        number = {name: k for k, name in enumerate(names)}
        columns.setdefault("label", [number[images.classes[entry]] for entry in chosen])
        features.setdefault("label", datasets.ClassLabel(names=names))
    if images.root is None:
        files = [known(path) for path in images.archives]
        rows: Any = _archived_rows(files, chosen, columns, features, streaming=streaming)
        return rows, contents_of(files, chosen)
    files = [known(images.root.absolute() / entry.name) for entry in chosen]
    rows = _loose_rows(files, columns, features)
    return rows.to_iterable_dataset() if streaming else rows, contents_of(files, chosen)


def known(path: Path) -> KnownFile:
    """Return the path, size and modification time of a file."""
    state = path.stat()
    return str(path), state.st_size, state.st_mtime_ns


def contents_of(files: Sequence[KnownFile], names: Sequence[Any] = ()) -> str:
    """Return a hash of the names and sizes of files, which does not depend on their folder."""
    from datasets.fingerprint import Hasher

    told: str = Hasher.hash((list(names), [(Path(path).name, size) for path, size, _ in files]))
    return told


def _images(listing: Listing, root: Path | None, archives: list[Path], splits: Sequence[str] = ()) -> Images:
    """Return the listed images by split, with their classes."""
    names = [entry.name for entry in listing.images]
    in_folders = not splits
    splits = splits or by_split(names, folders=True)
    classes = classes_of(names, below_split=in_folders and len({*splits}) > 1)
    entries: dict[str, list[Entry]] = {}
    for entry, split in zip(listing.images, splits, strict=True):
        entries.setdefault(split, []).append(entry)
    labels = None if classes is None else dict(zip(listing.images, classes, strict=True))
    return Images(entries, labels, listing.columns, root, archives, listing.left_out)


def _of_archives(archives: list[Path], left_out: Counter[str]) -> Images:
    """Return the images in archives; each archive may be a split."""
    listing = list_files([files_of_archive(archive) for archive in archives])
    listing.left_out.update(left_out)
    if inner := len(listing.tables) + len(listing.archives):
        listing.left_out["of data inside an archive, which must be unpacked first"] += inner
    if not listing.images:
        raise _nothing(", ".join(map(str, archives)), listing)
    of_archive = by_split([archive.name for archive in archives], folders=False)
    splits = [of_archive[entry.archive] for entry in listing.images] if len({*of_archive}) > 1 else []
    return _images(listing, None, archives, splits)


def _columns(images: Images, chosen: Sequence[Entry]) -> "tuple[dict[str, list[Any]], Features]":
    """Return the values of `.cls` and metadata files for each image, and the types of all columns."""
    import datasets
    import pyarrow as pa

    found: dict[str, list[Any]] = {}
    if any(entry.label is not None for entry in chosen):
        found["cls"] = _numbers([entry.label for entry in chosen])
    said = [images.columns.get((entry.archive, entry.name), {}) for entry in chosen]
    for name in dict.fromkeys(name for row in said for name in row if name != "image"):
        found[name] = [row.get(name) for row in said]
    features = datasets.Features({"image": datasets.Image()})
    for name, values in found.items():
        try:
            features |= datasets.Dataset.from_dict({name: values}).features
        except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as error:
            raise UserError(f"the metadata column {name!r} has values of different types: use one type") from error
    return found, datasets.Features(features)


def _numbers(labels: list[str | None]) -> list[Any]:
    """Return the labels as integers if all of them are, otherwise as strings."""
    try:
        return [None if label is None else int(label) for label in labels]
    except ValueError:
        return list(labels)


def _loose_rows(files: Sequence[KnownFile], columns: dict[str, list[Any]], features: "Features") -> "Dataset":
    """Return a dataset that contains the paths of files."""
    import datasets
    from datasets.fingerprint import Hasher

    rows = datasets.Dataset.from_dict({"image": [path for path, _, _ in files], **columns}, features=features)
    rows._fingerprint = Hasher.hash((list(files), columns))  # which changes with the files
    return rows


def _archived_rows(
    archives: Sequence[KnownFile],
    chosen: Sequence[Entry],
    columns: dict[str, list[Any]],
    features: "Features",
    *,
    streaming: bool,
) -> Any:
    """Return a dataset that contains the contents of files; a `Dataset` copies them to the cache of `datasets` once."""
    import datasets
    import numpy as np

    keywords: dict[str, Any] = {"archives": tuple(archives), "chosen": tuple(chosen)}  # `datasets` shards lists
    keywords["columns"] = {name: tuple(values) for name, values in columns.items()}
    if streaming:
        return datasets.IterableDataset.from_generator(_archived, features=features, gen_kwargs=keywords)
    numbered = datasets.Features({**features, "row": datasets.Value("int64")})
    rows = datasets.Dataset.from_generator(_archived, features=numbered, gen_kwargs=keywords | {"numbered": True})
    order = np.argsort(np.asarray(rows["row"][:]))
    return rows.select(order).remove_columns("row")


def _archived(
    archives: Sequence[KnownFile],
    chosen: Sequence[Entry],
    columns: Mapping[str, Sequence[Any]],
    numbered: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of images in archives, in the order of the archives."""
    rows = {(entry.archive, entry.name): row for row, entry in enumerate(chosen)}
    for number, (path, _, _) in enumerate(archives):
        names = [entry.name for entry in chosen if entry.archive == number]
        for name, content in read_archive(Path(path), names):
            if (row := rows.pop((number, name), None)) is not None:  # the first of two files with the same name
                yield {
                    "image": {"bytes": content, "path": name},
                    **{column: values[row] for column, values in columns.items()},
                    **({"row": row} if numbered else {}),
                }


def _nothing(source: str, listing: Listing) -> UserError:
    other = ", ".join(f"{count:,} {what}" for what, count in sorted(listing.left_out.items()))
    holds = f"it contains only other files: {other}" if other else "it is empty"
    return UserError(
        f"no images were found in {source!r} ({holds}): pass a folder, a file or an archive of images, or parquet or "
        "arrow files that contain them"
    )


def _several(source: str, kinds: Mapping[str, Sequence[str]]) -> UserError:
    found = " and ".join(f"{len(names):,} {kind} file(s)" for kind, names in kinds.items())
    name = [*kinds.values()][-1][0]
    pattern = f"{glob.escape(source.rstrip('/'))}/**/*{name[len(name) - len(suffix_of(name)) :]}"
    select = f"select them by a pattern, such as {pattern!r}, or " if Path(source).expanduser().is_dir() else ""
    return UserError(
        f"{source!r} contains {found}, but a dataset has only one kind of files: {select}pass a folder that contains "
        "only one kind"
    )
