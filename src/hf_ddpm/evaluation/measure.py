"""Metrics of images against real ones; the images are seen once, in batches and on several processes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_ddpm.errors import UserError, did_you_mean
from hf_ddpm.evaluation.images import Pictures
from hf_ddpm.metrics import (
    FeatureStatistics,
    InceptionScoreAccumulator,
    StatisticsAccumulator,
    density_coverage,
    feature_statistics,
    frechet_distance,
    kernel_distance,
    memorisation,
    precision_recall,
)
from hf_ddpm.metrics.classes import class_accuracy
from hf_ddpm.metrics.digits import SURE
from hf_ddpm.metrics.extractors import DIGITS, INCEPTION, Extractor
from hf_ddpm.metrics.modes import ModeCounter
from hf_ddpm.metrics.reference import RealFeatures, Reference

METRICS = ("fd", "fid", "sfid", "kid", "is", "prdc", "memorisation", "classes", "modes")
OF_REAL_IMAGES = ("kid", "prdc", "classes")
OF_IMAGES = (*OF_REAL_IMAGES, "memorisation")  # these need the features of each image, not only their sums
KID_SUBSETS, KID_SIZE = 100, 1000  # as in Binkowski et al. 2018
K_PRECISION, K_DENSITY = 3, 5  # as in the papers
IS_SPLITS = 10
OF_DIGITS = 1000  # the number of images that the digit distance is defined with
_MOST_COVARIANCES = 2**28  # elements of the covariances of all classes; the roots of more would take an hour or longer


class Number(NamedTuple):
    """One figure, ready for JSON.

    Attributes:
        name: The displayed name.
        type: An identifier without spaces, the same for every network.
        value: The value; for several draws, their mean.
        standard_error: The standard error over disjoint draws; None for one draw.
        standard_deviation: The standard deviation over the subsets of KID, or over the splits of the Inception Score.
        note: A remark that is shown beside the number.
    """

    name: str
    type: str
    value: float
    standard_error: float | None = None
    standard_deviation: float | None = None
    note: str | None = None

    def of(self, what: str) -> "Number":
        """Return the figure with `what` in its name and type, for images that are not samples."""
        return self._replace(name=f"{self.name}, {what}", type=f"{what}_{self.type}")


@dataclass
class Real:
    """The real images that samples are measured against.

    Attributes:
        reference: The statistics of all real images.
        images: The features of some of them, for metrics that need more than statistics.
        training: The features of every training image, for memorisation.
        class_names: The names of the classes.
    """

    reference: Reference
    images: RealFeatures | None = None
    training: RealFeatures | None = None
    class_names: tuple[str, ...] | None = None


def check_metrics(words: Sequence[str], extractor: Extractor) -> tuple[str, ...]:
    """Return the metrics without duplicates, in the order of the table.

    Raises:
        UserError: If a word is not a metric, or if the metric is defined only for another network.
    """
    for word in words:
        if word not in METRICS:
            raise UserError(f"--metrics {word} must be one of {', '.join(METRICS)}{did_you_mean(word, METRICS)}")
        if word in ("fid", "sfid") and extractor.name != INCEPTION:
            raise UserError(
                f"--metrics {word} is defined only for the Inception network of 2015, but the extractor is "
                f"{extractor.name}: pass the file of that network as --extractor, or use fd, the Fréchet distance of "
                "other features"
            )
    wanted = {"fd" if word == "fid" else word for word in words}
    return tuple(word for word in METRICS if word in wanted)


def check_real(metrics: Sequence[str], real: Real) -> None:
    """Check that the real images are sufficient for the metrics, before samples are drawn.

    Raises:
        UserError: If a metric needs more than is there.
    """
    for metric in metrics:
        if metric in OF_REAL_IMAGES and real.images is None:
            raise UserError(
                f"--metrics {metric} needs real images, not only their statistics: pass --data instead of --reference"
            )
    if "sfid" in metrics and real.reference.spatial is None:
        raise UserError("--metrics sfid: the reference has no spatial statistics (mu_s, sigma_s); use another one")
    if "memorisation" in metrics and real.training is None:
        raise UserError("--metrics memorisation needs the training images: pass --training-data")
    if "classes" in metrics and real.images is not None and real.images.labels is None:
        raise UserError("--metrics classes: the real images have no classes; remove this metric")


@dataclass
class Seen:
    """The state of one process after it has seen some images of one draw.

    It contains sums, whose size does not depend on the number of images, and the features themselves only if a metric
    needs them.

    Attributes:
        metrics: The metrics, from `check_metrics`.
        num_images: The number of images in the draw, over all processes.
    """

    metrics: tuple[str, ...]
    num_images: int
    pool: StatisticsAccumulator | None = None
    spatial: StatisticsAccumulator | None = None
    score: InceptionScoreAccumulator | None = None
    modes: ModeCounter | None = None
    sure: int = 0
    kept: list[tuple[Tensor, Tensor, Tensor | None]] = field(default_factory=list)  # places, features, labels

    def update(self, pictures: Pictures, places: Tensor, extractor: Extractor) -> None:
        """Add some images with the places (b,) in 0 .. num_images - 1.

        Raises:
            UserError: If a metric needs classes that the images do not have, or an output that the network lacks.
        """
        if "classes" in self.metrics and pictures.labels is None:
            raise UserError("--metrics classes: the samples have no classes; remove this metric")
        features = extractor(pictures.pixels)
        self.pool = self.pool or StatisticsAccumulator(features.pool.shape[1])
        self.pool.update(features.pool)
        if "sfid" in self.metrics and features.spatial is not None:
            self.spatial = self.spatial or StatisticsAccumulator(features.spatial.shape[1])
            self.spatial.update(features.spatial)
        if features.logits is not None:
            self._look_at_classes(features.logits, places, extractor)
        else:
            for metric, what in (("is", "the Inception Score"), ("modes", "mode coverage")):
                if metric in self.metrics:
                    raise UserError(f"--metrics {metric}: {what} needs a classifier, and {extractor.name} is not one")
        if any(metric in OF_IMAGES for metric in self.metrics):
            self.kept.append((places, features.pool, pictures.labels))

    def _look_at_classes(self, logits: Tensor, places: Tensor, extractor: Extractor) -> None:
        """Add the logits of a classifier, (b, K)."""
        if "modes" in self.metrics:
            self.modes = self.modes or ModeCounter(logits.shape[1])
            self.modes.update(logits)
        if "is" in self.metrics:
            splits = min(IS_SPLITS, self.num_images)
            self.score = self.score or InceptionScoreAccumulator(self.num_images, logits.shape[1], splits)
            self.score.update(logits, places)
        if extractor.name == DIGITS:
            self.sure += int((logits.softmax(dim=1).amax(dim=1) > SURE).sum())

    @classmethod
    def joined(cls, parts: "Sequence[Seen]") -> "Seen":
        """Merge the states of all processes."""
        whole = cls(parts[0].metrics, parts[0].num_images)
        for part in parts:
            whole.pool, whole.spatial = _merged(whole.pool, part.pool), _merged(whole.spatial, part.spatial)
            whole.score, whole.modes = _merged(whole.score, part.score), _merged(whole.modes, part.modes)
            whole.sure += part.sure
            whole.kept += part.kept
        return whole

    @cached_property
    def features(self) -> tuple[Tensor, Tensor | None]:
        """The features (N, D) of all processes in the order of their places, and their classes."""
        places, pool, labels = zip(*self.kept, strict=True)
        order = torch.cat(places).argsort()
        return torch.cat(pool)[order], None if labels[0] is None else torch.cat(labels)[order]


def numbers_of(seen: Seen, real: Real, extractor: Extractor) -> list[Number]:
    """Compute the figures of one draw.

    Raises:
        UserError: If there are fewer images than a metric needs.
    """
    found: list[Number] = []
    for metric in seen.metrics:
        found += _OF_METRIC[metric](seen, real, extractor)
    return found


def over_draws(draws: Sequence[Sequence[Number]]) -> list[Number]:
    """Return the means of the figures of disjoint draws, each with the standard error of the mean."""
    joined = []
    for same in zip(*draws, strict=True):
        values = torch.tensor([number.value for number in same], dtype=torch.float64)
        error = values.std().item() / len(draws) ** 0.5 if len(draws) > 1 else None
        joined.append(same[0]._replace(value=values.mean().item(), standard_error=error))
    return joined


def _frechet(seen: Seen, real: Real, extractor: Extractor) -> list[Number]:
    assert seen.pool is not None
    value, few = _distance(seen.pool.statistics(), real.reference.pool), _few(seen, len(seen.pool.mean))
    if extractor.name != DIGITS:
        kind = "fid" if extractor.name == INCEPTION else "frechet_distance"
        return [Number(extractor.distance, kind, value, note=few)]
    share = Number("share of sure digits", "digit_share", seen.sure / seen.num_images)
    return [Number(extractor.distance, "digit_distance", value, note=few), share]


def _spatial(seen: Seen, real: Real, extractor: Extractor) -> list[Number]:
    assert seen.spatial is not None and real.reference.spatial is not None
    value = _distance(seen.spatial.statistics(), real.reference.spatial)
    return [Number("sFID", "sfid", value, note=_few(seen, len(seen.spatial.mean)))]


def _kernel(seen: Seen, real: Real, extractor: Extractor) -> list[Number]:
    assert real.images is not None
    features, images = seen.features[0], real.images
    size = min(KID_SIZE, len(features), len(images.pool))
    generator = torch.Generator().manual_seed(0)
    found = kernel_distance(features, images.pool, generator=generator, subsets=KID_SUBSETS, subset_size=size)
    name = "KID" if extractor.name == INCEPTION else f"KID ({extractor.name})"
    note = f"{KID_SUBSETS} subsets of {size:,}"
    return [Number(name, "kid", found.mean, standard_deviation=found.standard_deviation, note=note)]


def _score(seen: Seen, real: Real, extractor: Extractor) -> list[Number]:
    assert seen.score is not None
    found = seen.score.score()
    name = "Inception Score" if extractor.name == INCEPTION else f"IS ({extractor.name})"
    spread = found.standard_deviation
    return [Number(name, "inception_score", found.mean, standard_deviation=spread, note=f"{found.splits} splits")]


def _neighbours(seen: Seen, real: Real, extractor: Extractor) -> list[Number]:
    features = seen.features[0]
    assert real.images is not None
    images = real.images.pool[: len(features)]  # as many as samples: all four depend on both numbers
    precise = precision_recall(features, images, K_PRECISION)
    dense = density_coverage(features, images, K_DENSITY)
    against = f"k = {{}}, {len(images):,} real images"
    shares = {"precision": precise.precision, "recall": precise.recall}
    more = {"density": dense.density, "coverage": dense.coverage}
    return [
        *(Number(name, name, value, note=against.format(K_PRECISION)) for name, value in shares.items()),
        *(Number(name, name, value, note=against.format(K_DENSITY)) for name, value in more.items()),
    ]


def _memorised(seen: Seen, real: Real, extractor: Extractor) -> list[Number]:
    assert real.training is not None
    features, training = seen.features[0], real.training.pool
    share = memorisation(features, training).share
    note = f"of {len(training):,} training images"
    found = [Number("memorised", "memorised", share, note=note)]
    if real.images is not None:  # the baseline: images that no model has seen
        others = memorisation(real.images.pool[: len(features)], training).share
        found.append(Number("memorised, real images", "memorised_real", others, note=note))
    return found


def _classes(seen: Seen, real: Real, extractor: Extractor) -> list[Number]:
    features, labels = seen.features
    images = real.images
    assert labels is not None and images is not None and images.labels is not None
    accuracy = class_accuracy(features, labels, images.pool, images.labels)
    note = "by the nearest real image"
    found = [
        Number("class accuracy", "class_accuracy", accuracy.samples, note=note),
        Number("class accuracy, real images", "class_accuracy_real", accuracy.real, note=note),
    ]
    if len(images.labels.unique()) * features.shape[1] ** 2 > _MOST_COVARIANCES:
        return found
    for label in labels.unique().tolist():
        ours, theirs = features[labels == label], images.pool[images.labels == label]
        if min(len(ours), len(theirs)) < 2:
            continue
        value = _distance(feature_statistics(ours), feature_statistics(theirs))
        names = real.class_names or ()
        name = names[label] if label < len(names) else str(label)
        few = f"{len(ours):,} samples, {len(theirs):,} real images"
        found.append(Number(f"{extractor.distance}, class {name}", "class_frechet_distance", value, note=few))
    return found


def _modes(seen: Seen, real: Real, extractor: Extractor) -> list[Number]:
    assert seen.modes is not None
    found, of = seen.modes.modes(), len(seen.modes.counts)
    note = f"of {of:,} classes of {extractor.name}, {seen.num_images:,} images"
    return [
        Number("modes found", "modes_found", found.found, note=note),
        Number("KL of the classes to uniform", "modes_kl", found.divergence, note=note),
    ]


_OF_METRIC: dict[str, Any] = {
    "fd": _frechet,
    "sfid": _spatial,
    "kid": _kernel,
    "is": _score,
    "prdc": _neighbours,
    "memorisation": _memorised,
    "classes": _classes,
    "modes": _modes,
}


def _distance(ours: FeatureStatistics, theirs: FeatureStatistics) -> float:
    return frechet_distance(ours.mean, ours.covariance, theirs.mean, theirs.covariance)


def _few(seen: Seen, dimension: int) -> str | None:
    """Return a note for a covariance that cannot have full rank."""
    return f"N = {seen.num_images:,} is too few for {dimension:,} features" if seen.num_images < dimension else None


def _merged(one: Any, other: Any) -> Any:
    if one is None or other is None:
        return one or other
    one.merge(other)
    return one
