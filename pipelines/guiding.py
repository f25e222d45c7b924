"""From the keywords of a call to what guides its walk."""

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
    """What the scheduler's steps take for a batch of these classes.

    Args:
        pipeline: an `HFDDPMPipeline`.
        class_labels: as in a call; a network without classes takes those of the classifier, or none.
        batch_size: B.
        guidance: keywords of `Guidance`. A `classifier_scale` of None is 1 with a classifier and `class_labels`.

    Raises:
        ValueError: labels or guidance that the networks do not have.
    """
    by_classifier, signature = guidance.get("classifier_scale"), pipeline.signature
    if by_classifier is None:
        guidance["classifier_scale"] = float(pipeline.classifier is not None and class_labels is not None)
    unknown = sorted(guidance.keys() - {*GUIDANCE})
    if unknown:
        raise TypeError(f"{unknown[0]!r} is no keyword here; those of guidance are {', '.join(GUIDANCE)}")
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
    """Refuse a gradient at the mean of p(x_{t-1} | x_t) where the walk has no such mean.

    Args:
        pipeline: an `HFDDPMPipeline`.
        step: keywords of the scheduler's steps.
        corrector_steps: of a call.

    Raises:
        ValueError: what it goes with.
    """
    pipeline._needs_own_scheduler("classifier_gradient='mean'")
    if step.get("eta") is not None and step["eta"] == pipeline.config["default_eta"]:
        raise ValueError(
            f"classifier_gradient='mean' goes with Algorithm 2, and this checkpoint samples with its default_eta="
            f"{step['eta']}: take 'x_t', or open it with default_eta=None"
        )
    if step.get("eta") is not None or corrector_steps:
        raise ValueError(
            "classifier_gradient='mean' goes with Algorithm 2, not with eta or corrector_steps: leave them out, or "
            "take 'x_t'"
        )


def _log_probability(pipeline: Any, predict: Predict, labels: Tensor | None) -> LogProbability | None:
    """log p(y | x_t) of the classifier, if it guides; its fit is looked at, as each part may have been assigned."""
    scale, classifier, processor = predict.guidance.classifier_scale, pipeline.classifier, pipeline.image_processor
    if not scale:
        return None
    if classifier is None or labels is None:
        raise ValueError(
            f"classifier_scale={scale} needs a classifier: "
            "HFDDPMPipeline.from_pretrained(..., classifier=NoisyClassifier.from_pretrained(...))"
        )
    check_classifier(classifier, processor, pipeline)
    if pipeline.signature.takes_labels and pipeline.signature.num_classes is None:  # the network counts none
        check_known(classifier, labels)
    passed = (classifier,) if knows_noise(classifier) else (classifier, pipeline.unet)
    if any(weight.is_inference() for part in passed for weight in part.parameters()):
        raise ValueError(
            "the networks were made in torch.inference_mode, where nothing has a gradient: open them outside of it"
        )
    if knows_noise(classifier):
        return of_noisy_images(classifier, labels)

    def image_of(x_t: Tensor, t: int | Tensor) -> Tensor:
        own = None if predict.labels is None else predict.labels.clone()  # made in `torch.inference_mode`, perhaps
        plain = dataclasses.replace(predict, labels=own, reads_variance=False)
        t = t.clone() if isinstance(t, Tensor) else t
        x_0 = predicted_x_0(pipeline.scheduler, plain(x_t.to(pipeline.unet.dtype), t), x_t, t)
        decoded: Tensor = pipeline._space.decoded(x_0)
        return decoded

    return of_clean_images(classifier, processor, labels, image_of)
