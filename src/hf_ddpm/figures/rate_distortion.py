"""Rate and distortion over reverse time (DDPM, Fig. 5): how well a receiver of x_T, x_{T-1}, ... knows the image."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_ddpm.errors import UserError
from hf_ddpm.figures.figure import Figure
from hf_ddpm.figures.plots import curve, plot, require_matplotlib
from hf_ddpm.figures.walks import ClassLabels, checked, one_class_each, scheduler_of
from hf_ddpm.likelihood import evaluate, grid_images
from hf_ddpm.likelihood.report import diffusion_report
from hf_ddpm.pipelines import HFDDPMPipeline
from hf_ddpm.weights import weights_sha256


def rate_distortion(
    pipeline: HFDDPMPipeline,
    images: Tensor | None = None,
    *,
    likelihood: Mapping[str, Any] | None = None,
    seed: int = 0,
    class_labels: ClassLabels = None,
    bit_depth: int = 8,
) -> Figure:
    """Plot distortion and rate against the reverse step, and one against the other.

    The distortion at t is the RMSE of the x_0 prediction on 0..255; the rate is the number of bits per dimension sent
    until then, which are the terms of the variational bound above t.

    Args:
        images: At least 256 images (B, C, H, W), uint8, in [0, 1] or in [-1, 1]; each needs T network calls.
        likelihood: The JSON of `hf-ddpm likelihood` for this checkpoint, instead of images.
        seed: The seed of the noise.
        class_labels: One class for all images, or one for each image, for a network with classes.
        bit_depth: The bit depth of the images, whose values must be levels of this depth.

    Returns:
        Figure: The tensors rate and rmse (T,), from t = 1 upwards; the numbers are the codelength, split at t = 1.

    Raises:
        UserError: If neither or both of images and likelihood are given, or if the likelihood is of another checkpoint
            or has no bound.
    """
    require_matplotlib()
    if (images is None) == (likelihood is None):
        raise UserError(
            "rate-distortion needs either images or the JSON of hf-ddpm likelihood: pass --data or --likelihood"
        )
    found = likelihood if images is None else _measured(pipeline, images, seed, class_labels, bit_depth)
    weights = weights_sha256(pipeline.unet)
    if found is None or "bound" not in found:
        raise UserError("the likelihood file has no variational bound: run hf-ddpm likelihood with --method bound")
    if found["weights_sha256"] != weights:
        raise UserError(
            f"the likelihood file is for the weights {found['weights_sha256'][:12]}, but those of the checkpoint are "
            f"{weights[:12]}: run hf-ddpm likelihood on this checkpoint"
        )
    return _drawn(found, len(scheduler_of(pipeline)))


def _measured(
    pipeline: HFDDPMPipeline, images: Tensor, seed: int, class_labels: ClassLabels, bit_depth: int
) -> dict[str, Any]:
    """Measure the bound and return its report."""
    x_0 = checked(pipeline, images).cpu()
    classes, scheduler = one_class_each(pipeline, class_labels, len(x_0)), scheduler_of(pipeline)
    grid = grid_images(x_0, bit_depth=bit_depth, labels=None if classes is None else torch.tensor(classes))
    likelihood = evaluate(
        pipeline.unet, scheduler, grid, seed=seed, method="bound", null_class=pipeline.signature.null_class
    )
    return diffusion_report(likelihood, pipeline.unet, scheduler)


def _drawn(found: Mapping[str, Any], num_train: int) -> Figure:
    known, split = found["bound"]["rate_distortion"], found["bound"]["codelength"]
    rate, rmse = known["rate"], known["rmse"]
    axis: dict[str, Any] = {"x": [num_train - 1 - t for t in known["t"]], "x_label": "reverse step T - t"}
    picture = plot(
        [
            curve(y=rmse, title="Distortion", y_label="RMSE, 0..255", **axis),
            curve(y=rate, title="Rate", y_label="bits/dim", **axis),
            curve(rate, rmse, title=f"n = {found['n']}", x_label="rate, bits/dim", y_label="RMSE, 0..255"),
        ],
        width=3.6,
    )
    sentence = "rate {rate:.3f} + distortion {distortion:.3f} bits/dim, RMSE {rmse:.2f} of 255".format(**split)
    return Figure(
        picture, {"rate": torch.tensor(rate), "rmse": torch.tensor(rmse)}, {"n": found["n"], **split}, sentence
    )
