"""Find the columns of images and labels, and convert labels to integers 0 .. num_classes - 1."""

import functools
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hf_ddpm.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset, Features

AUTO = "auto"
_WANTED = (
    "an image column must contain image files (Image, or their bytes or paths), or arrays of uint8 or uint16 that are "
    "declared as Array2D or Array3D"
)
_IMAGE_NAMES = ("image", "img", "picture", "png", "jpg", "jpeg", "webp")
_LABEL_NAMES = ("label", "labels", "class", "cls", "fine_label", "target")


@dataclass(frozen=True)
class Column:
    """A column and how it was found: named by the user, the only one of its kind, or guessed `among` several."""

    name: str
    found: Literal["named", "only", "guessed"]
    among: tuple[str, ...] = ()


def find_image_column(features: "Features", wanted: str | None) -> Column:
    """Find the column of images.

    A named column must contain image files, bytes, paths or arrays. Without a name, it is the only column of type
    Image; of several, the one called image, img, ..., or else the first; if there is none, a column of bytes or arrays.
    """
    if wanted is not None:
        column = _existing(wanted, features, "image_column")
        if _kind(features[column]) == "other" and not _type_name(features[column]).endswith("string"):
            raise UserError(f"image_column is {wanted!r}, which contains {_type_name(features[column])}; {_WANTED}")
        return Column(column, "named")
    candidates = [name for name, feature in features.items() if _kind(feature) == "image"]
    candidates = candidates or [name for name, feature in features.items() if _kind(feature) in ("bytes", "array")]
    if not candidates:
        raise UserError(f"the dataset has no column of images: its columns are {_described(features)}; {_WANTED}")
    if len(candidates) == 1:
        return Column(candidates[0], "only")
    known = [name for name in _IMAGE_NAMES if name in candidates]
    return Column((known or candidates)[0], "guessed", tuple(candidates))


def array_dtype(feature: Any, column: str) -> Literal["uint8", "uint16"] | None:
    """Return the integer type of an Array2D or Array3D column; None for image files, `UserError` for other arrays."""
    if _kind(feature) != "array":
        return None
    if feature.dtype not in ("uint8", "uint16"):
        raise UserError(f"the arrays in column {column!r} have dtype {feature.dtype}; it must be uint8 or uint16")
    return "uint8" if feature.dtype == "uint8" else "uint16"


def find_label_column(features: "Features", wanted: str | None, image_column: str) -> Column | None:
    """Find the label column; None without labels. "auto" is the only ClassLabel column, or one with a usual name."""
    if wanted is None:
        return None
    if wanted != AUTO:
        return Column(_existing(wanted, features, "label_column"), "named")
    candidates = label_candidates(features)
    if not candidates:
        raise UserError(
            f"the dataset has no label column: its columns are {_described(features)}; put the images into one folder "
            "per class, set label_column to a column of classes, or set it to null"
        )
    return Column(candidates[0], "guessed", tuple(name for name in features if name != image_column))


def label_candidates(features: "Features") -> list[str]:
    """Return the only ClassLabel column, or the columns with usual names; "auto" uses the first one."""
    classes = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    return classes if len(classes) == 1 else [name for name in _LABEL_NAMES if name in features]


@dataclass(frozen=True)
class LabelCoder:
    """Converts stored labels to int64 in 0 .. num_classes - 1.

    Args:
        column: The column with the labels.
        num_classes: The number of classes.
        names: The names of the classes, if they have names.
        stored: The names in the order of the stored numbers, if it is not the order of the classes.
        in_natural_order: Whether the names were sorted in natural order here.
    """

    column: str
    num_classes: int
    names: tuple[str, ...] | None = None
    stored: tuple[str, ...] | None = None
    in_natural_order: bool = False

    def encode(self, labels: Sequence[Any], rows: Sequence[int]) -> np.ndarray:
        """Convert labels to int64 (len(labels),); the `UserError` for an invalid label names its image, by `rows`."""
        encoded = np.fromiter((_code(label, self._codes) for label in labels), dtype=np.int64, count=len(labels))
        wrong = np.flatnonzero((encoded < 0) | (encoded >= self.num_classes))
        if wrong.size:
            first = int(wrong[0])
            shown = labels[first] if self.stored is None or labels[first] is None else int(encoded[first])
            remedy = "add a label to the image" if shown is None else "fix the label or set a larger num_classes"
            if encoded[first] < 0 and shown is not None:
                remedy = "fix the label, or remove the image"
            raise UserError(
                f"image {rows[first]} has label {shown!r} in column {self.column!r}, but labels must be in "
                f"0..{self.num_classes - 1} (num_classes={self.num_classes}); {remedy}"
            )
        return encoded

    @functools.cached_property
    def _codes(self) -> dict[Any, int]:
        """The class of each name, and of each stored number that is not the class itself."""
        codes: dict[Any, int] = {name: code for code, name in enumerate(self.names or ())}
        return codes | {number: codes[name] for number, name in enumerate(self.stored or ())}


def label_coder(
    feature: Any, column: str, num_classes: int | None, labels: Sequence[Any] | None, *, of_folders: bool = False
) -> LabelCoder:
    """Create the coder of a column: ClassLabel as declared, strings in natural order, integers up to the largest value.

    Args:
        feature: The type of the column.
        column: The name of the column.
        num_classes: The number of classes; None reads it from the labels.
        labels: All labels of the dataset; None for a stream, in which strings, and integers without num_classes, are
            errors.
        of_folders: Whether the classes of a ClassLabel are the names of folders, which `datasets` sorts alphabetically.
            They are numbered in natural order instead.
    """
    if type(feature).__name__ == "ClassLabel":
        names = tuple(feature.names or ()) or None
        natural = tuple(sorted(names or (), key=natural_order))
        if names is None or not of_folders or [*names] not in (sorted(names), [*natural]):  # declared by a card
            return LabelCoder(column, num_classes or feature.num_classes, names)
        return LabelCoder(column, num_classes or len(names), natural, None if natural == names else names, True)
    dtype = _type_name(feature)
    if dtype.endswith("string"):
        if labels is None:
            raise UserError(
                f"label column {column!r} contains strings, which are not all known in a stream; set streaming to false"
            )
        names = tuple(sorted({label for label in labels if label is not None}, key=natural_order))
        return LabelCoder(column, num_classes or len(names), names, in_natural_order=True)
    if not dtype.startswith(("int", "uint", "bool")):
        raise UserError(f"label column {column!r} contains {dtype}; it must contain integers, strings or ClassLabel")
    if num_classes is None and labels is None:
        raise UserError(
            f"label column {column!r} of a stream contains plain integers; set num_classes to the number of classes"
        )
    largest = max((int(label) for label in labels or () if label is not None), default=0)
    if num_classes is None and labels is not None and largest >= len(labels):
        raise UserError(
            f"label column {column!r} contains integers up to {largest:,}, which are more classes than images "
            f"({len(labels):,}); set another label_column, or set num_classes to the number of classes"
        )
    return LabelCoder(column, num_classes or largest + 1)


def classes_without_images(labels: np.ndarray, num_classes: int, at_most: int) -> tuple[int, tuple[int, ...]]:
    """Return the number of classes 0 .. num_classes - 1 without an image, and the first `at_most` of them."""
    present = set(np.unique(labels).tolist())
    empty = (label for label in range(num_classes) if label not in present)
    return num_classes - len(present), tuple(itertools.islice(empty, at_most))


def natural_order(name: str) -> tuple[list[Any], str]:
    """Return a key for `sorted` that compares digits in names as numbers: class2 comes before class10."""
    parts: list[Any] = re.split("([0-9]+)", name)  # words and digits alternate
    parts[1::2] = [(len(digits.lstrip("0")), digits.lstrip("0")) for digits in parts[1::2]]
    return parts, name


def _code(label: Any, codes: dict[Any, int]) -> int:
    if isinstance(label, str):
        return codes.get(label, -1)
    return -1 if label is None else codes.get(label, int(label))


def read_column(dataset: "Dataset", column: str) -> list[Any]:
    """Read all values of one column, without reading the images."""
    values: list[Any] = dataset.select_columns([column])[:][column]
    return values


def _existing(column: str, features: "Features", option: str) -> str:
    if column not in features:
        raise UserError(
            f"{option} is {column!r}, but the columns are {_described(features)}{did_you_mean(column, features)}"
        )
    return column


def _kind(feature: Any) -> Literal["image", "bytes", "array", "other"]:
    """Return what a type of column can contain, by the type's name, so that `datasets` need not be imported here."""
    name = type(feature).__name__
    if name == "Image":
        return "image"
    if name in ("Array2D", "Array3D"):
        return "array"
    if isinstance(feature, dict):
        return "bytes" if "bytes" in feature else "other"
    return "bytes" if _type_name(feature).endswith("binary") else "other"


def _type_name(feature: Any) -> str:
    """Return "int64", "string" and so on for plain values, else the name of the type: Image, ClassLabel, List, dict."""
    name = type(feature).__name__
    return str(feature.dtype) if name == "Value" else name


def _described(features: "Features") -> str:
    return ", ".join(f"{name!r} ({_type_name(feature)})" for name, feature in features.items())
