"""Samples and reconstructions of a VAE in one picture: `python -m benchmarks.vae_pictures CHECKPOINT --data FOLDER`.

From top to bottom: samples of the prior; test digits above their reconstructions; decoded samples of q(z|x) for one
digit; an interpolation between two digits; and the four latent dimensions with the largest KL, each from -3 to 3 at the
z of one digit.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from hf_ddpm import HFVAEPipeline
from hf_ddpm.data import ImageData
from hf_ddpm.objectives.elbo import kl_per_dimension
from hf_ddpm.sampling import image_generator, sample_latents

COLUMNS, SEED, GAP = 12, 0, 6


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vae_pictures", description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--data", default="digits", help="folder with test.parquet of digits (default: embedded ones)")
    parser.add_argument("--out", type=Path, default=Path("docs/images/vae.png"))
    options = parser.parse_args(argv)
    pipeline = HFVAEPipeline.from_pretrained(options.checkpoint)
    blocks = pictures(pipeline, test_digits(options.data))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    stacked(blocks).save(options.out)
    print(f"wrote {options.out}")


def test_digits(source: str) -> Tensor:
    """Return the first digits in an order shuffled by the seed, in black and white."""
    split = "train" if source == "digits" else "test"
    data = ImageData(source, split=split, binarize="static")
    return next(data.batches(batch_size=COLUMNS, seed=SEED)).x_0


def pictures(pipeline: HFVAEPipeline, digits: Tensor) -> list[list[Image.Image]]:
    """Return rows of images, as a list for each block."""
    values = torch.linspace(-3, 3, COLUMNS).tolist()
    weights = torch.linspace(0, 1, COLUMNS).tolist()
    dimensions = most_used(pipeline, digits)
    originals = [Image.fromarray(((x[0] + 1) * 127.5).byte().numpy()) for x in digits]
    (drawn,) = pipeline.sample_posterior(digits[:1], COLUMNS, image_generator(SEED, 0))
    traversed = [pipeline.traverse(digits[:1], dimension, values).images for dimension in dimensions]
    return [
        [*sample_latents(pipeline, range(3 * COLUMNS), seed=SEED)],
        [*originals, *pipeline.reconstruct(digits).images],
        drawn,
        [image for (image,) in pipeline.interpolate(digits[:1], digits[1:2], weights)],
        [image for row in traversed for image in row],
    ]


def most_used(pipeline: HFVAEPipeline, digits: Tensor) -> list[int]:
    """Return the four latent dimensions with the largest KL on these digits."""
    with torch.no_grad():
        posterior = pipeline.vae.posterior(digits)
    return (
        kl_per_dimension(posterior.mean, posterior.logvar).mean(dim=0).flatten().argsort(descending=True)[:4].tolist()
    )


def stacked(blocks: list[list[Image.Image]]) -> Image.Image:
    """Stack blocks vertically, with gaps between them and `COLUMNS` images per row."""
    width, height = blocks[0][0].size
    rows = [len(block) // COLUMNS for block in blocks]
    canvas = Image.new("L", (COLUMNS * width, sum(rows) * height + GAP * (len(blocks) - 1)), 128)
    top = 0
    for block, count in zip(blocks, rows, strict=True):
        for i, image in enumerate(block):
            canvas.paste(image, (i % COLUMNS * width, top + i // COLUMNS * height))
        top += count * height + GAP
    return canvas


if __name__ == "__main__":
    main()
