"""The digit distance of a pipeline's samples, measured like `hf-ddpm evaluate` does."""

from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.report import Result
from hf_ddpm.data import ImageData
from hf_ddpm.evaluation.evaluate import evaluate
from hf_ddpm.evaluation.images import Drawn
from hf_ddpm.evaluation.measure import Real
from hf_ddpm.metrics.digits import SIDE
from hf_ddpm.metrics.extractors import DIGITS, open_extractor
from hf_ddpm.metrics.reference import Reference, reference_of
from hf_ddpm.sampling import sample_images

BATCH = 100
EMBEDDED = {"train": "train[:4500]", "test": "train[4500:]"}  # used if no folder of MNIST is given


def digit_source(folder: Path | None, split: str) -> dict[str, str]:
    """Return the source of real digits of a split, as arguments of `ImageData` and keys of a recipe's `data`."""
    return {"source": "digits", "split": EMBEDDED[split]} if folder is None else {"source": str(folder), "split": split}


def digit_data(folder: Path | None, split: str, side: int = SIDE) -> ImageData:
    """Open real digits of the split train or test, with a black border if the images are larger than the digits."""
    return ImageData(**digit_source(folder, split), image_size=side, resize="pad")


def digits(folder: Path | None, split: str, count: int | None = None) -> Tensor:
    """Load the pixels (N, 1, 28, 28) in [-1, 1] of digits, shuffled."""
    data = digit_data(folder, split)
    return next(data.batches(batch_size=count or data.num_images or 1, seed=0)).x_0


def reference(folder: Path | None, side: int = SIDE) -> Reference:
    """Return the statistics of the digits that no arm is trained on."""
    return reference_of(digit_data(folder, "test", side), open_extractor(DIGITS))


def digit_scores(pipeline: Any, num_samples: int, against: Reference, **walk: Any) -> tuple[Result, Tensor]:
    """Measure the distance and share of samples; also return the first 64 of them, uint8 (64, 1, H, W).

    Args:
        pipeline: The pipeline that draws the samples; image i depends only on its index.
        num_samples: The number of samples.
        against: The reference, see `reference`.
        walk: The keyword arguments of `sample_images`.

    Raises:
        UserError: If samples are not finite.
    """
    pipeline.set_progress_bar_config(disable=True)
    source = Drawn(pipeline, sample_images, seed=0, batch_size=BATCH, keywords=walk)
    found = evaluate(source, Real(against), open_extractor(DIGITS), ("fd",), num_images=num_samples, allow_few=True)
    distance, share = found.numbers
    return {"distance": distance.value, "share": share.value, "num_samples": num_samples}, found.first
