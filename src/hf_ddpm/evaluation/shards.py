"""Keep images in a folder as files of index ranges, so that an interrupted command can continue where it stopped.

Each file is written completely or not at all. The settings that determine the images are stored beside them, and a
folder of other images is an error.
"""

import io
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from hf_ddpm.checkpoint import new_file, read_object, writing
from hf_ddpm.errors import UserError, quoted
from hf_ddpm.evaluation.images import Drawn, Pictures, in_channels, pixels_of
from hf_ddpm.figures.grid import pil_images
from hf_ddpm.sampling import IMAGE_NAME

Format = Literal["png", "npz", "parquet"]
CONDITIONS = "conditions.json"
SHARD_NAME = "shard"  # the prefix of files with one range of indices


@dataclass(frozen=True)
class Kept:
    """Images of a source, which are read from a folder if they are there, and otherwise drawn and written.

    Attributes:
        source: The source of the images.
        folder: The folder, with one file for each image (png) or for each range of indices (npz, parquet).
        format: The file format. An npz file contains arr_0, uint8 (n, H, W, 3), and arr_1, the classes, if there are
            any; a parquet file has the columns index, image and label.
    """

    source: Drawn
    folder: Path
    format: Format

    @property
    def conditions(self) -> dict[str, Any]:
        """The conditions of the source, which do not depend on the folder."""
        return self.source.conditions

    @property
    def num_images(self) -> int | None:
        """The number of images of the source."""
        return self.source.num_images

    def pictures(self, indices: range) -> Iterator[Pictures]:
        """Yield the images of one range of indices, all at once."""
        found = self._read(indices)
        if found is None:
            parts = list(self.source.pictures(indices))
            labels = None if parts[0].labels is None else torch.cat([p.labels for p in parts if p.labels is not None])
            found = Pictures(torch.cat([part.pixels for part in parts]), labels)
            with writing(self.folder):
                self._write(indices, found)
        yield found

    def _read(self, indices: range) -> Pictures | None:
        """Read the images, or return None if they are missing; a range that is longer than requested is cut."""
        if self.format == "png":
            files = [self.folder / IMAGE_NAME.format(i) for i in indices]
            if not all(file.is_file() for file in files):
                return None
            return Pictures(_read_png(files), self._labels(indices))
        for file in self.folder.glob(f"{SHARD_NAME}-{indices.start:07d}-*.{self.format}"):
            if _end_of(file) >= indices.stop:
                read = _read_npz if self.format == "npz" else _read_parquet
                pixels = in_channels(read(file)[: len(indices)], self.conditions["channels"])
                return Pictures(pixels, self._labels(indices))
        return None

    def _labels(self, indices: range) -> Tensor | None:
        class_of = self.source.class_of
        return None if class_of is None else torch.tensor([class_of(i) for i in indices])

    def _write(self, indices: range, pictures: Pictures) -> None:
        if self.format == "png":
            for i, image in zip(indices, pil_images(pictures.pixels), strict=True):
                with new_file(self.folder / IMAGE_NAME.format(i)) as file:
                    image.save(file, "PNG")
            return
        write = _write_npz if self.format == "npz" else _write_parquet
        final = self.folder / f"{SHARD_NAME}-{indices.start:07d}-{indices.stop:07d}.{self.format}"
        with new_file(final) as file:
            write(file, indices, pictures)
        for file in self.folder.glob(f"{SHARD_NAME}-{indices.start:07d}-*.{self.format}"):
            if _end_of(file) < indices.stop:  # a shorter range, of an evaluation with fewer images
                file.unlink()


def keep(source: Drawn, folder: Path, format: Format, accelerator: Accelerator) -> Kept:
    """Return the source with its images kept in a folder; the main process writes the conditions.

    Raises:
        UserError: If the folder contains other images, or something else.
    """
    conditions = json.loads(json.dumps(source.conditions | {"format": format}))
    file = folder / CONDITIONS
    if file.is_file():
        before = read_object(file, "use another folder")
        for key in sorted({*before, *conditions}):
            if before.get(key) != conditions.get(key):
                raise UserError(
                    f"the images in --samples {folder} were made with {key}={before.get(key)!r}, but "
                    f"{conditions.get(key)!r} is requested: use another folder, or the same options"
                )
    elif folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"the folder --samples {folder} is not empty and has no {CONDITIONS}: use a new folder")
    accelerator.wait_for_everyone()  # every process has checked the folder
    if accelerator.is_main_process and not file.is_file():
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with new_file(file) as new:
                new.write_text(json.dumps(conditions, indent=2) + "\n")
    accelerator.wait_for_everyone()
    return Kept(source, folder, format)


def join_npz(folder: Path, num_images: int) -> Path:
    """Join the npz files of all ranges into one npz file, in the format of guided-diffusion's evaluator.

    Returns:
        Path: The file `samples_<N>x<H>x<W>x3.npz` in the folder.
    """
    shards = sorted(folder.glob(f"{SHARD_NAME}-*.npz"))
    height, width = _read_npz(shards[0]).shape[2:]
    final = folder / f"samples_{num_images}x{height}x{width}x3.npz"

    with writing(final), new_file(final) as new:
        _join(shards, new, (num_images, height, width, 3))
    return final


def _join(shards: list[Path], new: Path, shape: tuple[int, int, int, int]) -> None:
    with zipfile.ZipFile(new, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        labelled, left = True, shape[0]
        with archive.open("arr_0.npy", "w", force_zip64=True) as array:  # in parts: all images may not fit in memory
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(array, header)
            for shard in shards:
                with np.load(shard, allow_pickle=False) as arrays:
                    images = arrays["arr_0"][:left]
                    array.write(np.ascontiguousarray(images).tobytes())
                    left -= len(images)
                    labelled = labelled and "arr_1" in arrays.files
        if labelled:
            labels = np.concatenate([np.load(shard, allow_pickle=False)["arr_1"] for shard in shards])[: shape[0]]
            with archive.open("arr_1.npy", "w") as array:
                np.lib.format.write_array(array, labels, allow_pickle=False)


def _end_of(file: Path) -> int:
    return int(file.stem.rpartition("-")[2])


def _read_png(files: list[Path]) -> Tensor:
    images = []
    for file in files:
        with _damaged(file), Image.open(file) as image:
            image.load()
            images.append(image)
    return pixels_of(images)


def _write_npz(file: Path, indices: range, pictures: Pictures) -> None:
    arrays: dict[str, Any] = {"arr_0": pictures.pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()}
    arrays |= {} if pictures.labels is None else {"arr_1": pictures.labels.numpy()}
    with file.open("wb") as opened:
        np.savez(opened, **arrays)


def _read_npz(file: Path) -> Tensor:
    with _damaged(file), np.load(file, allow_pickle=False) as arrays:
        return torch.from_numpy(arrays["arr_0"].transpose(0, 3, 1, 2).copy())


def _write_parquet(file: Path, indices: range, pictures: Pictures) -> None:
    import datasets
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {"index": list(indices), "image": pil_images(pictures.pixels)}
    columns |= {} if pictures.labels is None else {"label": pictures.labels.tolist()}
    rows = datasets.Dataset.from_dict(columns)
    pq.write_table(rows.data.table.cast(rows.features.arrow_schema), file)  # the schema marks the column as images


def _read_parquet(file: Path) -> Tensor:
    import pyarrow.parquet as pq

    with _damaged(file):
        stored = pq.read_table(file, columns=["image"]).column("image").to_pylist()
        return pixels_of([Image.open(io.BytesIO(one["bytes"])) for one in stored])


@contextmanager
def _damaged(file: Path) -> Iterator[None]:
    """Raise a UserError if a file cannot be read in the block."""
    try:
        yield
    except (OSError, SyntaxError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} is damaged ({quoted(error)}): delete it and run the command again") from error
