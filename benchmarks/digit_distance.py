"""The digit distance of a checkpoint's samples, and of a VAE's reconstructions.

    python -m benchmarks.digit_distance CHECKPOINT --data FOLDER

Images of more than 28 pixels lose their border, which the recipes pad. Writes results/digit_distance/<run>.json.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import pad

from benchmarks.quality_cell import SIDE, digit_pixels, digits, inner, reference
from benchmarks.report import Result, machine, write_json
from hf_ddpm import HFVAEPipeline
from hf_ddpm.checkpoint import load_checkpoint
from hf_ddpm.metrics import FeatureStatistics, digit_score
from hf_ddpm.models.image_size import size_pair
from hf_ddpm.sampling import sample_images, sample_latents
from hf_ddpm.weights import weights_sha256

BATCH, SEED = 100, 0


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.digit_distance", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, help="folder with test.parquet of digits (default: the embedded ones)")
    parser.add_argument("-n", "--num-samples", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=50, help="DDIM steps, of a diffusion model")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/digit_distance"))
    options = parser.parse_args(argv)
    result = measure(options.checkpoint, options.data, options.num_samples, options.steps)
    print(result["samples"], result.get("reconstructions", ""))
    write_json(options.out / f"{options.checkpoint.absolute().parent.name}.json", {"machine": machine(), **result})


def measure(checkpoint: Path, data: Path | None, num_samples: int, steps: int) -> Result:
    """Distances of `num_samples` samples of the seed, and of as many reconstructed test digits."""
    pipeline: Any = load_checkpoint(str(checkpoint))
    pipeline.set_progress_bar_config(disable=True)
    against, settings = reference(data), {"num_samples": num_samples, "seed": SEED}
    if isinstance(pipeline, HFVAEPipeline):
        images = sample_latents(pipeline, range(num_samples), seed=SEED)
        remembered = reconstructions(pipeline, data, num_samples, against)
    else:
        settings |= {"num_inference_steps": steps, "eta": 0.0}
        images = sample_images(
            pipeline, range(num_samples), seed=SEED, batch_size=BATCH, num_inference_steps=steps, eta=0.0
        )
        settings["weights_sha256"] = weights_sha256(pipeline.unet)
        remembered = {}
    return {**settings, "samples": digit_score(digit_pixels(list(images)), against)._asdict(), **remembered}


def reconstructions(pipeline: HFVAEPipeline, data: Path | None, count: int, against: FeatureStatistics) -> Result:
    """Mean images of the mean of q(z|x), their squared error in [-1, 1]^2, and KL(q || p) in nats an image."""
    vae = pipeline.vae
    height, width = size_pair(vae.config["sample_size"])
    border = ((width - SIDE) // 2, (width - SIDE) // 2, (height - SIDE) // 2, (height - SIDE) // 2)
    x_0 = pad(digits(data, "test", count), border, value=-1.0)
    with torch.no_grad():
        posteriors = [vae.posterior(part) for part in x_0.split(BATCH)]
        again = torch.cat([vae.decode(posterior.mean).sample for posterior in posteriors])
    return {
        "weights_sha256": weights_sha256(vae),
        "reconstructions": digit_score(inner(again), against)._asdict(),
        "mean_squared_error": (again - x_0).square().mean().item(),
        "kl_nats": torch.cat([posterior.kl() for posterior in posteriors]).mean().item(),
    }


if __name__ == "__main__":
    main()
