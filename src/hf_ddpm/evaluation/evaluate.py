"""Images shared out to processes, looked at once, and measured: the numbers do not depend on who saw what."""

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from hf_ddpm.errors import UserError, require_at_least
from hf_ddpm.evaluation.images import ImageSource, Pictures
from hf_ddpm.evaluation.measure import K_DENSITY, Number, Real, Seen, numbers_of, over_draws
from hf_ddpm.metrics.extractors import Extractor
from hf_ddpm.metrics.reference import require_same_conditions
from hf_ddpm.progress import ProgressBar

SHARD = 256  # images that one process takes at a time, and one file keeps
SHOWN = 64  # on a page


class Evaluation(NamedTuple):
    """What was measured of images.

    Attributes:
        numbers: The figures.
        first: The first images, uint8 (at most 64, C, H, W).
        num_images: Of one draw.
        draws: How many disjoint ones.
        seconds: `images` that it took to make or read all of them and `features` to look at them, on the slowest
            process.
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

    Neither the number of processes nor the batches change a number beyond rounding (1e-6 of it): an image is a function
    of its index, and sums are joined.

    Args:
        source: Of the images 0 to `num_images` times `draws`.
        real: What they are measured against.
        extractor: The network that looks at them.
        metrics: From `check_metrics`.
        num_images: N, of each draw.
        draws: Disjoint ones, whose spread gives each figure its error. A bootstrap of one draw would bias a Fréchet
            distance upwards.
        allow_few: Measure a Fréchet distance of fewer images than features, and mark it.
        accelerator: Of the processes.

    Raises:
        UserError: too few images, real images that do not fit, or images that cannot be looked at.
    """
    _check(source, metrics, num_images, draws)
    accelerator = accelerator or Accelerator(cpu=True)
    shards = shards_of(num_images * draws)[accelerator.process_index :: accelerator.num_processes]
    seen = [Seen(metrics, num_images) for _ in range(draws)]
    first: dict[int, Tensor] = {}
    looking, fits = 0.0, False
    with ProgressBar("images", sum(map(len, shards)), accelerator) as bar:
        for start, pictures in _pictures(source, shards):
            began = time.perf_counter()
            if not fits:  # the same sentence in every process
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
    """Runs of indices, each the same whatever the number of processes."""
    return [range(start, min(start + SHARD, count)) for start in range(0, count, SHARD)]


def _pictures(source: ImageSource, shards: Sequence[range]) -> Iterator[tuple[int, Pictures]]:
    for shard in shards:
        start = shard.start
        for pictures in source.pictures(shard):
            yield start, pictures
            start += len(pictures.pixels)


def _look(seen: list[Seen], start: int, pictures: Pictures, extractor: Extractor) -> None:
    """Hand images to the draws that they belong to."""
    size, place = seen[0].num_images, start
    while place < start + len(pictures.pixels):
        draw = place // size
        stop = min(start + len(pictures.pixels), (draw + 1) * size)
        cut = slice(place - start, stop - start)
        labels = None if pictures.labels is None else pictures.labels[cut]
        seen[draw].update(Pictures(pictures.pixels[cut], labels), torch.arange(place, stop) % size, extractor)
        place = stop


def _refuse_few(seen: Sequence[Seen]) -> None:
    """Refuse a covariance that cannot have full rank, as soon as the number of features is known."""
    num_images = seen[0].num_images
    for sums in (sums for draw in seen for sums in (draw.pool, draw.spatial)):
        if sums is not None and {"fd", "sfid"} & {*seen[0].metrics} and num_images < len(sums.mean):
            raise UserError(
                f"{num_images:,} images are fewer than the network's {len(sums.mean):,} features, and their "
                f"Fréchet distance is mostly bias: take {len(sums.mean):,} or more, or give --allow-few, which marks "
                "the number"
            )


def _check(source: ImageSource, metrics: tuple[str, ...], num_images: int, draws: int) -> None:
    require_at_least(2, num_images=num_images)
    require_at_least(1, draws=draws)
    if source.num_images is not None and num_images * draws > source.num_images:
        raise UserError(
            f"{num_images * draws:,} images are asked for and there are {source.num_images:,}: give a smaller "
            "--num-images, or fewer --draws"
        )
    if "prdc" in metrics and num_images <= K_DENSITY:
        raise UserError(f"{num_images} images are too few for neighbours up to k = {K_DENSITY}: take more")
