"""Images to be scored, as functions of their indices: drawn from a pipeline, reconstructed, or made by someone else."""

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
    """Some images: pixels uint8 (b, C, H, W), and the class that each was asked for, int64 (b,), or None."""

    pixels: Tensor
    labels: Tensor | None


class ImageSource(Protocol):
    """Images by their indices, the same whatever is asked for together."""

    @property
    def conditions(self) -> dict[str, Any]:
        """What fixes them, for a number's record."""

    @property
    def num_images(self) -> int | None:
        """How many there are; None for as many as are asked for."""

    def pictures(self, indices: range) -> Iterator[Pictures]:
        """The images of some indices, in their order, a batch at a time."""


@dataclass(frozen=True)
class Drawn:
    """Samples of a pipeline; image i is fixed by the seed and i.

    Attributes:
        pipeline: What draws.
        draw: The function of its kind, see `hf_ddpm.kinds.Kind.draw`.
        seed: Of the noise.
        batch_size: Images at a time.
        keywords: Of `draw`.
        class_of: The class of an index, for a network with classes; None leaves it to `draw`.
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
        """As `ImageSource` says.

        Raises:
            UserError: what a call refuses, and weights that have diverged.
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
    """What a pipeline makes of real images: image i is the reconstruction of row `rows[i]` of the data."""

    pipeline: Any
    data: ImageData
    rows: Tensor
    batch_size: int
    conditions: dict[str, Any] = field(default_factory=dict)
    _errors: list[tuple[float, int]] = field(default_factory=list)  # sums of squares in [-1, 1]^2, and of how many

    @property
    def num_images(self) -> int:
        """As many as there are rows."""
        return len(self.rows)

    def mean_squared_error(self, accelerator: Accelerator) -> float:
        """Of the pixels in [-1, 1], over the images that all processes have made."""
        errors = gather_object(list(self._errors))
        return sum(error for error, _ in errors) / sum(count for _, count in errors)

    def pictures(self, indices: range) -> Iterator[Pictures]:
        """As `ImageSource` says."""
        for rows in self.rows[indices.start : indices.stop].split(self.batch_size):
            images = self.data.pixels(rows)
            again = pixels_of(self.pipeline.reconstruct(images, return_dict=False)[0])
            difference = to_float(again) - to_float(images)
            self._errors.append((difference.double().square().sum().item(), difference.numel()))
            yield Pictures(again, None)


class Found:
    """Images that someone else made: what `ImageData` opens, or the npz that guided-diffusion's evaluator reads.

    They are scored as they are: an image of another size than the first is refused, for resizing it would change the
    number.

    Args:
        source: A folder, files, a name on the Hub, or an .npz whose arr_0 is uint8 (N, H, W, C), arr_1 their labels.
        split: Of what `ImageData` opens.
        channels: 1 or 3; None takes those of the first image.

    Attributes:
        image_size: (H, W).
        channels: 1 or 3.

    Raises:
        UserError: nothing there, no images, or images of several sizes.
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
                raise UserError(f"{source!r} holds arrays: give image files, parquet of images, or an .npz")
            size = [first.height, first.width]
            found = 1 if first.mode in ("1", "L", "LA", "I;16", "I") else 3
            self._data = self._open(source, split, (size[0], size[1]), channels or found)
            facts = self._data.facts
            self.num_images = facts.num_images or 0
            about = {"source": facts.source, "origin": facts.origin, "split": facts.split}
        self.image_size, self.channels = (size[0], size[1]), channels or found
        self.conditions: dict[str, Any] = {"images": about, "image_size": list(self.image_size)}

    def pictures(self, indices: range) -> Iterator[Pictures]:
        """As `ImageSource` says."""
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
        except UserError:  # without labels
            return ImageData(source, **settings)


def class_order(how: str, num_classes: int, seed: int, labels: Tensor | None = None) -> Callable[[int], int]:
    """Which class image i is drawn of.

    Args:
        how: `in-turn` is i modulo the number of classes; `balanced` the same with every run of `num_classes` images
            in an order of its own; `data` takes the classes of real images in a shuffled order.
        num_classes: K.
        seed: Of the orders.
        labels: Of the real images, for `data`.

    Raises:
        UserError: `data` without labels.
    """
    if how == "in-turn":
        return lambda i: i % num_classes
    if how == "balanced":
        return lambda i: _permutation(seed, i // num_classes, num_classes)[i % num_classes]
    if labels is None:
        raise UserError("--labels data: the data has no labels, name their column with --label-column")
    order = labels[torch.from_numpy(np.random.default_rng(mixed_seed(seed, len(labels))).permutation(len(labels)))]
    return lambda i: int(order[i % len(order)])


def pixels_of(images: "Sequence[Image]") -> Tensor:
    """PIL images of one mode and size as uint8 (B, C, H, W)."""
    arrays = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(arrays[:, None] if arrays.ndim == 3 else arrays.transpose(0, 3, 1, 2).copy())


def in_channels(pixels: Tensor, channels: int) -> Tensor:
    """Grey pixels with their channel repeated, where three are wanted.

    Raises:
        UserError: colours where one channel is wanted.
    """
    if pixels.shape[1] == channels:
        return pixels
    if pixels.shape[1] == 3 and channels == 1:
        if not (pixels == pixels[:, :1]).all():
            raise UserError("the images are in colour and the real ones are grey: a number of both would mean nothing")
        return pixels[:, :1]
    return pixels.expand(-1, channels, -1, -1)


def _permutation(seed: int, block: int, count: int) -> list[int]:
    order: list[int] = np.random.default_rng(mixed_seed(seed, block, count)).permutation(count).tolist()
    return order


def _read_npz(file: Path) -> tuple[Tensor, Tensor | None]:
    """arr_0 as (N, C, H, W) and arr_1, which may be missing."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            pixels = arrays["arr_0"]
            labels = arrays["arr_1"] if "arr_1" in arrays.files else None
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{file} holds no images arr_0 ({quoted(error)}): give another file") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3) or not len(pixels):
        raise UserError(
            f"arr_0 of {file} is {pixels.dtype} of shape {pixels.shape}, and images are uint8 of shape (N, H, W, 3): "
            "give another file"
        )
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2)), None if labels is None else torch.from_numpy(labels)
