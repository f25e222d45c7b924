"""Distances of images from their targets: DDPM's Figure 10, DDIM's Figure 5 and Table 2, with their numbers."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from hf_ddpm.figures.figure import Figure
from hf_ddpm.figures.grid import labelled_grid, stacked, tiles, transposed
from hf_ddpm.figures.plots import curve, plot, require_matplotlib
from hf_ddpm.figures.walks import (
    ClassLabels,
    checked,
    decode,
    evenly,
    generators,
    grey_levels,
    levels,
    nearest_visited,
    noise_of,
    one_class_each,
    parts,
    scheduler_of,
    trajectory,
    visited,
)
from hf_ddpm.metrics import digit_score, digit_statistics
from hf_ddpm.pipelines import HFDDPMPipeline
from hf_ddpm.sampling import classes_in_turn

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CONSISTENCY_STEPS = (5, 10, 20, 50, 100)  # and T
RECONSTRUCTION_STEPS = (10, 20, 50, 100, 200, 500, 1000)
# DDIM, Table 2: CIFAR-10 test set, mean squared error per dimension, images in [0, 1], rounded to 1e-4
PAPER_ERRORS = {10: 0.014, 20: 0.0065, 50: 0.0023, 100: 0.0009, 200: 0.0004, 500: 0.0001, 1000: 0.0001}
MOMENTS = 21  # the number of timesteps at which x0-distance measures
SHOWN = 6  # the number of images that `reconstruction` shows


def x0_distance(
    pipeline: HFDDPMPipeline,
    training_images: Tensor | None = None,
    *,
    seed: int = 0,
    num_images: int = 64,
    steps: int | None = None,
    eta: float | None = None,
    class_label: int | str | None = None,
) -> Figure:
    """Plot how the image emerges: the x_0 predicted at t against the reverse step T - t (DDPM, Fig. 10 and 6).

    The plot shows its distance to the final sample, as the RMSE on 0..255, and for 28x28 digits, if real ones are
    given, the digit distance of the predictions, for which the paper uses their FID.

    Args:
        training_images: Real digits (N, 1, 28, 28), or None. Other images have no digit distance and are an error.
        num_images: The number of samples; 1,000 for digit distances that can be compared with others.

    Returns:
        Figure: The tensors t (K,), rmse (K,) and final (num_images, C, H, W); the numbers t, rmse and, with training
        images, digit_distance.
    """
    require_matplotlib()
    moments = nearest_visited(visited(pipeline, steps), levels(pipeline, evenly(MOMENTS)))
    reference = None if training_images is None else digit_statistics(training_images)
    squared, seen_x_0, final = torch.zeros(len(moments)), [], []
    for part in parts(num_images):
        rows = range(num_images)[part]
        sampling: dict[str, Any] = {"steps": steps, "keep": moments, "eta": eta, "class_label": class_label}
        seen = trajectory(pipeline, rows, seed, **sampling)
        squared += (seen.x_0.clamp(-1, 1) - seen.sample).square().flatten(2).mean(dim=2).sum(dim=1)
        seen_x_0.append(seen.x_0 if reference is not None else seen.x_0[:0])
        final.append(seen.sample)
    rmse = grey_levels(squared / num_images)
    numbers: dict[str, Any] = {"t": seen.t, "rmse": rmse.tolist(), "num_images": num_images}
    if reference is not None:
        numbers["digit_distance"] = [digit_score(x_0, reference).distance for x_0 in torch.cat(seen_x_0, dim=1)]
    sentence = ", ".join(f"RMSE {rmse[k]:.1f} at t = {seen.t[k]}" for k in (0, len(moments) // 2, -1))
    found = {"t": torch.tensor(seen.t), "rmse": rmse, "final": torch.cat(final)}
    return Figure(_emergence(numbers, len(scheduler_of(pipeline))), found, numbers, sentence)


def ddim_consistency(
    pipeline: HFDDPMPipeline,
    *,
    seed: int = 0,
    num_images: int = 6,
    spacing: str = "trailing",
    class_label: int | str | None = None,
) -> Figure:
    """Decode the same x_T with different numbers of steps and eta = 0: the images differ only in detail (DDIM, Fig. 5).

    Args:
        seed: The seed; row i starts from the noise of image i of `hf-ddpm sample` with this seed.
        spacing: The spacing of the timesteps. `trailing` always starts at T - 1, the level of x_T.

    Returns:
        Figure: The tensor images (K, num_images, C, H, W); the numbers steps (K,), of which the last is T, and `rmse`,
        the RMSE to the image with T steps on 0..255.
    """
    scheduler = scheduler_of(pipeline)
    counts = [*(count for count in CONSISTENCY_STEPS if count < len(scheduler)), len(scheduler)]
    x_T = noise_of(pipeline, generators(seed, range(num_images)))
    labels = classes_in_turn(pipeline, range(num_images), class_label)
    sampling: dict[str, Any] = {"timestep_spacing": spacing, "eta": 0.0, "class_labels": labels}
    images = torch.stack([decode(pipeline, x_T, None, num_inference_steps=count, **sampling) for count in counts])
    squared = (images - images[-1]).square().flatten(2).mean(dim=2)  # (K, num_images)
    rmse = grey_levels(squared.mean(dim=1)).tolist()
    picture = labelled_grid(
        transposed([tiles(x) for x in images]),
        column_labels=[f"S = {count}" for count in counts],
        captions=[[f"{value:.1f}" for value in row] for row in grey_levels(squared).T.tolist()],
    )
    sentence = "RMSE " + ", ".join(f"{error:.1f} at S = {count}" for count, error in zip(counts, rmse, strict=True))
    return Figure(picture, {"images": images}, {"steps": counts, "rmse": rmse}, sentence)


def reconstruction(
    pipeline: HFDDPMPipeline,
    images: Tensor,
    *,
    spacing: str | None = None,
    class_labels: ClassLabels = None,
) -> Figure:
    """Encode images to x_T and decode them with eta = 0, in S steps each way, and measure the error (DDIM, Table 2).

    Decoding is measured twice: without clipping of the x_0 prediction, which undoes `invert` step by step because
    `invert` does not clip either, and with the clipping of the checkpoint's scheduler.

    Args:
        images: Images (B, C, H, W), uint8, in [0, 1] or in [-1, 1].
        spacing: The spacing of the timesteps, by default that of the checkpoint.
        class_labels: One class for all images, or one for each image, for a network with classes.

    Returns:
        Figure: The tensor images (K, B, C, H, W), decoded without clipping; the numbers steps (K,), and the mean
        squared error per dimension for images in [0, 1], `mse` without and `mse_clipped` with the checkpoint's
        clipping.
    """
    require_matplotlib()
    scheduler, x_0 = scheduler_of(pipeline), checked(pipeline, images)
    free: Any = type(scheduler).from_config(scheduler.config, clip_sample=False, thresholding=False)
    mirror = HFDDPMPipeline(pipeline.unet, free, null_class=pipeline.signature.null_class)
    counts = [count for count in RECONSTRUCTION_STEPS if count <= len(scheduler)] or [len(scheduler)]
    classes, unclipped, clipped = one_class_each(pipeline, class_labels, len(x_0)), [], []
    for count in counts:
        walk: dict[str, Any] = {"num_inference_steps": count, "timestep_spacing": spacing}
        encoded = []
        for part in parts(len(x_0)):
            labels = None if classes is None else classes[part]
            encoded.append(mirror.invert(x_0[part] / 2 + 0.5, class_labels=labels, **walk))  # images, in [0, 1]
        x_T = torch.cat(encoded)
        walk |= {"eta": 0.0, "class_labels": classes}
        unclipped.append(decode(mirror, x_T, None, **walk))
        clipped.append(decode(pipeline, x_T, None, **walk))
    there = x_0.float().cpu()
    numbers: dict[str, Any] = {"steps": counts, "num_images": len(there)}
    for name, decoded in (("mse", unclipped), ("mse_clipped", clipped)):
        numbers[name] = [float((back - there).square().mean() / 4) for back in decoded]
    errors = zip(counts, numbers["mse"], strict=True)
    sentence = "error " + ", ".join(f"{error:.2g} at S = {count}" for count, error in errors)
    picture = _reconstructions(there, unclipped, numbers)
    return Figure(picture, {"images": torch.stack(unclipped)}, numbers, sentence)


def _emergence(numbers: dict[str, Any], num_train: int) -> Image.Image:
    """Draw the panels of `x0_distance`."""
    reverse_steps = [num_train - t for t in numbers["t"]]
    axis: dict[str, Any] = {"x": reverse_steps, "x_label": "reverse step T - t", "marker": "."}
    panels = [curve(y=numbers["rmse"], title="x_0 prediction to final sample", y_label="RMSE, 0..255", **axis)]
    if "digit_distance" in numbers:
        title = f"x_0 predictions to real digits, n = {numbers['num_images']}"
        panels.append(curve(y=numbers["digit_distance"], title=title, y_label="digit distance", log="y", **axis))
    return plot(panels)


def _reconstructions(there: Tensor, decoded: list[Tensor], numbers: dict[str, Any]) -> Image.Image:
    """Draw some images beside their reconstructions, with the errors below."""
    columns = [tiles(x[:SHOWN]) for x in (there, *decoded)]
    labels = ["image", *(f"S = {count}" for count in numbers["steps"])]
    return stacked(
        labelled_grid(transposed(columns), column_labels=labels, wide_gaps=[1]), plot([_errors(numbers)], width=5.5)
    )


def _errors(numbers: dict[str, Any]) -> "Callable[[Axes], None]":
    """Return the plot panel of `reconstruction`."""
    known = {"as the checkpoint clips": (numbers["steps"], numbers["mse_clipped"])}
    known["CIFAR-10 in the paper"] = (list(PAPER_ERRORS), list(PAPER_ERRORS.values()))
    return curve(
        numbers["steps"], numbers["mse"], label="x_0 not clipped", also=[(name, *xy) for name, xy in known.items()],
        title=f"Reconstruction, {numbers['num_images']} images", x_label="S", y_label="MSE per dimension, [0, 1]",
        log="xy", marker=".",
    )  # fmt: skip
