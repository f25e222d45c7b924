"""Statistics of real images, computed once and cached, with the conditions that two comparable numbers must share."""

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

MNIST_TEST = "mnist-test"  # the name of a reference that ships with hf_ddpm
MNIST_TEST_FILE = Path(__file__).parent / "mnist_test_digits.safetensors"
_AT_ONCE = 64


class Reference(NamedTuple):
    """Statistics of a set of real images.

    pool, spatial: the statistics of an extractor's `Features`; spatial is None if there are none. conditions: what they
    are valid for: the extractor with its preprocessing and weights, the data, split, size and number of images.
    """

    pool: FeatureStatistics
    spatial: FeatureStatistics | None
    conditions: dict[str, Any]


class RealFeatures(NamedTuple):
    """Features of real images: pool (M, D) float32; the rows of the dataset, int64 (M,); their classes, or None."""

    pool: Tensor
    rows: Tensor
    labels: Tensor | None


def reference_of(data: ImageData, extractor: Extractor, seen: RealFeatures | None = None) -> Reference:
    """Return the statistics of all images of a dataset, from the user's cache if they were computed before.

    They are cached under a fingerprint of the data, of how its images are cropped and resized, of the extractor and of
    its weights, in `cached_assets_path("hf_ddpm", "statistics")`; `save_reference` writes a portable file of them.

    Args:
        data: The dataset.
        extractor: The network that extracts the features.
        seen: Features of its images, which are used instead of the images if they are the features of all of them.

    Raises:
        UserError: If the data is a stream or has fewer than two images, if images cannot be decoded, or if the cache
            cannot be written.
    """
    conditions = conditions_of(data, extractor)
    file = _cached(conditions)
    if not file.is_file():
        whole = seen is not None and len(seen.rows) == data.num_images and extractor.name != INCEPTION
        if seen is not None and whole:  # not for the Inception network, which also has spatial features
            found = Reference(feature_statistics(seen.pool), None, conditions)
        else:
            found = _computed(data, extractor, conditions)
        save_reference(found, file)
    return load_reference(file, remedy="delete it and run the command again")


def real_features(data: ImageData, extractor: Extractor, count: int | None = None) -> RealFeatures:
    """Return features of images of a dataset, in a fixed shuffled order; they are cached like those of `reference_of`.

    Args:
        data: The dataset.
        extractor: The network that extracts the features.
        count: The number of images; None, or a number that is too large, uses all images.

    Raises:
        UserError: See `reference_of`.
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
        raise UserError(
            f"{file} does not contain features ({quoted(error)}): delete it and run the command again"
        ) from error


def conditions_of(data: ImageData, extractor: Extractor) -> dict[str, Any]:
    """Return the conditions that two numbers measured against datasets must share to be comparable.

    Raises:
        UserError: If the data is a stream.
    """
    if data.num_images is None:
        raise UserError(f"{data.source!r} is a stream, which has no fixed statistics: set streaming to false")
    source = {"source": data.facts.source, "origin": data.facts.origin, "split": data.facts.split}
    return extractor.conditions | {
        "data": without_places(source, names_on_the_hub(source)),
        "image_size": list(data.image_size),
        "num_images": data.num_images,
        "fingerprint": hashlib.sha256(data.fingerprint.encode()).hexdigest(),
    }


def save_reference(reference: Reference, file: Path) -> None:
    """Write statistics with their conditions to a safetensors file, completely or not at all.

    Raises:
        UserError: If the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for name in ("pool", "spatial"):
        part: FeatureStatistics | None = getattr(reference, name)
        if part is not None:
            tensors |= {f"{name}.mean": part.mean, f"{name}.covariance": part.covariance.contiguous()}
    metadata = {"num_samples": str(reference.pool.num_samples), "conditions": json.dumps(reference.conditions)}
    _write(tensors, file, metadata)


def load_reference(file: Path, remedy: str = "create it again") -> Reference:
    """Load a file that `save_reference` wrote.

    Args:
        file: The file.
        remedy: The end of the message for a damaged file.

    Raises:
        UserError: If the file does not exist, or contains something else.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            about = opened.metadata()
            number, conditions = int(about["num_samples"]), json.loads(about["conditions"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
        parts = {
            name: FeatureStatistics(tensors[f"{name}.mean"], tensors[f"{name}.covariance"], number)
            for name in ("pool", "spatial")
            if f"{name}.mean" in tensors
        }
        found = Reference(parts["pool"], parts.get("spatial"), dict(conditions))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{file} does not contain the statistics of a dataset ({quoted(error)}): {remedy}") from error
    return _checked(found, file)


def mnist_test() -> Reference:
    """Return the statistics of MNIST's 10,000 test digits in the features of `digits`, which ship with hf_ddpm."""
    return load_reference(MNIST_TEST_FILE)


def read_npz(file: Path, origin: Preprocessing, num_images: int) -> Reference:
    """Read published statistics of the Inception network: an npz with `mu`, `sigma`, for sFID also `mu_s`, `sigma_s`.

    Args:
        file: The npz file; pickled content is not read.
        origin: The program that made it, which determines the resize; the file does not record it.
        num_images: The number of images that it was made from, which the file does not record either.

    Raises:
        UserError: If the origin is not supported, or if the file contains something else.
    """
    if origin not in PREPROCESSING:
        raise UserError(f"origin={origin!r} of {file} must be one of {', '.join(PREPROCESSING)}")
    try:
        with np.load(file, allow_pickle=False) as arrays:
            found = {name: torch.from_numpy(np.asarray(arrays[name], dtype=np.float64)) for name in arrays.files}
        pool = FeatureStatistics(found["mu"], found["sigma"], num_images)
        spatial = FeatureStatistics(found["mu_s"], found["sigma_s"], num_images) if "mu_s" in found else None
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} has no statistics mu and sigma ({quoted(error)}): use another file") from error
    conditions: dict[str, Any] = {"extractor": INCEPTION, "preprocessing": INCEPTION_PREPROCESSING.format(origin)}
    conditions |= {"data": {"source": file.name}, "num_images": num_images}
    return _checked(Reference(pool, spatial, conditions), file)


def require_same_conditions(
    reference: Reference, extractor: Extractor, image_size: tuple[int, int] | None = None
) -> None:
    """Raise an error for statistics that were made with another extractor, weights, preprocessing or image size.

    Args:
        reference: The statistics of real images. Published statistics record neither their weights nor their size.
        extractor: The extractor of the samples.
        image_size: (H, W) of the samples.

    Raises:
        UserError: If a condition differs.
    """
    size: dict[str, Any] = {} if image_size is None else {"image_size": list(image_size)}
    for name, ours in (extractor.conditions | size).items():
        theirs = reference.conditions.get(name, ours)
        if theirs != ours:
            raise UserError(
                f"the reference was made with {name}={theirs!r} but the samples are measured with {name}={ours!r}, so "
                "they cannot be compared: use the same for both"
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
    """Yield the pixels of the first `count` images in the order of seed 0, with the batch that they come from."""
    left = count
    with closing(data.batches(batch_size=min(_AT_ONCE, count), seed=0)) as batches:
        while left > 0:
            batch = next(batches).part(slice(left))
            yield to_uint8(batch.x_0), batch
            left -= len(batch.x_0)


def _cached(conditions: dict[str, Any]) -> Path:
    """Return the path of the cached results for these conditions."""
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
                f"{file} contains a mean of shape {tuple(part.mean.shape)} and a covariance of shape "
                f"{tuple(part.covariance.shape)} with num_images={part.num_samples}, but they must be finite, of shape "
                "(D,) and (D, D), with at least 2 images: use another file"
            )
    return reference
