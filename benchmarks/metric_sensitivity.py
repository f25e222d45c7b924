"""What each metric sees and what it misses: real images, damaged in one way at a time, against other real images.

See docs/evaluation.md.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from benchmarks.options import Options
from benchmarks.report import Result, table
from hf_ddpm.data import ImageData, to_uint8
from hf_ddpm.metrics import (
    InceptionScoreAccumulator,
    density_coverage,
    feature_statistics,
    frechet_distance,
    kernel_distance,
    memorisation,
    precision_recall,
)
from hf_ddpm.metrics.extractors import Extractor, Features, open_extractor

TITLE = "What the metrics see"
ABOUT = """Real training images, as they are and damaged in one way at a time, against the test images, in the features
of the named network; each set has as many images. "Nearest" is the share of samples that are nearer to one of as many
other training images than that one is to the rest. KID stands with its standard deviation over 100 subsets of half of
the images."""
SAMPLES = {"digits": 2000, "cifar10": 1000}
EXTRACTORS = {"digits": "digits", "cifar10": "efficientnet-lite0"}
SHARES = ("precision", "recall", "density", "coverage", "nearest")
COPIED = 5  # one sample in so many


class Images(NamedTuple):
    """pixels: uint8 (N, C, H, W). labels: (N,). training: pixels of as many other images of the training split."""

    pixels: Tensor
    labels: Tensor
    training: Tensor


def blurred(images: Images) -> Tensor:
    """Means over 3x3 pixels."""
    return avg_pool2d(images.pixels.float(), 3, stride=1, padding=1, count_include_pad=False).round().to(torch.uint8)


def noisy(images: Images) -> Tensor:
    """Gaussian noise of 16 grey levels."""
    noise = 16 * torch.randn(images.pixels.shape, generator=torch.Generator().manual_seed(0))
    return (images.pixels + noise).round().clamp(0, 255).to(torch.uint8)


def compressed(images: Images) -> Tensor:
    """JPEG of quality 25, and back."""
    return torch.stack([_as_jpeg(image) for image in images.pixels])


def half_the_classes(images: Images) -> Tensor:
    """Those of classes 0 to 4, each twice where that is needed to have as many."""
    kept = images.pixels[images.labels < 5]
    return kept.repeat(-(-len(images.pixels) // len(kept)), 1, 1, 1)[: len(images.pixels)]


def copied(images: Images) -> Tensor:
    """One in five is a training image."""
    pixels = images.pixels.clone()
    pixels[::COPIED] = images.training[::COPIED]
    return pixels


WAYS: dict[str, Callable[[Images], Tensor]] = {
    "as they are": lambda images: images.pixels,
    "blurred, 3x3 pixels": blurred,
    "noise of 16 grey levels": noisy,
    "JPEG of quality 25": compressed,
    "5 of 10 classes": half_the_classes,
    "1 in 5 is a training image": copied,
}


def measure(options: Options) -> Result:
    names = ["digits"] if options.data is None else [name for name in SAMPLES if folder_of(name, options.data).is_dir()]
    counts = {"digits": 40} if options.quick else SAMPLES | ({} if options.data else {"digits": 500})
    return {"sets": {name: measured(name, options.data, counts[name]) for name in names if name in counts}}


def folder_of(name: str, data: Path) -> Path:
    """Where the images are: `--data` has digits, and a folder cifar10 may stand beside it."""
    return data if name == "digits" else data.parent / name


def measured(name: str, data: Path | None, count: int) -> dict[str, Any]:
    """Every metric of every way to damage `count` images."""
    extractor = open_extractor(EXTRACTORS[name])
    images, reference = load(name, data, count)
    real, training = seen(extractor, reference), seen(extractor, images.training)
    rows = {way: figures(seen(extractor, damage(images)), real.pool, training.pool) for way, damage in WAYS.items()}
    return {"extractor": extractor.conditions, "distance": extractor.distance, "images": count, "ways": rows}


def figures(samples: Features, real: Tensor, training: Tensor) -> dict[str, float]:
    count, logits = len(samples.pool), samples.logits
    assert logits is not None
    score = InceptionScoreAccumulator(count, logits.shape[1])
    score.update(logits, torch.arange(count))
    kid = kernel_distance(samples.pool, real, generator=torch.Generator().manual_seed(0), subset_size=count // 2)
    statistics = (*feature_statistics(samples.pool)[:2], *feature_statistics(real)[:2])
    precision, density = precision_recall(samples.pool, real), density_coverage(samples.pool, real)
    return {
        "distance": frechet_distance(*statistics),
        "kid": kid.mean,
        "kid_standard_deviation": kid.standard_deviation,
        "inception_score": score.score().mean,
        "precision": precision.precision,
        "recall": precision.recall,
        "density": density.density,
        "coverage": density.coverage,
        "nearest": memorisation(samples.pool, training).share,
    }


def load(name: str, data: Path | None, count: int) -> tuple[Images, Tensor]:
    """Samples with other training images, and test images, `count` of each."""
    keywords: dict[str, Any] = {"label_column": "auto"}
    keywords |= {"image_size": 32, "channels": 3} if name == "cifar10" else {}
    source = {} if data is None else {"source": str(folder_of(name, data))}
    train, test = (
        next(ImageData(**source, split=split, **keywords).batches(batch_size=size, seed=0))
        for split, size in (
            ("train" if data else "train[:4500]", 2 * count),
            ("test" if data else "train[4500:]", count),
        )
    )
    assert train.labels is not None
    pixels = to_uint8(train.x_0)
    return Images(pixels[:count], train.labels[:count], pixels[count:]), to_uint8(test.x_0)


def seen(extractor: Extractor, images: Tensor) -> Features:
    parts = [extractor(part) for part in images.split(50)]
    logits = [part.logits for part in parts if part.logits is not None]
    return Features(torch.cat([part.pool for part in parts]), logits=torch.cat(logits))


def _as_jpeg(image: Tensor) -> Tensor:
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()).save(file, "JPEG", quality=25)
    pixels = torch.from_numpy(np.array(Image.open(file)))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def render(result: Result) -> str:
    header = ["", "distance", "KID", "IS", "precision", "recall", "density", "coverage", "nearest"]
    parts = []
    for name, found in result["sets"].items():
        rows = [
            [way, f"{row['distance']:.3g}", f"{row['kid']:.3g} +- {row['kid_standard_deviation']:.2g}"]
            + [f"{row[key]:.2f}" for key in ("inception_score", *SHARES)]
            for way, row in found["ways"].items()
        ]
        parts.append(f"{name}: {found['distance']}, {found['images']:,} images each.\n\n{table(header, rows)}")
    return "\n\n".join(parts)
