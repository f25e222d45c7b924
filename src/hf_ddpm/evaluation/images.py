"""Images to evaluate, as functions of their indices: samples of a pipeline, reconstructions, or existing images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from hf_ddpm.data import ImageData, to_float
from hf_ddpm.errors import UserError, as_user_error, quoted
from hf_ddpm.sampling import mixed_seed

if TYPE_CHECKING:
    from PIL.Image import Image

NPZ = ".npz"
READ_AT_ONCE = 64


class Pictures(NamedTuple):
    """A batch of images: their pixels, uint8 (b, C, H, W), and their classes, int64 (b,), or None."""

    pixels: Tensor
    labels: Tensor | None


class ImageSource(Protocol):
    """Images accessed by index; an image does not depend on which others are requested with it."""

    @property
    def conditions(self) -> dict[str, Any]:
        """The settings that determine the images, for the record of an evaluation."""

    @property
    def num_images(self) -> int | None:
        """The number of images; None if there is no limit."""

    def pictures(self, indices: range) -> Iterator[Pictures]:
        """Yield the images with the given indices in order, one batch at a time."""


@dataclass(frozen=True)
class Drawn:
    """Samples of a pipeline; image i is determined by the seed and i.

    Attributes:
        pipeline: The pipeline.
        draw: The function that draws samples from this kind of pipeline, see `hf_ddpm.kinds.Kind.draw`.
        seed: The seed of the noise.
        batch_size: The number of images drawn at a time.
        keywords: The keyword arguments of `draw`.
        class_of: A function from an index to its class, for a network with classes; None leaves the choice to `draw`.
        conditions: See `ImageSource`.
    """

    pipeline: Any
    draw: Callable[..., "Iterator[Image]"]
    seed: int
    batch_size: int
    keywords: dict[str, Any] = field(default_factory=dict)
    class_of: Callable[[int], int] | None = None
    conditions: dict[str, Any] = field(default_factory=dict)
    num_images: int | None = None

    def pictures(self, indices: range) -> Iterator[Pictures]:
        """See `ImageSource.pictures`.

        Raises:
            UserError: If the pipeline rejects an argument, or if the weights have diverged.
        """
        for start in range(0, len(indices), self.batch_size):
            part = indices[start : start + self.batch_size]
            labels = None if self.class_of is None else [self.class_of(i) for i in part]
            chosen = {} if labels is None else {"class_labels": labels}
            with as_user_error():
                images = list(
                    self.draw(self.pipeline, part, seed=self.seed, batch_size=len(part), **chosen, **self.keywords)
                )
            yield Pictures(pixels_of(images), None if labels is None else torch.tensor(labels))


@dataclass(frozen=True)
class Reconstructed:
    """Reconstructions of real images by a pipeline: image i is the reconstruction of row `rows[i]` of the data."""

    pipeline: Any
    data: ImageData
    rows: Tensor
    batch_size: int
    conditions: dict[str, Any] = field(default_factory=dict)
    _errors: list[tuple[float, int]] = field(default_factory=list)  # sums of squared errors, and their counts

    @property
    def num_images(self) -> int:
        """The number of rows."""
        return len(self.rows)

    def mean_squared_error(self, accelerator: Accelerator) -> float:
        """Return the mean squared error of pixels in [-1, 1], over the images that all processes have reconstructed."""
        errors = gather_object(list(self._errors))
        return sum(error for error, _ in errors) / sum(count for _, count in errors)

    def pictures(self, indices: range) -> Iterator[Pictures]:
        """See `ImageSource.pictures`."""
        for rows in self.rows[indices.start : indices.stop].split(self.batch_size):
            images = self.data.pixels(rows)
            again = pixels_of(self.pipeline.reconstruct(images, return_dict=False)[0])
            difference = to_float(again) - to_float(images)
            self._errors.append((difference.double().square().sum().item(), difference.numel()))
            yield Pictures(again, None)


class Found:
    """Existing images: any source that `ImageData` opens, or an npz file in the format of guided-diffusion's evaluator.

    They are evaluated as they are: an image whose size differs from that of the first is an error, because resizing it
    would change the numbers.

    Args:
        source: A folder, files, a name on the Hub, or an .npz file with `arr_0`, uint8 (N, H, W, C), and optionally
            `arr_1`, the labels.
        split: The split of a source that `ImageData` opens.
        channels: 1 or 3; None uses the number of channels of the first image.

    Attributes:
        image_size: (H, W).
        channels: 1 or 3.

    Raises:
        UserError: If the source does not exist, contains no images, or contains images of different sizes.
    """

    def __init__(self, source: str, split: str = "train", channels: int | None = None) -> None:
        self._arrays: Tensor | None = None
        self._labels: Tensor | None = None
        self._data: ImageData | None = None
        if Path(source).suffix == NPZ:
            self._arrays, self._labels = _read_npz(Path(source))
            found, *size = self._arrays.shape[1:]
            self.num_images, about = len(self._arrays), {"source": source, "origin": "local", "split": None}
        else:
            first = ImageData(source, split=split, cache="none").facts.first
            if first is None:
                raise UserError(f"{source!r} contains arrays: use image files, parquet of images, or an .npz file")
            size = [first.height, first.width]
            found = 1 if first.mode in ("1", "L", "LA", "I;16", "I") else 3
            self._data = self._open(source, split, (size[0], size[1]), channels or found)
            facts = self._data.facts
            self.num_images = facts.num_images or 0
            about = {"source": facts.source, "origin": facts.origin, "split": facts.split}
        self.image_size, self.channels = (size[0], size[1]), channels or found
        self.conditions: dict[str, Any] = {"images": about, "image_size": list(self.image_size)}

    def pictures(self, indices: range) -> Iterator[Pictures]:
        """See `ImageSource.pictures`."""
        for start in range(0, len(indices), READ_AT_ONCE):
            rows = torch.tensor(indices[start : start + READ_AT_ONCE])
            if self._arrays is not None:
                labels = None if self._labels is None else self._labels[rows]
                yield Pictures(in_channels(self._arrays[rows], self.channels), labels)
            elif self._data is not None:
                yield Pictures(self._data.pixels(rows), self._data.labels(rows))

    def _open(self, source: str, split: str, size: tuple[int, int], channels: int) -> ImageData:
        settings: dict[str, Any] = {
            "split": split,
            "image_size": size,
            "channels": channels,
            "cache": "none",
            "resize": "none",
        }
        try:
            return ImageData(source, label_column="auto", **settings)
        except UserError:  # the source has no labels
            return ImageData(source, **settings)


def class_order(how: str, num_classes: int, seed: int, labels: Tensor | None = None) -> Callable[[int], int]:
    """Return a function from an index i to the class of image i.

    Args:
        how: `in-turn` is i modulo the number of classes; `balanced` is the same, but every `num_classes` consecutive
            images have an order of their own; `data` uses the classes of the real images in a shuffled order.
        num_classes: K, the number of classes.
        seed: The seed of the orders.
        labels: The labels of the real images, for `data`.

    Raises:
        UserError: If `how` is `data` and there are no labels.
    """
    if how == "in-turn":
        return lambda i: i % num_classes
    if how == "balanced":
        return lambda i: _permutation(seed, i // num_classes, num_classes)[i % num_classes]
    if labels is None:
        raise UserError(
            "--labels data needs the labels of real images: pass --data instead of --reference, with --label-column if "
            "the column of labels is not found"
        )
    order = labels[torch.from_numpy(np.random.default_rng(mixed_seed(seed, len(labels))).permutation(len(labels)))]
    return lambda i: int(order[i % len(order)])


def pixels_of(images: "Sequence[Image]") -> Tensor:
    """Convert PIL images with the same mode and size to uint8 (B, C, H, W)."""
    arrays = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(arrays[:, None] if arrays.ndim == 3 else arrays.transpose(0, 3, 1, 2).copy())


def in_channels(pixels: Tensor, channels: int) -> Tensor:
    """Return pixels with `channels` channels: the channel of grey images is repeated or reduced to one.

    Raises:
        UserError: If the images are in colour and one channel is requested.
    """
    if pixels.shape[1] == channels:
        return pixels
    if pixels.shape[1] == 3 and channels == 1:
        if not (pixels == pixels[:, :1]).all():
            raise UserError("the images are in colour and the real ones are grey, so they cannot be compared")
        return pixels[:, :1]
    return pixels.expand(-1, channels, -1, -1)


def _permutation(seed: int, block: int, count: int) -> list[int]:
    order: list[int] = np.random.default_rng(mixed_seed(seed, block, count)).permutation(count).tolist()
    return order


def _read_npz(file: Path) -> tuple[Tensor, Tensor | None]:
    """Read arr_0 as (N, C, H, W), and arr_1, or None if it is missing."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            pixels = arrays["arr_0"]
            labels = arrays["arr_1"] if "arr_1" in arrays.files else None
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{file} does not contain images in arr_0 ({quoted(error)}): use another file") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3) or not len(pixels):
        raise UserError(
            f"arr_0 of {file} is {pixels.dtype} of shape {pixels.shape}, but images must be uint8 of shape "
            "(N, H, W, 3) or (N, H, W, 1): use another file"
        )
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2)), None if labels is None else torch.from_numpy(labels)
