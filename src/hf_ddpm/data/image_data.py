"""`ImageData`: images from any source as an endless, exactly resumable stream of float batches."""

import itertools
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hf_ddpm.data.binarize import Binarize, binarization
from hf_ddpm.data.columns import (
    LabelCoder,
    array_dtype,
    classes_without_images,
    find_image_column,
    find_label_column,
    label_candidates,
    label_coder,
    read_column,
)
from hf_ddpm.data.decode import CHANNEL_MODES, MAX_PIXELS, Decoded, ImageDecoder, Undecodable, open_image
from hf_ddpm.data.facts import RECORDED, DataFacts, FirstImage, Kept, describe
from hf_ddpm.data.memory import MemoryStore
from hf_ddpm.data.options import Cache, OnBadImage, at_least, box_of, cache_choice, crop_scale_of, one_of, size_of
from hf_ddpm.data.order import BatchPlan, position_uniforms
from hf_ddpm.data.pixels import to_float
from hf_ddpm.data.raw import RawBatches, to_device, try_decode
from hf_ddpm.data.reading import reading
from hf_ddpm.data.report import Report
from hf_ddpm.data.resize import LARGEST, Resize
from hf_ddpm.data.sources import open_source, origin_of
from hf_ddpm.data.stream import StreamStore
from hf_ddpm.data.workers import WorkerStore
from hf_ddpm.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

_AUTO_CACHE_BYTES = 2**30
Part = Literal["rest", "held_back"]
_PROBED = 10  # the number of images that are tried when the source is opened


class Batch(NamedTuple):
    """One process's part of a training step.

    x_0: float32 (b, C, H, W) in [-1, 1], exactly on the grid of its bit depth. labels: int64 (b,); None without labels.
    indices: int64 (b,), on the CPU: the row that each image came from (in a stream, its position). bit_depth: The bit
    depth of the images, 8 or 16, which defines the number of levels in [-1, 1].
    """

    x_0: Tensor
    labels: Tensor | None
    indices: Tensor
    bit_depth: int = 8

    def part(self, cut: slice) -> "Batch":
        """Return some of the images."""
        labels = None if self.labels is None else self.labels[cut]
        return self._replace(x_0=self.x_0[cut], labels=labels, indices=self.indices[cut])


class ImageData:
    """Images from any source as batches of x_0 in [-1, 1]; the arguments are the `data:` block of a recipe.

    The constructor checks every option, opens the source, reads its columns and all labels, and decodes one image. See
    `open_source` for the sources, `ImageDecoder` for the rules for modes and channels, and `fit` for those for sizes.

    Args:
        source: The name of the dataset, such as a folder, a pattern of files, a URL or a Hub name; see `open_source`.
        config_name: The configuration of a dataset on the Hub.
        split: The split, which may be a slice such as train[:4500].
        revision: The revision of a dataset on the Hub.
        streaming: Whether to read the data in order through a shuffle buffer, for datasets larger than the disk.
        image_size: The model's (H, W), or one number for both.
        channels: The number of channels, 1 for grey, 2 for grey and alpha, 3 for RGB, 4 for RGBA; any number for
            columns of arrays.
        resize: How images are resized; see `fit`.
        crop_box: The box (left, top, right, bottom) in pixels that is cropped before resizing.
        crop_scale: The smallest and largest side of a crop of "random_crop", as fractions of the largest crop that
            fits. (0.8, 1.0) is that of ADM's classifiers; with it, an image with the model's size is cropped and scaled
            up too.
        horizontal_flip: Whether to mirror half of the images, chosen at random.
        binarize: How elements become white at random, with their intensity as the probability; see `binarized`.
            "static" draws once for each image, from binarize_seed and the row number in `split` (so it does not support
            streams and random crops), "dynamic" each time an image is used, from the run's seed. Flips mirror the
            binary image. `bit_depth` remains that of the source, but an element has one bit: Bernoulli nats are those
            of binary images and cannot be compared with those of grey images, and a discretised likelihood would count
            256 levels, of which two occur.
        binarize_seed: The seed of the static draw; unused otherwise.
        image_column: The column with the images, or null to guess it; `facts` and `description` report the guess.
        label_column: The column with the labels, or auto to guess it, or null for no labels. Its type is ClassLabel,
            integer or string. Classes that are folders or strings are numbered in natural order, 2 before 10.
        num_classes: The number of classes, or null to read it from the labels.
        on_bad_image: How to treat an image that cannot be decoded; "error" raises an error, "skip" counts the image and
            uses the next readable one instead.
        cache: Where decoded images are kept, as integers; "none" decodes them each time, in workers, and "auto" is
            "memory" up to 1 GiB. Random crops and streams are never cached.
        num_workers: The number of processes (threads when streaming) that decode what is not cached; 0 decodes in the
            training process.
        shuffle_buffer: The number of stored images of a stream that are shuffled at a time, fewer if they would take up
            more than 256 MiB; 0 keeps the order of the stream.
        max_pixels: The largest number of pixels of an image; larger images are rejected, because they may be made to
            fill the memory.
        max_images: The number of images to use, from the start, or null for all.
        held_back: The number of images to leave out for testing, drawn at random but always the same ones.
        part: The part to use if `held_back` is set, where "rest" are the images that are not held back.

    Raises `UserError`, with a message of one sentence, for everything that the user can fix.
    """

    def __init__(
        self,
        source: str = "digits",
        *,
        config_name: str | None = None,
        split: str = "train",
        revision: str | None = None,
        streaming: bool = False,
        image_size: int | Sequence[int] = 28,
        channels: int = 1,
        resize: Resize = "crop",
        crop_box: Sequence[int] | None = None,
        crop_scale: Sequence[float] = LARGEST,
        horizontal_flip: bool = False,
        binarize: Binarize | None = None,
        binarize_seed: int = 0,
        image_column: str | None = None,
        label_column: str | None = None,
        num_classes: int | None = None,
        on_bad_image: OnBadImage = "error",
        cache: Cache = "auto",
        num_workers: int = 0,
        shuffle_buffer: int = 1000,
        max_pixels: int = MAX_PIXELS,
        max_images: int | None = None,
        held_back: int = 0,
        part: Part = "rest",
    ) -> None:
        self.source, self.config_name, self.split, self.revision = source, config_name, split, revision
        self.streaming = streaming
        self.image_size = size_of(image_size)
        self.channels = at_least("channels", channels, 1)
        self.horizontal_flip = horizontal_flip
        self._report = Report(source, one_of("on_bad_image", on_bad_image, OnBadImage))
        self._num_workers = at_least("num_workers", num_workers, 0)
        self._shuffle_buffer = at_least("shuffle_buffer", shuffle_buffer, 0)
        box = None if crop_box is None else box_of(crop_box)
        self._cache = cache_choice(one_of("cache", cache, Cache), streaming, one_of("resize", resize, Resize))
        scale = crop_scale_of(crop_scale, resize)
        self._binarization = binarization(binarize, binarize_seed, streaming=streaming, resize=resize)
        self._memory: MemoryStore | None = None

        opened = open_source(source, config_name=config_name, split=split, revision=revision, streaming=streaming)
        self._dataset, self._of_folders, self._left_out, self.contents = opened
        self._origin = origin_of(source)
        self._take(max_images)
        self._hold_back(at_least("held_back", held_back, 0), one_of("part", part, Part))
        self._image_column = find_image_column(self._features, image_column)
        self.image_column = self._image_column.name
        self._open_labels(label_column, num_classes)
        at_least("max_pixels", max_pixels, 1)
        self._decoder = ImageDecoder(self.image_size, channels, resize, box, self._array_dtype(), scale, max_pixels)
        self._first = self._probe()

    def batches(
        self,
        *,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> Generator[Batch, None, None]:
        """Return the batches of the steps `start_step`, `start_step` + 1, ... without end, on `device`.

        `batch_size` is the global batch size; this process gets the `rank`-th of `world_size` equal parts. The images,
        order, flips, crops and dynamic binarisation of a step depend only on (seed, step): not on the number of
        processes, caching, workers or the first step of the run. In a stream this is true as long as the source and the
        version of `datasets` stay the same, and resuming reads up to the step again. Raises `UserError` for options
        that do not fit, and at any step for images that cannot be decoded.
        """
        plan = BatchPlan(seed, batch_size, start_step, rank, world_size)
        store = self._store(torch.device(device))
        return self._finished(store.raw_batches(plan), plan, torch.device(device))

    def pixels(self, rows: Tensor) -> Tensor:
        """Return the images of some rows, uint8 (b, C, H, W), as they are stored: not binarised and not mirrored.

        Raises `UserError` for a stream, a 16-bit image, and an image that cannot be decoded.
        """
        if self._rows is None:
            raise UserError(f"{self.source!r} is a stream, whose images are not numbered: set streaming to false")
        found = []
        for row, stored in zip(rows.tolist(), self._rows[rows.tolist()][self.image_column], strict=True):
            decoded = try_decode(self._decoder, stored)
            if isinstance(decoded, Undecodable):
                raise UserError(f"image {row} of {self.source!r} cannot be used: {decoded}")
            if decoded.pixels.dtype != np.uint8:
                raise UserError(f"image {row} of {self.source!r} has 16 bits, but must have 8: convert it first")
            found.append(torch.tensor(decoded.pixels))
        return torch.stack(found)

    def labels(self, rows: Tensor) -> Tensor | None:
        """Return the classes of some rows, int64 (b,); None without labels, and for a stream."""
        return None if self._labels is None else self._labels[rows]

    @property
    def num_images(self) -> int | None:
        """The number of rows in the dataset, including images that cannot be decoded; None for a stream."""
        return None if self._rows is None else len(self._rows)

    @property
    def fingerprint(self) -> str:
        """Identifies the rows of the data and how they become images and classes, for any order of the batches."""
        parts = [self._dataset._fingerprint, self._decoder, self._binarization, *([self._coder] if self._coder else [])]
        return " ".join(map(str, parts))

    @property
    def bit_depth(self) -> int:
        """16 as soon as one 16-bit image was decoded, else 8. Final once the images are cached."""
        return self._report.bit_depth

    @property
    def skipped(self) -> int:
        """The number of undecodable images so far."""
        return len(self._report.bad)

    @property
    def facts(self) -> DataFacts:
        """What was opened and guessed, how images were changed, and what was skipped so far."""
        return DataFacts(
            source=self.source,
            origin=self._origin,
            config_name=self.config_name,
            split=self.split,
            revision=self.revision,
            num_images=self.num_images,
            left_out=self._left_out,
            channels=self.channels,
            image_size=self.image_size,
            bit_depth=self.bit_depth,
            kept=self._kept(),
            num_bytes=self._num_bytes(),
            num_workers=self._num_workers,
            image_column=self._image_column,
            label_column=self._label_column,
            unused_labels=None if self._label_column else next(iter(label_candidates(self._features)), None),
            num_classes=self.num_classes,
            class_names=self.class_names,
            empty=self._empty,
            empty_classes=self._empty_classes,
            in_natural_order=self._coder is not None and self._coder.in_natural_order,
            binarization=self._binarization,
            array_dtype=self._decoder.array_dtype,
            first=self._first,
            brightest=self._report.brightest,
            converted=dict(self._report.notes),
            skipped=self.skipped,
            skipped_images=self._report.skipped_images(),
        )

    @property
    def description(self) -> str:
        """The facts as sentences, for the log."""
        return describe(self.facts)

    def _take(self, max_images: int | None) -> None:
        """Keep the first `max_images`, and reject a dataset without rows or known columns."""
        if max_images is not None:
            self._dataset = self._dataset.take(at_least("max_images", max_images, 1))
        self._rows: Dataset | None = None if self.streaming else self._dataset
        if self._rows is not None and len(self._rows) == 0:
            raise UserError(f"the dataset {self.source!r}, split {self.split!r}, is empty")
        if self._dataset.features is None:
            raise UserError(
                f"the columns of the stream {self.source!r} are unknown until it is read; set streaming to false"
            )
        self._features = self._dataset.features

    def _hold_back(self, count: int, part: Part) -> None:
        """Keep the images that are held back, or the others."""
        if not count:
            if part == "held_back":
                raise UserError("part is 'held_back', but held_back is 0: set held_back to the number of images")
            return
        if self._rows is None:
            raise UserError(
                f"held_back is {count}, but {self.source!r} is a stream, whose images are not numbered: set streaming "
                "to false"
            )
        if count >= len(self._rows):
            raise UserError(
                f"held_back is {count:,}; it must be less than {len(self._rows):,}, the number of images of the "
                f"dataset {self.source!r}, split {self.split!r}"
            )
        order = np.random.default_rng(0).permutation(len(self._rows))
        chosen = order[:count] if part == "held_back" else order[count:]
        self._dataset = self._rows = self._rows.select(np.sort(chosen))

    def _open_labels(self, label_column: str | None, num_classes: int | None) -> None:
        self._label_column = find_label_column(self._features, label_column, self.image_column)
        self.label_column = None if self._label_column is None else self._label_column.name
        self.num_classes: int | None = None
        self.class_names: tuple[str, ...] | None = None
        self._coder: LabelCoder | None = None
        self._labels: Tensor | None = None
        self._empty: int | None = None
        self._empty_classes: tuple[int, ...] = ()
        if num_classes is not None:
            at_least("num_classes", num_classes, 1)
        if self.label_column is None:
            if num_classes is not None:
                raise UserError(f"num_classes is {num_classes}, but there are no labels; set label_column")
            return
        with reading(self.source):
            stored = None if self._rows is None else read_column(self._rows, self.label_column)
        feature = self._features[self.label_column]
        self._coder = label_coder(feature, self.label_column, num_classes, stored, of_folders=self._of_folders)
        self.num_classes, self.class_names = self._coder.num_classes, self._coder.names
        if stored is not None:
            labels = self._coder.encode(stored, range(len(stored)))
            self._labels = torch.from_numpy(labels)
            self._empty, self._empty_classes = classes_without_images(labels, self.num_classes, RECORDED)

    def _array_dtype(self) -> Literal["uint8", "uint16"] | None:
        """Choose how images are read: arrays as they are, files undecoded. Return the type of the arrays."""
        dtype = array_dtype(self._features[self.image_column], self.image_column)
        if dtype is None and self.channels not in CHANNEL_MODES:
            raise UserError(f"channels is {self.channels}; it must be 1, 2, 3 or 4 for image files (L, LA, RGB, RGBA)")
        if type(self._features[self.image_column]).__name__ == "Image":
            from datasets import Image

            self._dataset = self._dataset.cast_column(self.image_column, Image(decode=False))
            self._rows = None if self.streaming else self._dataset
        return dtype

    def _probe(self) -> FirstImage | None:
        """Decode the first readable image; None for arrays. Raises `UserError` if none of the first ten is readable."""
        bad: dict[int, Undecodable] = {}
        with reading(self.source):
            first = list(self._dataset.take(_PROBED))
        for row, record in enumerate(first):
            stored = record[self.image_column]
            decoded = try_decode(self._decoder, stored)
            if isinstance(decoded, Decoded):
                self._report.bit_depth = 16 if decoded.pixels.dtype == np.uint16 else 8
                return self._about(stored, decoded)
            bad[row] = decoded
            self._report.add_bad({row: decoded} if self._rows is not None else {})
        if not bad:
            raise UserError(f"the stream {self.source!r}, split {self.split!r}, is empty")
        raise UserError(f"the first images of {self.source!r} ({len(bad)}) cannot be decoded; the first: {bad[0]}")

    def _about(self, stored: Any, decoded: Decoded) -> FirstImage | None:
        if self._decoder.array_dtype is not None:
            return None
        image, _ = open_image(stored, self._decoder.max_pixels)
        return FirstImage(image.width, image.height, image.mode, decoded.notes)

    def _store(self, device: torch.device) -> MemoryStore | WorkerStore | StreamStore:
        """Return the store of this run's pixels; the cache is filled here, once."""
        column, decoder = self.image_column, self._decoder
        if self._rows is None:
            return StreamStore(self._dataset, column, decoder, self._coder, self._shuffle_buffer, self._num_workers)
        if not self._is_cached():
            return WorkerStore(self._rows, column, decoder, self._labels, self._num_workers, device.type == "cuda")
        if self._memory is None:
            with reading(self.source):
                self._memory = MemoryStore(self._rows, column, decoder, self._labels)
            self._report.bit_depth = 16 if self._memory.pixels.dtype == torch.uint16 else 8
            self._report.brightest = int(self._memory.pixels.numpy().max())
            self._report.notes.update(self._memory.notes)
            self._report.add_bad(self._memory.bad)
        if self._cache == "device":
            self._memory.to(device)
        return self._memory

    def _finished(self, raw_batches: RawBatches, plan: BatchPlan, device: torch.device) -> Generator[Batch, None, None]:
        with closing(raw_batches):  # otherwise workers would remain after an error
            for step in itertools.count(plan.start_step):
                with reading(self.source):
                    raw = next(raw_batches)
                self._report.add(raw)
                x_0 = to_float(to_device(raw.pixels, device))  # (b, C, H, W)
                if self._binarization is not None:  # before the flip, which mirrors the binary image
                    x_0 = self._binarization(x_0, raw.rows, plan, step)
                if self.horizontal_flip:
                    chance = position_uniforms(plan.seed, plan.first_position(step), plan.local_size)[:, 0]
                    mirrored = to_device(torch.from_numpy(chance < 0.5), device)
                    x_0 = torch.where(mirrored[:, None, None, None], x_0.flip(-1), x_0)
                labels = None if raw.labels is None else to_device(raw.labels, device)
                yield Batch(x_0, labels, raw.rows, self.bit_depth)

    def _is_cached(self) -> bool:
        return self._cache in ("memory", "device") or (self._cache == "auto" and self._num_bytes() <= _AUTO_CACHE_BYTES)

    def _num_bytes(self) -> int:
        return (self.num_images or 0) * self.channels * self.image_size[0] * self.image_size[1] * self.bit_depth // 8

    def _kept(self) -> Kept:
        if self.streaming:
            return "streamed"
        if not self._is_cached():
            return "decoded each time"
        return "on the device" if self._cache == "device" else "in memory"
