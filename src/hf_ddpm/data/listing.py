"""The contents of folders and archives: images, found by their content, their classes and splits, and other files.

Classes are folders. Splits are folders, tables or archives that all have the name of a split, with `train` among them.
No other part of a name has a special meaning.
"""

import functools
import io
import itertools
import lzma
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hf_ddpm.data.metadata import METADATA, metadata_rows
from hf_ddpm.errors import UserError, quoted

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
TABLES = {".parquet": "parquet", ".arrow": "arrow"}
SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
}
LABEL = ".cls"  # of webdataset: the class of the image whose name is the same up to the first dot
_NO_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}  # formats whose pixels Pillow cannot read
_HEAD = 64  # the bytes by which Pillow recognises a format


class File(NamedTuple):
    """A file in a folder or an archive: its relative name, with slashes, and a function that reads its first bytes."""

    name: str
    read: Callable[[int], bytes]


class Entry(NamedTuple):
    """An image: its name, the number of its archive (0 for those of a folder), and the content of its `.cls` file."""

    name: str
    archive: int = 0
    label: str | None = None


class Listing(NamedTuple):
    """The files that were found.

    Attributes:
        images: The images, sorted by archive and name.
        tables: The names of parquet and arrow files.
        archives: The names of archives.
        columns: The values of metadata files for an image, by its archive and name.
        left_out: The number of unused files, by the reason.
    """

    images: list[Entry]
    tables: list[str]
    archives: list[str]
    columns: dict[tuple[int, str], dict[str, Any]]
    left_out: Counter[str]


def list_files(places: Sequence[Iterable[File]]) -> Listing:
    """Classify the files of a folder, or of several archives."""
    found = Listing([], [], [], {}, Counter())
    for number, files in enumerate(places):
        images: list[str] = []
        labels: dict[str, str] = {}
        for file in files:
            suffix, base = suffix_of(file.name), file.name.rpartition("/")[2]
            if _is_hidden(file.name):
                found.left_out["hidden"] += 1
            elif base in METADATA and (rows := metadata_rows(file.name, file.read(-1))) is not None:
                found.columns.update({(number, name): row for name, row in rows.items()})
            elif suffix in TABLES:
                found.tables.append(file.name)
            elif suffix in ARCHIVES:
                found.archives.append(file.name)
            elif suffix == LABEL:
                labels[_key(file.name)] = file.read(1000).decode(errors="replace").strip()
            elif suffix in image_suffixes() or _is_image(file):
                images.append(file.name)
            else:
                found.left_out[f"of type {suffix}" if suffix else "without a suffix"] += 1
        found.images.extend(Entry(name, number, labels.get(_key(name))) for name in sorted(images))
        if unused := labels.keys() - {_key(name) for name in images}:
            found.left_out[f"of type {LABEL} without an image"] += len(unused)
    found.tables.sort()
    found.archives.sort()
    return found


def files_of_folder(folder: Path, left_out: Counter[str]) -> Iterator[File]:
    """Yield every file under a folder; links are followed, and those that cannot be are counted in `left_out`."""
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            left_out["links to a folder that is already listed"] += 1
            continue
        seen.add(real)
        folders.sort()
        for name in sorted(names):
            path = Path(place, name)
            try:
                regular = stat.S_ISREG(path.stat().st_mode)
            except OSError:
                left_out["broken links"] += 1
                continue
            if regular:
                yield File(path.relative_to(folder).as_posix(), functools.partial(_head_of, path))
            else:
                left_out["that are not regular files"] += 1


def named_files(root: Path, paths: Iterable[Path], left_out: Counter[str]) -> Iterator[File]:
    """Yield files that were named one by one, and those of folders among them; `left_out` as in `files_of_folder`."""
    for path in paths:
        if path.is_dir():
            for file in files_of_folder(path, left_out):
                yield file._replace(name=f"{path.relative_to(root).as_posix()}/{file.name}")
        else:
            yield File(path.relative_to(root).as_posix(), functools.partial(_head_of, path))


def files_of_archive(archive: Path) -> Iterator[File]:
    """Yield every file in a zip or tar archive.

    Raises:
        UserError: If the archive cannot be read.
    """
    with reading_archive(archive):
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                for info in opened.infolist():
                    if not info.is_dir():
                        yield File(_clean(info.filename), functools.partial(_extract, archive, opened.open, info))
            return
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile():
                    yield File(_clean(member.name), functools.partial(_extract, archive, tar.extractfile, member))


def read_archive(archive: Path, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yield some of the files in an archive with their contents, in the order of the archive."""
    wanted = {*names}
    for file in files_of_archive(archive):
        if file.name in wanted:
            yield file.name, file.read(-1)


@contextmanager
def reading_archive(archive: Path) -> Iterator[None]:
    """Turn the errors of a damaged archive into one sentence."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError) as error:
        raise UserError(
            f"the archive {str(archive)!r} cannot be read ({quoted(error)}): download it again, or unpack it and "
            "pass the folder"
        ) from error


def suffix_of(name: str) -> str:
    """Return the suffix in lower case; `.tar.gz` and the like are one suffix."""
    base = name.rpartition("/")[2].lower()
    double = re.search(r"\.tar\.(gz|bz2|xz)$", base)
    return double[0] if double else Path(base).suffix


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Return the suffixes of the image files that the installed version of Pillow reads."""
    from PIL import Image

    known = Image.registered_extensions()
    return frozenset(suffix for suffix, name in known.items() if name in Image.OPEN and name not in _NO_PICTURES)


def classes_of(names: Sequence[str], *, below_split: bool = False) -> list[str] | None:
    """Return the class of each image, which is its folder; None if an image has no folder, or all have the same one.

    If all folders have the same depth, the innermost one is the class, otherwise the outermost one.

    Args:
        names: The names of the images.
        below_split: Whether the outermost folder is a split and not a class.
    """
    names = _below_common_folder(names)
    if below_split:
        names = _below_common_folder([name.partition("/")[2] for name in names])
    parts = [name.split("/")[:-1] for name in names]
    depths = {len(folders) for folders in parts}
    if not depths or 0 in depths:
        return None
    return [folders[-1 if len(depths) == 1 else 0] for folders in parts]


def by_split(names: Sequence[str], *, folders: bool) -> list[str]:
    """Return the split of each name, if every name begins with one and `train` is among them; otherwise `train`.

    Args:
        names: The names of images, tables or archives.
        folders: Whether only the outermost folder counts, which images must have; otherwise the name of a file without
            a folder counts too.
    """
    parts = [name.split("/") for name in _below_common_folder(names)]
    words = [
        "" if folders and len(part) == 1 else re.sub(r"(-\d+-of-\d+(-[0-9a-f]{16})?)?(\..*)?$", "", part[0])
        for part in parts
    ]
    splits = [SPLITS.get(word.lower()) for word in words]
    known = [split for split in splits if split is not None]
    return known if len(known) == len(names) and "train" in known else ["train"] * len(names)


def _below_common_folder(names: Sequence[str]) -> list[str]:
    """Return the names relative to the innermost folder that contains all of them."""
    folders = [name.split("/")[:-1] for name in names]
    first, last = min(folders, default=[]), max(folders, default=[])  # what these two have in common, all have
    common = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))))
    return [name.split("/", common)[-1] for name in names]


def _key(name: str) -> str:
    """Return the name up to the first dot of its last part, which is the key of a sample in a webdataset."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.split(".")[0]


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _is_image(file: File) -> bool:
    """Return whether Pillow recognises a file with another suffix by its first bytes."""
    from PIL import Image

    head = file.read(_HEAD)
    if not any(_accepts(accept, head) for _, accept in Image.OPEN.values()):
        return False
    known = [name for name, (_, accept) in Image.OPEN.items() if accept and name not in _NO_PICTURES]
    try:
        with Image.open(io.BytesIO(file.read(2**20)), formats=known):
            return True
    except (OSError, SyntaxError, ValueError, struct.error, IndexError, Image.DecompressionBombError):
        return False


def _accepts(accept: Callable[[bytes], Any] | None, head: bytes) -> bool:
    try:
        return accept is not None and accept(head) is True
    except (IndexError, struct.error):  # the file is too short for this format
        return False


def _head_of(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        said = f"the file {str(path)!r} cannot be read ({error.strerror})"
        raise UserError(f"{said}: make it readable, or move it elsewhere") from error


def _extract(archive: Path, open_member: Callable[[Any], Any], member: Any, size: int) -> bytes:
    """Return the first bytes of a file in an open archive."""
    with reading_archive(archive), open_member(member) as file:
        content: bytes = file.read(size)
    return content


def _clean(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./").lstrip("/")


def _refuse(error: OSError) -> None:
    raise UserError(
        f"the folder {error.filename!r} cannot be read ({error.strerror}): make it readable, or move it elsewhere"
    )
