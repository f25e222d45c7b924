"""`hf-ddpm sample` and `hf-ddpm likelihood` for a VAE."""

import argparse
from typing import TYPE_CHECKING, Any

from hf_ddpm.commands.kind_options import KindCommand, Measurement, option
from hf_ddpm.commands.options import cropping, cut_of_training, on_device, require_packages, require_positive
from hf_ddpm.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from hf_ddpm.data import ImageData
    from hf_ddpm.models.vae import HFVAE
    from hf_ddpm.pipelines import HFVAEPipeline


def _keywords(options: argparse.Namespace, pipeline: "HFVAEPipeline") -> dict[str, Any]:
    """Return the keyword arguments of `sample_latents`."""
    return {"sample_pixels": options.pixels}


def _measure(
    options: argparse.Namespace, pipeline: "HFVAEPipeline", accelerator: "Accelerator", device: str | None
) -> Measurement:
    """Measure the importance-sampled likelihood of the images, and the parts of the ELBO."""
    from hf_ddpm.likelihood import draw_images, evaluate_vae
    from hf_ddpm.likelihood.importance import draws_at_once
    from hf_ddpm.likelihood.vae_report import draw_latents, vae_report, vae_table

    require_packages("the picture of a VAE's latents", "matplotlib")
    binarisation = _binarisation(options, pipeline.vae.config["likelihood"])
    vae = on_device(pipeline, device).vae
    with accelerator.main_process_first():  # which may have to download the data
        data = _open(options, vae, binarisation)
    images = draw_images(data, options.num_images, options.seed)
    options.batch_size = options.batch_size or draws_at_once(images)
    likelihood = evaluate_vae(
        vae,
        images,
        num_samples=options.num_samples,
        seed=options.seed,
        batch_size=options.batch_size,
        cross_entropy=options.binarize == "none",
        accelerator=accelerator,
    )

    def report_of(**about: Any) -> dict[str, Any]:
        return vae_report(likelihood, vae, **about, binarisation=binarisation)

    return Measurement(data, report_of, vae_table, draw_latents)


def _check_likelihood(options: argparse.Namespace) -> None:
    """Reject options that are invalid for every checkpoint."""
    if options.num_samples is not None:
        require_positive(options, "num_samples")
    if options.binarize_seed is not None and not 0 <= options.binarize_seed < 2**63:
        raise UserError(f"--binarize-seed {options.binarize_seed} must be from 0 to {2**63 - 1}")


def _binarisation(options: argparse.Namespace, likelihood: str) -> dict[str, Any] | None:
    """Return how the images are binarised; None for a likelihood of grey values."""
    if likelihood != "bernoulli":
        for name in ("binarize", "binarize_seed"):
            if getattr(options, name) is not None:
                raise UserError(
                    f"--{name.replace('_', '-')} needs a VAE with likelihood='bernoulli', and {options.checkpoint!r} "
                    f"has likelihood={likelihood!r}: leave the option out"
                )
        return None
    if options.binarize == "none":
        if options.binarize_seed is not None:
            raise UserError(f"--binarize-seed {options.binarize_seed} has no effect with --binarize none: leave it out")
        return {"kind": "none"}
    return {"kind": "static", "seed": options.binarize_seed or 0}


def _open(options: argparse.Namespace, vae: "HFVAE", binarisation: dict[str, Any] | None) -> "ImageData":
    """Open the data with the VAE's size and channels, cropped and resized as in training, binarised if requested."""
    from hf_ddpm.data import ImageData
    from hf_ddpm.models.image_size import size_pair

    if options.label_column != "auto":
        raise UserError(f"--label-column {options.label_column} is not supported for a VAE: leave the option out")
    settings = cut_of_training(options.checkpoint) | cropping(options)
    if binarisation is not None and binarisation["kind"] == "static":
        settings |= {"binarize": "static", "binarize_seed": binarisation["seed"]}
    return ImageData(
        options.data,
        split=options.split,
        image_size=size_pair(vae.config["sample_size"]),
        channels=vae.config["in_channels"],
        cache="none",
        **settings,
    )


SAMPLE = KindCommand(
    _keywords,
    (option("--pixels", default=False, action="store_true", help="sample from p(x|z) instead of its mean image"),),
    refusal="{flag} is only for VAEs, and {checkpoint!r} contains a {kind}: leave it out",
)
LIKELIHOOD = KindCommand(
    _measure,
    (
        option(
            "--num-samples",
            default=200,
            type=int,
            metavar="K",
            help="number of importance samples per image (default: 200)",
        ),
        option(
            "--binarize",
            choices=("static", "none"),
            help="for a Bernoulli VAE: binarise each image once (static, the default), or measure the cross-entropy of "
            "grey values (none)",
        ),
        option("--binarize-seed", type=int, help="seed of the static binarisation (default: 0)"),
    ),
    check=_check_likelihood,
)
