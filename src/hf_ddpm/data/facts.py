"""The facts about a dataset, as fields for JSON and as sentences for the log."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from hf_ddpm.data.binarize import Binarization
from hf_ddpm.data.columns import Column
from hf_ddpm.data.decode import Undecodable
from hf_ddpm.data.sources import Origin

Kept = Literal["streamed", "decoded each time", "in memory", "on the device"]
_DARK = 8  # images of which none reaches 1 / 8 of the range were probably scaled differently
RECORDED, NAMED = 20, 3  # the number of skipped images and empty classes in the facts, and in the log


@dataclass(frozen=True)
class FirstImage:
    """The first image that could be decoded, as it is stored; `notes` are the conversions that changed its meaning."""

    width: int
    height: int
    mode: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class SkippedImage:
    """An image that could not be decoded: its row, the path of its file if known, and the reason without the path."""

    row: int
    file: str | None
    reason: str


@dataclass(frozen=True)
class LatentFacts:
    """How images become latents. `source` is the VAE's folder or its name on the Hub; `shape` is (J, h, w)."""

    source: str | None
    origin: Origin | None
    vae: str
    shape: tuple[int, int, int]
    scaling_factor: float
    cached: bool


@dataclass(frozen=True)
class DataFacts:
    """What was opened and guessed, how images were changed, and what was skipped so far.

    source, config_name, split, revision: As given by the user. origin: Where the source was found, which decides
    whether its name may leave this machine. num_images: None for a stream. left_out: The number of files of each
    description that were found but are not used. num_bytes: The size of all pixels. array_dtype: The type of a column
    of arrays; `first` is then None. unused_labels: A column of labels, if labels were not requested. empty: The number
    of classes without images, of which `empty_classes` are the first few; None without labels, and for a stream, whose
    labels are not known in advance. in_natural_order: Whether the classes are folders or strings, numbered so that 2
    comes before 10; otherwise the dataset defines their order. brightest: The largest value of all images, if all were
    decoded. converted: The number of images of each note. skipped: The number of images that could not be decoded, of
    which `skipped_images` are the first few.
    """

    source: str
    origin: Origin
    config_name: str | None
    split: str
    revision: str | None
    num_images: int | None
    left_out: Mapping[str, int]
    channels: int
    image_size: tuple[int, int]
    bit_depth: int
    kept: Kept
    num_bytes: int
    num_workers: int
    image_column: Column
    label_column: Column | None
    unused_labels: str | None
    num_classes: int | None
    class_names: tuple[str, ...] | None
    empty: int | None
    empty_classes: tuple[int, ...]
    in_natural_order: bool
    binarization: Binarization | None
    array_dtype: str | None
    first: FirstImage | None
    brightest: int | None
    converted: Mapping[str, int]
    skipped: int
    skipped_images: tuple[SkippedImage, ...]
    latents: LatentFacts | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, also those of nested facts, for `json.dumps`."""
        return asdict(self)


def describe(facts: DataFacts) -> str:
    """Return the facts as sentences, for the log."""
    said = [_opened(facts), _image_column(facts.image_column), _label_column(facts)]
    if facts.left_out:
        said.insert(1, _left_out(facts))
    if facts.empty:
        said.append(_without_images(facts))
    said.append(_first(facts))
    if facts.brightest is not None and facts.brightest < 2**facts.bit_depth // _DARK:
        said.append(_dark(facts.brightest, 2**facts.bit_depth - 1))
    if facts.binarization is not None:
        said.append(_binarized(facts.binarization))
    said += [f"{note[0].upper()}{note[1:]} (images so far: {n:,})." for note, n in sorted(facts.converted.items())]
    if facts.skipped:
        said.append(_skipped(facts))
    if facts.latents is not None:
        said.append(_latents(facts.latents))
    return " ".join(said)


def _opened(facts: DataFacts) -> str:
    size = "A stream of images" if facts.num_images is None else f"{facts.num_images:,} images"
    shape = "x".join(map(str, (facts.channels, *facts.image_size)))
    return f"{size} of {facts.source!r}, split {facts.split!r}, as {shape}, {facts.bit_depth} bits, {_kept(facts)}."


def _left_out(facts: DataFacts) -> str:
    files = ", ".join(f"{count:,} {what}" for what, count in sorted(facts.left_out.items()))
    return f"Files that are not used: {files}."


def _kept(facts: DataFacts) -> str:
    if facts.kept == "streamed":
        return "streamed"
    if facts.kept == "decoded each time":
        return f"decoded in each epoch with num_workers={facts.num_workers}"
    return f"decoded once and kept {facts.kept} ({facts.num_bytes / 2**20:.1f} MiB)"


def _image_column(column: Column) -> str:
    how = " (the only one with images)" if column.found == "only" else _guessed(column)
    return f"Image column {column.name!r}{how}."


def _label_column(facts: DataFacts) -> str:
    column, names = facts.label_column, facts.class_names or ()
    if column is None:
        there = facts.unused_labels
        hint = f"; a model with classes would use column {there!r} (--label_column auto)" if there else ""
        return f"No labels are used{hint}."
    order = ""
    if facts.in_natural_order and names:
        order = f", {len(names):,} classes in natural order: 0 is {names[0]!r}, {len(names) - 1} is {names[-1]!r}"
    return f"Label column {column.name!r}{_guessed(column)}{order}."


def _without_images(facts: DataFacts) -> str:
    """Name the classes without images. If labels are plain numbers, gaps may be a mistake; classes with names exist."""
    names, count = facts.class_names or (), facts.empty or 0
    first = [f"{k} ({names[k]!r})" if k < len(names) else str(k) for k in facts.empty_classes[:NAMED]]
    listed = ", ".join(first) + (f" and {count - len(first):,} more" if count > len(first) else "")
    what = "1 has" if count == 1 else f"{count:,} have"
    gaps = "" if names else " If these classes do not exist, number the labels without gaps."
    return f"Of the {facts.num_classes:,} classes, {what} no image: {listed}. A model learns nothing about them.{gaps}"


def _guessed(column: Column) -> str:
    return f" (guessed among {', '.join(column.among)})" if column.found == "guessed" else ""


def _first(facts: DataFacts) -> str:
    first = facts.first
    if first is None:
        return f"Column {facts.image_column.name!r} contains arrays of {facts.array_dtype}."
    changes = f" ({'; '.join(first.notes)})" if first.notes else ""
    return f"The first image has {first.width}x{first.height} pixels in mode {first.mode}{changes}."


def _dark(brightest: int, full: int) -> str:
    return (
        f"No value is above {brightest:,} of {full:,}, so all images are nearly black: if this is not intended, "
        "scale their values to the whole range."
    )


def _binarized(binarization: Binarization) -> str:
    kind, seed = binarization.kind, binarization.seed
    when = f"once for each image, seed {seed}" if kind == "static" else "again each time it is used"
    return f"Binarised ({kind}): an element is white with its intensity as the probability, drawn {when}."


def _skipped(facts: DataFacts) -> str:
    first = facts.skipped_images[:NAMED]
    named = "; ".join(f"image {image.row} ({Undecodable(image.file, image.reason)})" for image in first)
    return f"Could not be decoded and are replaced by the next readable image: {facts.skipped:,}, such as {named}."


def _latents(latents: LatentFacts) -> str:
    shape = "x".join(map(str, latents.shape))
    kept = "encoded once into the cache of datasets" if latents.cached else "encoded each time they are used"
    return f"Used as latents of {latents.vae}, {shape}, times {latents.scaling_factor:.5f}, {kept}."
