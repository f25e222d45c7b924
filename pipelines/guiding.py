"""Construction of guidance from the keywords of a pipeline's call."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hf_ddpm.pipelines.classifiers import (
    LogProbability,
    check_classifier,
    check_known,
    knows_noise,
    of_clean_images,
    of_noisy_images,
    predicted_x_0,
)
from hf_ddpm.pipelines.guidance import GUIDANCE, Guidance
from hf_ddpm.pipelines.network_signature import ClassLabels
from hf_ddpm.pipelines.walk import Guided, Predict


def guided(pipeline: Any, class_labels: ClassLabels, batch_size: int, **guidance: Any) -> Guided:
    """Build the callable that computes the inputs of the scheduler's steps for a batch of these classes.

    Args:
        pipeline: An `HFDDPMPipeline`.
        class_labels: As in a call; for a network without classes, those of the classifier, or none.
        batch_size: B.
        guidance: Keywords of `Guidance`. A `classifier_scale` of None is 1 with a classifier and `class_labels`, else
            0.

    Raises:
        ValueError: If the networks do not support the labels or the guidance.
        TypeError: If a keyword is unknown.
    """
    by_classifier, signature = guidance.get("classifier_scale"), pipeline.signature
    if by_classifier is None:
        guidance["classifier_scale"] = float(pipeline.classifier is not None and class_labels is not None)
    unknown = sorted(guidance.keys() - {*GUIDANCE})
    if unknown:
        raise TypeError(f"{unknown[0]!r} is not a keyword of guidance; the keywords are {', '.join(GUIDANCE)}")
    asked = Guidance(**guidance)
    signature.check_guidance(asked.guidance_scale, f"guidance_scale={asked.guidance_scale}")
    labels = None
    if class_labels is not None or signature.takes_labels or by_classifier:
        labels = pipeline.class_signature.labels(class_labels, batch_size)
    labels = None if labels is None else labels.to(pipeline._execution_device)
    predict = Predict(
        pipeline.unet,
        labels if signature.takes_labels else None,
        pipeline._reads_variance,
        asked,
        signature.null_class,
        signature.num_timesteps,
    )
    return Guided(predict, pipeline.scheduler, _log_probability(pipeline, predict, labels))


def check_mean(pipeline: Any, step: Mapping[str, Any], corrector_steps: int) -> None:
    """Reject a gradient at the mean of p(x_{t-1} | x_t) if sampling has no such mean.

    Args:
        pipeline: An `HFDDPMPipeline`.
        step: The keywords of the scheduler's steps.
        corrector_steps: The number of corrector steps of the call.

    Raises:
        ValueError: If it is not Algorithm 2 without corrector steps.
    """
    pipeline._needs_own_scheduler("classifier_gradient='mean'")
    if step.get("eta") is not None and step["eta"] == pipeline.config["default_eta"]:
        raise ValueError(
            f"classifier_gradient='mean' requires Algorithm 2, but this checkpoint samples with default_eta="
            f"{step['eta']}: use 'x_t', or call pipeline.register_to_config(default_eta=None)"
        )
    if step.get("eta") is not None or corrector_steps:
        raise ValueError(
            "classifier_gradient='mean' requires Algorithm 2, without eta and corrector_steps: omit them, or use 'x_t'"
        )


def _log_probability(pipeline: Any, predict: Predict, labels: Tensor | None) -> LogProbability | None:
    """Return log p(y | x_t) of the classifier, if it guides; it is checked here, as any part may have been assigned."""
    scale, classifier, processor = predict.guidance.classifier_scale, pipeline.classifier, pipeline.image_processor
    if not scale:
        return None
    if classifier is None or labels is None:
        raise ValueError(
            f"classifier_scale={scale} requires a classifier: HFDDPMPipeline.from_pretrained(..., "
            "classifier=NoisyClassifier.from_pretrained(..., subfolder='classifier'))"
        )
    check_classifier(classifier, processor, pipeline)
    if pipeline.signature.takes_labels and pipeline.signature.num_classes is None:  # their number is unknown
        check_known(classifier, labels)
    passed = (classifier,) if knows_noise(classifier) else (classifier, pipeline.unet)
    if any(weight.is_inference() for part in passed for weight in part.parameters()):
        raise ValueError(
            "the networks were created in torch.inference_mode, so they have no gradient: load them outside of it"
        )
    if knows_noise(classifier):
        return of_noisy_images(classifier, labels)

    def image_of(x_t: Tensor, t: int | Tensor) -> Tensor:
        own = None if predict.labels is None else predict.labels.clone()  # they may come from `torch.inference_mode`
        plain = dataclasses.replace(predict, labels=own, reads_variance=False)
        t = t.clone() if isinstance(t, Tensor) else t
        x_0 = predicted_x_0(pipeline.scheduler, plain(x_t.to(pipeline.unet.dtype), t), x_t, t)
        decoded: Tensor = pipeline._space.decoded(x_0)
        return decoded

    return of_clean_images(classifier, processor, labels, image_of)
