"""Figures of images that are seen batch by batch, against the same metrics on all features at once."""

import pytest
import torch

from hf_ddpm.errors import UserError
from hf_ddpm.evaluation.images import Pictures
from hf_ddpm.evaluation.measure import METRICS, Number, Real, Seen, check_metrics, check_real, numbers_of, over_draws
from hf_ddpm.metrics import (
    density_coverage,
    feature_statistics,
    frechet_distance,
    kernel_distance,
    memorisation,
    precision_recall,
)
from hf_ddpm.metrics.extractors import INCEPTION, Extractor, Features, digit_extractor, module_extractor
from hf_ddpm.metrics.reference import RealFeatures, Reference

COUNT = 60


@pytest.fixture(scope="module")
def extractor():
    return digit_extractor()


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3 * COUNT, 1, 28, 28), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def real(images, extractor):
    """What the samples, the first 60 images, are measured against: 60 real images and 60 training images."""
    labels = torch.arange(COUNT) % 3
    pool, training = (extractor(images[start : start + COUNT]).pool for start in (COUNT, 2 * COUNT))
    rows = torch.arange(COUNT)
    reference = Reference(feature_statistics(pool), None, extractor.conditions)
    return Real(reference, RealFeatures(pool, rows, labels), RealFeatures(training, rows, None), ("a", "b", "c"))


def seen(images, extractor, *cuts, metrics=("fd", "kid", "is", "prdc", "memorisation", "classes")):
    found = Seen(metrics, COUNT)
    for cut in cuts:
        places = torch.arange(COUNT)[cut]
        found.update(Pictures(images[:COUNT][cut], places % 3), places, extractor)
    return found


def values(numbers):
    return {number.name: number.value for number in numbers}


def test_every_figure_is_that_of_all_features(images, real, extractor):
    found = values(numbers_of(seen(images, extractor, slice(0, 25), slice(25, None)), real, extractor))
    ours, theirs, training = extractor(images[:COUNT]), real.images.pool, real.training.pool
    distance = frechet_distance(*feature_statistics(ours.pool)[:2], *feature_statistics(theirs)[:2])
    assert found["digit distance"] == pytest.approx(distance, rel=1e-6)
    sure = (ours.logits.softmax(dim=1).amax(dim=1) > 0.9).double().mean().item()
    assert found["share of sure digits"] == pytest.approx(sure)
    kid = kernel_distance(ours.pool, theirs, generator=torch.Generator().manual_seed(0), subset_size=COUNT)
    assert found["KID (digits)"] == pytest.approx(kid.mean)
    precise, dense = precision_recall(ours.pool, theirs), density_coverage(ours.pool, theirs)
    for name, value in {**precise._asdict(), **dense._asdict()}.items():
        assert name == "k" or found[name] == pytest.approx(value)
    assert found["memorised"] == memorisation(ours.pool, training).share
    assert found["memorised, real images"] == memorisation(theirs, training).share
    one = [feature_statistics(part[torch.arange(COUNT) % 3 == 1]) for part in (ours.pool, theirs)]
    assert found["digit distance, class b"] == pytest.approx(frechet_distance(*one[0][:2], *one[1][:2]), rel=1e-6)
    assert {"class accuracy", "class accuracy, real images", "IS (digits)"} <= found.keys()


def test_who_saw_what_does_not_matter(images, real, extractor):
    """Two processes, the images in another order: the same figures to rounding."""
    alone = values(numbers_of(seen(images, extractor, slice(None)), real, extractor))
    odd, even = seen(images, extractor, slice(1, None, 2)), seen(images, extractor, slice(0, None, 2))
    together = values(numbers_of(Seen.joined([odd, even]), real, extractor))
    assert together == pytest.approx(alone, rel=1e-6)


def test_memory_does_not_grow_with_the_images_where_sums_suffice(images, extractor):
    found = seen(images, extractor, slice(None), metrics=("fd", "is"))
    assert found.kept == [] and found.pool.num_samples == COUNT


def test_the_mean_of_disjoint_draws_has_an_error():
    draws = [[Number("d", "fd", value)] for value in (1.0, 2.0, 6.0)]
    (found,) = over_draws(draws)
    assert found.value == 3 and found.standard_error == pytest.approx((7 / 3) ** 0.5)
    assert over_draws(draws[:1])[0].standard_error is None


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["fid"], "--metrics fid is defined only for the Inception network of 2015, but the extractor is digits"),
        (["fd", "sfid"], "--metrics sfid is defined only"),
        (["kidd"], r"--metrics kidd must be one of fd, .*; did you mean kid\?"),
    ],
)
def test_names_of_metrics(words, sentence, extractor):
    with pytest.raises(UserError, match=sentence):
        check_metrics(words, extractor)
    assert check_metrics(["is", "fd", "fd"], extractor) == ("fd", "is")
    assert set(METRICS) >= set(check_metrics(["prdc", "kid"], extractor))


@pytest.mark.parametrize(
    ("metric", "missing", "sentence"),
    [
        ("kid", {"images": None}, "--metrics kid needs real images, not only their statistics: pass --data"),
        ("prdc", {"images": None}, "--metrics prdc needs real images"),
        ("memorisation", {"training": None}, "--metrics memorisation needs .*: pass --training-data"),
        ("sfid", {}, "has no spatial statistics"),
    ],
)
def test_what_a_metric_needs(metric, missing, sentence, real):
    lacking = Real(**(vars(real) | missing))
    with pytest.raises(UserError, match=sentence):
        check_real((metric,), lacking)
    check_real([metric for metric in METRICS if metric != "sfid"], real)


def test_labels_are_needed_for_classes(images, extractor):
    found = Seen(("classes",), COUNT)
    with pytest.raises(UserError, match="--metrics classes: the samples have no classes"):
        found.update(Pictures(images[:COUNT], None), torch.arange(COUNT), extractor)


def test_a_score_needs_a_classifier(images):
    network = module_extractor(torch.nn.Flatten(), "pixels")
    with pytest.raises(UserError, match="--metrics is: the Inception Score needs a classifier, and pixels is not one"):
        seen(images, network, slice(None), metrics=("is",))


def test_a_distance_of_few_images_is_marked(images, real, extractor):
    found = Seen(("fd",), 20)
    found.update(Pictures(images[:20], None), torch.arange(20), extractor)
    assert numbers_of(found, real, extractor)[0].note == "N = 20 is too few for 64 features"


def test_names_of_the_inception_network(images):
    """FID, sFID, KID and Inception Score are its own; sFID looks at places."""
    network = torch.nn.Flatten()

    def look(pixels):
        x = network(pixels.float() / 255)
        return Features(x[:, :40], spatial=x[:, 300:330], logits=x[:, :10])

    extractor = Extractor(INCEPTION, "FID", "as they are", network, look)
    assert check_metrics(["fid", "sfid"], extractor) == ("fd", "sfid")
    theirs = extractor(images[COUNT:])
    reference = Reference(*(feature_statistics(part) for part in (theirs.pool, theirs.spatial)), extractor.conditions)
    real = Real(reference, RealFeatures(theirs.pool, torch.arange(2 * COUNT), None))
    parts = [seen(images, extractor, slice(i, None, 2), metrics=("fd", "sfid", "kid", "is")) for i in (0, 1)]
    found = values(numbers_of(Seen.joined(parts), real, extractor))
    assert found.keys() == {"FID", "sFID", "KID", "Inception Score"}
    ours = extractor(images[:COUNT])
    for name in ("pool", "spatial"):
        one, other = (feature_statistics(getattr(features, name)) for features in (ours, theirs))
        expected = frechet_distance(*one[:2], *other[:2])
        assert found["FID" if name == "pool" else "sFID"] == pytest.approx(expected, rel=1e-6)
