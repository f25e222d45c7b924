"""Statistics of real images, computed once and kept, with the conditions that a number made of them must share."""

import hashlib
import json
import sys
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from huggingface_hub import cached_assets_path
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_ddpm.checkpoint import new_file, writing
from hf_ddpm.data import Batch, ImageData, to_uint8
from hf_ddpm.errors import UserError, quoted
from hf_ddpm.metrics.extractors import INCEPTION, INCEPTION_PREPROCESSING, Extractor
from hf_ddpm.metrics.frechet import FeatureStatistics, StatisticsAccumulator, feature_statistics
from hf_ddpm.metrics.inception import PREPROCESSING, Preprocessing
from hf_ddpm.places import names_on_the_hub, without_places

MNIST_TEST = "mnist-test"  # a reference by its name
MNIST_TEST_FILE = Path(__file__).parent / "mnist_test_digits.safetensors"
_AT_ONCE = 64


class Reference(NamedTuple):
    """Statistics of a set of real images.

    pool, spatial: of an extractor's `Features`; spatial is None where there are none. conditions: what they hold for:
    the extractor with its preprocessing and its weights, the data, split, size and number of images.
    """

    pool: FeatureStatistics
    spatial: FeatureStatistics | None
    conditions: dict[str, Any]


class RealFeatures(NamedTuple):
    """Features of real images: pool (M, D) float32; the rows of the data set, int64 (M,); their classes, or None."""

    pool: Tensor
    rows: Tensor
    labels: Tensor | None


def reference_of(data: ImageData, extractor: Extractor, seen: RealFeatures | None = None) -> Reference:
    """The statistics of every image of a data set, from the user's cache if they were computed before.

    They are kept under a fingerprint of the data, of how its images are cut and resized, of the extractor and of its
    weights, in `cached_assets_path("hf_ddpm", "statistics")`; `save_reference` writes a portable file of them.

    Args:
        data: Of the images.
        extractor: Which looks at them.
        seen: Features of them: if these are all of them, no image is looked at again.

    Raises:
        UserError: a stream, fewer than two images, images that cannot be decoded, or a cache that cannot be written.
    """
    conditions = conditions_of(data, extractor)
    file = _cached(conditions)
    if not file.is_file():
        whole = seen is not None and len(seen.rows) == data.num_images and extractor.name != INCEPTION
        if seen is not None and whole:  # the network of sFID has spatial features beside these
            found = Reference(feature_statistics(seen.pool), None, conditions)
        else:
            found = _computed(data, extractor, conditions)
        save_reference(found, file)
    return load_reference(file)


def real_features(data: ImageData, extractor: Extractor, count: int | None = None) -> RealFeatures:
    """Features of images of a data set, in a shuffled order that is always the same; kept as `reference_of` keeps its.

    Args:
        data: Of the images.
        extractor: Which looks at them.
        count: How many; None, or more than there are, is all of them.

    Raises:
        UserError: as `reference_of`.
    """
    count = min(count or sys.maxsize, data.num_images or 0)
    file = _cached(conditions_of(data, extractor) | {"features": count})
    if not file.is_file():
        found = [(extractor(pixels).pool, batch.indices, batch.labels) for pixels, batch in _looked_at(data, count)]
        pool, rows, labels = zip(*found, strict=True)
        tensors = {"pool": torch.cat(pool), "rows": torch.cat(rows)}
        tensors |= {} if labels[0] is None else {"labels": torch.cat(labels)}
        _write(tensors, file, {})
    try:
        tensors = load_file(file)
        return RealFeatures(tensors["pool"], tensors["rows"], tensors.get("labels"))
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{file} does not hold features ({quoted(error)}): delete it, and run again") from error


def conditions_of(data: ImageData, extractor: Extractor) -> dict[str, Any]:
    """What a number that is measured against a data set must share with another one, for both to compare.

    Raises:
        UserError: a stream.
    """
    if data.num_images is None:
        raise UserError(f"{data.source!r} is a stream, of which no fixed statistics are kept: set streaming to false")
    source = {"source": data.facts.source, "origin": data.facts.origin, "split": data.facts.split}
    return extractor.conditions | {
        "data": without_places(source, names_on_the_hub(source)),
        "image_size": list(data.image_size),
        "num_images": data.num_images,
        "fingerprint": hashlib.sha256(data.fingerprint.encode()).hexdigest(),
    }


def save_reference(reference: Reference, file: Path) -> None:
    """Write statistics with their conditions into a safetensors file, whole or not at all.

    Raises:
        UserError: The file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for name in ("pool", "spatial"):
        part: FeatureStatistics | None = getattr(reference, name)
        if part is not None:
            tensors |= {f"{name}.mean": part.mean, f"{name}.covariance": part.covariance.contiguous()}
    metadata = {"num_samples": str(reference.pool.num_samples), "conditions": json.dumps(reference.conditions)}
    _write(tensors, file, metadata)


def load_reference(file: Path) -> Reference:
    """What `save_reference` wrote.

    Raises:
        UserError: no such file, or one that holds something else.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            about = opened.metadata()
            number, conditions = int(about["num_samples"]), json.loads(about["conditions"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no dict)
        parts = {
            name: FeatureStatistics(tensors[f"{name}.mean"], tensors[f"{name}.covariance"], number)
            for name in ("pool", "spatial")
            if f"{name}.mean" in tensors
        }
        found = Reference(parts["pool"], parts.get("spatial"), dict(conditions))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{file} does not hold the statistics of a data set ({quoted(error)}): make it again"
        ) from error
    return _checked(found, file)


def mnist_test() -> Reference:
    """The statistics of MNIST's 10,000 test digits in the features of `digits`, which ship with hf_ddpm."""
    return load_reference(MNIST_TEST_FILE)


def read_npz(file: Path, origin: Preprocessing, num_images: int) -> Reference:
    """Published statistics of the Inception network, as an npz of `mu` and `sigma`, of sFID `mu_s` and `sigma_s` too.

    Args:
        file: the npz, of which no pickle is read.
        origin: which program made it; this fixes the resize, of which the file says nothing.
        num_images: how many images it was made of, which the file does not say either.

    Raises:
        UserError: an origin that is not known, or a file that holds something else.
    """
    if origin not in PREPROCESSING:
        raise UserError(f"origin={origin!r} of {file} must be one of {', '.join(PREPROCESSING)}")
    try:
        with np.load(file, allow_pickle=False) as arrays:
            found = {name: torch.from_numpy(np.asarray(arrays[name], dtype=np.float64)) for name in arrays.files}
        pool = FeatureStatistics(found["mu"], found["sigma"], num_images)
        spatial = FeatureStatistics(found["mu_s"], found["sigma_s"], num_images) if "mu_s" in found else None
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} holds no statistics mu and sigma ({quoted(error)}): give another") from error
    conditions: dict[str, Any] = {"extractor": INCEPTION, "preprocessing": INCEPTION_PREPROCESSING.format(origin)}
    conditions |= {"data": {"source": file.name}, "num_images": num_images}
    return _checked(Reference(pool, spatial, conditions), file)


def require_same_conditions(
    reference: Reference, extractor: Extractor, image_size: tuple[int, int] | None = None
) -> None:
    """Refuse statistics that another extractor, other weights, another preprocessing or another size made.

    Args:
        reference: Of real images. Published statistics know neither their weights nor their size.
        extractor: That sees the samples.
        image_size: (H, W) of the samples.

    Raises:
        UserError: What differs.
    """
    size: dict[str, Any] = {} if image_size is None else {"image_size": list(image_size)}
    for name, ours in (extractor.conditions | size).items():
        theirs = reference.conditions.get(name, ours)
        if theirs != ours:
            raise UserError(
                f"the reference was made with {name}={theirs!r} and the samples are seen with {name}={ours!r}: a "
                "number of both would mean nothing, take one extractor for both"
            )


def _computed(data: ImageData, extractor: Extractor, conditions: dict[str, Any]) -> Reference:
    sums: dict[str, StatisticsAccumulator] = {}
    for pixels, _ in _looked_at(data, data.num_images or 0):
        features = extractor(pixels)
        for name in ("pool", "spatial"):
            part = getattr(features, name)
            if part is not None:
                sums.setdefault(name, StatisticsAccumulator(part.shape[1])).update(part)
    spatial = sums.get("spatial")
    return Reference(sums["pool"].statistics(), None if spatial is None else spatial.statistics(), conditions)


def _looked_at(data: ImageData, count: int) -> Iterator[tuple[Tensor, Batch]]:
    """Pixels of the first `count` images in the order of seed 0, and what else is known of them."""
    left = count
    with closing(data.batches(batch_size=min(_AT_ONCE, count), seed=0)) as batches:
        while left > 0:
            batch = next(batches).part(slice(left))
            yield to_uint8(batch.x_0), batch
            left -= len(batch.x_0)


def _cached(conditions: dict[str, Any]) -> Path:
    """Where what was computed under these conditions is kept."""
    key = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()
    return Path(cached_assets_path("hf_ddpm", "statistics")) / f"{key}.safetensors"


def _write(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with new_file(file) as new:
            save_file(tensors, new, metadata=metadata)


def _checked(reference: Reference, file: Path) -> Reference:
    for part in (reference.pool, reference.spatial):
        if part is not None and (
            part.mean.ndim != 1
            or part.covariance.shape != (len(part.mean),) * 2
            or part.num_samples < 2
            or not all(values.isfinite().all() for values in part[:2])
        ):
            raise UserError(
                f"{file} holds a mean of shape {tuple(part.mean.shape)} and a covariance of shape "
                f"{tuple(part.covariance.shape)} of {part.num_samples} images, which must be (D,), (D, D), at least 2 "
                "and finite: give another"
            )
    return reference
