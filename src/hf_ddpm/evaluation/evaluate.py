"""Measure images that are shared among processes; the numbers do not depend on how they are shared."""

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from hf_ddpm.errors import UserError, require_at_least
from hf_ddpm.evaluation.images import ImageSource, Pictures
from hf_ddpm.evaluation.measure import K_DENSITY, Number, Real, Seen, check_real, numbers_of, over_draws
from hf_ddpm.metrics.extractors import Extractor
from hf_ddpm.metrics.reference import require_same_conditions
from hf_ddpm.progress import ProgressBar

SHARD = 256  # the number of images that one process takes at a time and that one file contains
SHOWN = 64  # the number of images on a page


class Evaluation(NamedTuple):
    """The result of an evaluation.

    Attributes:
        numbers: The figures.
        first: The first images, uint8 (at most 64, C, H, W).
        num_images: The number of images in one draw.
        draws: The number of disjoint draws.
        seconds: The seconds on the slowest process: `images` to create or read all images, and `features` to extract
            their features.
    """

    numbers: list[Number]
    first: Tensor
    num_images: int
    draws: int
    seconds: dict[str, float]


def evaluate(
    source: ImageSource,
    real: Real,
    extractor: Extractor,
    metrics: tuple[str, ...],
    *,
    num_images: int,
    draws: int = 1,
    allow_few: bool = False,
    accelerator: Accelerator | None = None,
) -> Evaluation:
    """Measure images against real ones.

    The number of processes and the batch size change the numbers only by rounding (1e-6 of their value): an image is a
    function of its index, and the sums of all processes are merged.

    Args:
        source: The source of the images 0 to `num_images` times `draws` (exclusive).
        real: The real images that they are measured against.
        extractor: The network that extracts their features.
        metrics: The metrics, from `check_metrics`.
        num_images: N, the number of images in each draw.
        draws: The number of disjoint draws; their spread gives each figure its standard error. (A bootstrap of one draw
            would bias a Fréchet distance upwards.)
        allow_few: Whether to measure a Fréchet distance of fewer images than features, with a note that says so.
        accelerator: The accelerator of the processes.

    Raises:
        UserError: If there are too few images, if the real images do not fit, or if the extractor rejects the images.
    """
    _check(source, metrics, num_images, draws)
    check_real(metrics, real)
    accelerator = accelerator or Accelerator(cpu=True)
    shards = shards_of(num_images * draws)[accelerator.process_index :: accelerator.num_processes]
    seen = [Seen(metrics, num_images) for _ in range(draws)]
    first: dict[int, Tensor] = {}
    looking, fits = 0.0, False
    with ProgressBar("images", sum(map(len, shards)), accelerator) as bar:
        for start, pictures in _pictures(source, shards):
            began = time.perf_counter()
            if not fits:  # every process raises the same error
                height, width = pictures.pixels.shape[2:]
                require_same_conditions(real.reference, extractor, (height, width))
            _look(seen, start, pictures, extractor)
            if not fits and not allow_few:
                _refuse_few(seen)
            fits = True
            for i in range(start, min(SHOWN, start + len(pictures.pixels))):
                first[i] = pictures.pixels[i - start]
            looking += time.perf_counter() - began
            bar.update(len(pictures.pixels))
    parts = gather_object([(seen, first, bar.seconds - looking, looking)])
    all_first = {i: image for _, shown, _, _ in parts for i, image in shown.items()}
    found = [numbers_of(Seen.joined(same), real, extractor) for same in zip(*(p[0] for p in parts), strict=True)]
    return Evaluation(
        over_draws(found),
        torch.stack([all_first[i] for i in sorted(all_first)]),
        num_images,
        draws,
        {"images": max(part[2] for part in parts), "features": max(part[3] for part in parts)},
    )


def shards_of(count: int) -> list[range]:
    """Return consecutive ranges of indices, which do not depend on the number of processes."""
    return [range(start, min(start + SHARD, count)) for start in range(0, count, SHARD)]


def _pictures(source: ImageSource, shards: Sequence[range]) -> Iterator[tuple[int, Pictures]]:
    for shard in shards:
        start = shard.start
        for pictures in source.pictures(shard):
            yield start, pictures
            start += len(pictures.pixels)


def _look(seen: list[Seen], start: int, pictures: Pictures, extractor: Extractor) -> None:
    """Add images to the draws that they belong to."""
    size, place = seen[0].num_images, start
    while place < start + len(pictures.pixels):
        draw = place // size
        stop = min(start + len(pictures.pixels), (draw + 1) * size)
        cut = slice(place - start, stop - start)
        labels = None if pictures.labels is None else pictures.labels[cut]
        seen[draw].update(Pictures(pictures.pixels[cut], labels), torch.arange(place, stop) % size, extractor)
        place = stop


def _refuse_few(seen: Sequence[Seen]) -> None:
    """Raise an error for a covariance that cannot have full rank, as soon as the number of features is known."""
    num_images = seen[0].num_images
    for sums in (sums for draw in seen for sums in (draw.pool, draw.spatial)):
        if sums is not None and {"fd", "sfid"} & {*seen[0].metrics} and num_images < len(sums.mean):
            raise UserError(
                f"{num_images:,} images are fewer than the network's {len(sums.mean):,} features, so their "
                f"Fréchet distance is mostly bias: use {len(sums.mean):,} or more, or pass --allow-few, which marks "
                "the number"
            )


def _check(source: ImageSource, metrics: tuple[str, ...], num_images: int, draws: int) -> None:
    require_at_least(2, num_images=num_images)
    require_at_least(1, draws=draws)
    if source.num_images is not None and num_images * draws > source.num_images:
        raise UserError(
            f"{num_images * draws:,} images are requested, but the source has only {source.num_images:,}: use a "
            "smaller --num-images, or fewer --draws"
        )
    if "prdc" in metrics and num_images <= K_DENSITY:
        raise UserError(f"{num_images} images are too few for nearest neighbours up to k = {K_DENSITY}: use more")
