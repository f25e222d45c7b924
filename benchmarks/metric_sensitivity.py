"""The sensitivity of each metric: real images, degraded in one way at a time, against other real images.

See docs/evaluation.md.
"""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from benchmarks.options import Options
from benchmarks.report import Result, table
from benchmarks.scores import digit_source
from hf_ddpm.data import ImageData, to_uint8
from hf_ddpm.evaluation.evaluate import evaluate
from hf_ddpm.evaluation.images import Pictures
from hf_ddpm.evaluation.measure import Real
from hf_ddpm.evaluation.report import to_json
from hf_ddpm.metrics import feature_statistics
from hf_ddpm.metrics.extractors import Extractor, open_extractor
from hf_ddpm.metrics.reference import RealFeatures, Reference

TITLE = "What the metrics detect"
ABOUT = """Real training images, unchanged and degraded in one way at a time, are compared with the test images in the
features of the named network, with the metrics of `hf-ddpm evaluate`; all sets have the same number of images.
"Memorised" is the share of samples that are nearer to one of the same number of other training images than that image
is to the rest. KID is given with its standard deviation over its subsets."""
SAMPLES = {"digits": 2000, "cifar10": 1200}
EXTRACTORS = {"digits": "digits", "cifar10": "efficientnet-lite0"}
METRICS = ("fd", "kid", "is", "prdc", "memorisation")
SHARES = ("precision", "recall", "density", "coverage", "memorised")
COPIED = 5  # one sample in five is a copy
AT_ONCE = 50


class Images(NamedTuple):
    """pixels: uint8 (N, C, H, W). labels: (N,). training: pixels of N other images of the training split."""

    pixels: Tensor
    labels: Tensor
    training: Tensor


def blurred(images: Images) -> Tensor:
    """Average over 3x3 pixels."""
    return avg_pool2d(images.pixels.float(), 3, stride=1, padding=1, count_include_pad=False).round().to(torch.uint8)


def noisy(images: Images) -> Tensor:
    """Add Gaussian noise with a standard deviation of 16 grey levels."""
    noise = 16 * torch.randn(images.pixels.shape, generator=torch.Generator().manual_seed(0))
    return (images.pixels + noise).round().clamp(0, 255).to(torch.uint8)


def compressed(images: Images) -> Tensor:
    """Compress as JPEG with quality 25 and decompress."""
    return torch.stack([_as_jpeg(image) for image in images.pixels])


def half_the_classes(images: Images) -> Tensor:
    """Keep only classes 0 to 4, with repetitions to have equally many images."""
    kept = images.pixels[images.labels < 5]
    return kept.repeat(-(-len(images.pixels) // len(kept)), 1, 1, 1)[: len(images.pixels)]


def copied(images: Images) -> Tensor:
    """Replace one image in five by a training image."""
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
    """Return the folder of the images: `--data` contains digits, and there may be a folder cifar10 next to it."""
    return data if name == "digits" else data.parent / name


def measured(name: str, data: Path | None, count: int) -> dict[str, Any]:
    """Measure every metric for every way to degrade `count` images."""
    extractor = open_extractor(EXTRACTORS[name])
    images, test = load(name, data, count)
    real, training = (seen(extractor, pixels) for pixels in (test, images.training))
    against = Real(Reference(feature_statistics(real.pool), None, extractor.conditions), real, training)
    rows = {}
    for way, damage in WAYS.items():
        found = evaluate(Shown(damage(images)), against, extractor, METRICS, num_images=count, allow_few=True)
        rows[way] = {number["type"]: number for number in to_json(found.numbers)}
    return {"extractor": extractor.conditions, "distance": extractor.distance, "images": count, "ways": rows}


class Shown:
    """An image source for images in memory, uint8 (N, C, H, W)."""

    def __init__(self, pixels: Tensor) -> None:
        self._pixels = pixels
        self.num_images: int | None = len(pixels)
        self.conditions: dict[str, Any] = {}

    def pictures(self, indices: range) -> Iterator[Pictures]:
        for pixels in self._pixels[indices.start : indices.stop].split(AT_ONCE):
            yield Pictures(pixels, None)


def seen(extractor: Extractor, pixels: Tensor) -> RealFeatures:
    """Extract the features of images in memory."""
    pool = torch.cat([extractor(part).pool for part in pixels.split(AT_ONCE)])
    return RealFeatures(pool, torch.arange(len(pool)), None)


def load(name: str, data: Path | None, count: int) -> tuple[Images, Tensor]:
    """Load samples with other training images, and test images, `count` of each."""
    keywords: dict[str, Any] = {"label_column": "auto"}
    keywords |= {"image_size": 32, "channels": 3} if name == "cifar10" else {}
    folder = None if data is None else folder_of(name, data)
    train, test = (
        next(ImageData(**digit_source(folder, split), **keywords).batches(batch_size=size, seed=0))
        for split, size in (("train", 2 * count), ("test", count))
    )
    assert train.labels is not None
    pixels = to_uint8(train.x_0)
    return Images(pixels[:count], train.labels[:count], pixels[count:]), to_uint8(test.x_0)


def _as_jpeg(image: Tensor) -> Tensor:
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()).save(file, "JPEG", quality=25)
    pixels = torch.from_numpy(np.array(Image.open(file)))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def render(result: Result) -> str:
    header = ["", "distance", "KID", "IS", "precision", "recall", "density", "coverage", "memorised"]
    parts = []
    for name, found in result["sets"].items():
        rows = []
        for way, numbers in found["ways"].items():
            (distance, *_), kid = numbers.values(), numbers["kid"]
            row = [way, f"{distance['value']:.3g}", f"{kid['value']:.3g} +- {kid['standard_deviation']:.2g}"]
            rows.append([*row, *(f"{numbers[key]['value']:.2f}" for key in ("inception_score", *SHARES))])
        parts.append(f"{name}: {found['distance']}, {found['images']:,} images each.\n\n{table(header, rows)}")
    return "\n\n".join(parts)
