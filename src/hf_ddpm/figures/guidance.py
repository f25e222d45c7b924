"""Fidelity against diversity: the same noise at growing scales of guidance (ADM, arXiv 2105.05233, Fig. 3)."""

from collections.abc import Sequence
from typing import Any

import torch

from hf_ddpm.errors import UserError
from hf_ddpm.figures.figure import Figure
from hf_ddpm.figures.grid import labelled_grid, tiles
from hf_ddpm.figures.walks import BATCH_SIZE, decode, generators, noise_of, scheduler_of
from hf_ddpm.pipelines import HFDDPMPipeline
from hf_ddpm.sampling import classes_in_turn

CLASSIFIER_SCALES = (0.0, 1.0, 2.0, 4.0, 8.0)  # 0 is off
FREE_SCALES = (1.0, 1.25, 1.5, 2.0, 4.0)  # 1 is off


def guidance(
    pipeline: HFDDPMPipeline,
    *,
    scales: Sequence[float] | None = None,
    seed: int = 0,
    num_images: int = 8,
    steps: int | None = None,
    spacing: str | None = None,
    eta: float | None = None,
    class_label: int | str | None = None,
) -> Figure:
    """Draw samples with one scale per row, from the same noise: images come nearer to their class, and to each other.

    Args:
        pipeline: The pipeline, with a classifier, or else with a network that was trained with and without classes.
        scales: The scales of the classifier's gradient, or of classifier-free guidance; None uses 0, 1, 2, 4, 8 for the
            former and 1, 1.25, 1.5, 2, 4 for the latter.
        seed: The seed; column i is image i of `hf-ddpm sample` with this seed.
        num_images: The number of images, at most 64.
        steps, spacing, eta, class_label: The options of sampling, as in a call of the pipeline; without `class_label`,
            the classes are used in turn.

    Returns:
        Figure: The tensors scales (S,), labels (num_images,) and samples (S, num_images, C, H, W).

    Raises:
        UserError: If the pipeline has no guidance, or if there are more images than fit.
    """
    scheduler_of(pipeline)
    if num_images > BATCH_SIZE:
        raise UserError(f"{num_images} samples are too many for a readable figure: use at most {BATCH_SIZE}")
    keyword, usual = _guided_by(pipeline)
    shown = tuple(usual if scales is None else scales)
    labels = classes_in_turn(pipeline, range(num_images), class_label)
    walk: dict[str, Any] = {"num_inference_steps": steps, "timestep_spacing": spacing, "eta": eta}
    rows = []
    for scale in shown:
        own = generators(seed, range(num_images))  # new generators, so that the noise is the same in every row
        walk[keyword] = scale
        rows.append(decode(pipeline, noise_of(pipeline, own), own, class_labels=labels, **walk))
    samples = torch.stack(rows)
    names = pipeline.class_signature.id2label or {}
    picture = labelled_grid(
        [tiles(row) for row in samples],
        row_labels=[f"s = {scale:g}" for scale in shown],
        column_labels=[names.get(label, str(label)) for label in labels or ()],
    )
    return Figure(picture, {"scales": torch.tensor(shown), "labels": torch.tensor(labels), "samples": samples})


def _guided_by(pipeline: HFDDPMPipeline) -> tuple[str, Sequence[float]]:
    """Return the name of the scale that is varied, and its default values."""
    if pipeline.classifier is not None:
        return "classifier_scale", CLASSIFIER_SCALES
    if pipeline.signature.null_class is None:
        raise UserError(
            "this model has no guidance: use a classifier, or a network that was trained with --label_column auto "
            "--label_dropout 0.1"
        )
    return "guidance_scale", FREE_SCALES
