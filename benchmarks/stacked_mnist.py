"""Create Stacked MNIST: three random digits in the channels of an image, whose 1,000 combinations are the modes.

    python -m benchmarks.stacked_mnist --data <folder with train.parquet and test.parquet of MNIST> --out <folder>

Writes train.parquet and test.parquet, each with as many images as there are digits; the seed determines which digits
are combined.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from hf_ddpm.data import ImageData
from hf_ddpm.data.stacked_digits import stack_digits
from hf_ddpm.errors import exit_with_a_sentence

CHUNK = 1000  # the number of images decoded at a time


def main(argv: Sequence[str] | None = None) -> None:
    """Write both splits."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stacked_mnist", description=__doc__)
    parser.add_argument("--data", required=True, help="folder with train.parquet and test.parquet of digits")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    if given.out.exists():
        parser.error(f"--out {given.out} already exists: use a new folder")
    with exit_with_a_sentence():
        stack(given.data, given.out, given.seed)


def stack(data: str, out: Path, seed: int) -> None:
    """Write both splits to a folder, which exists only if it is complete."""
    unfinished = out.with_name(f"{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for number, split in enumerate(("train", "test")):
        digits = ImageData(data, split=split, image_size=28, channels=1, cache="none")
        count = digits.num_images or 0
        grey = torch.cat([digits.pixels(torch.arange(at, min(at + CHUNK, count))) for at in range(0, count, CHUNK)])
        stacked = stack_digits(grey, 2 * seed + number)
        stacked.to_parquet(unfinished / f"{split}.parquet")
        print(f"{out / split}.parquet: {len(stacked):,} images")
    unfinished.rename(out)


if __name__ == "__main__":
    main()
