"""Classifiers for guidance: log p(y | x_t) of a classifier of noisy images, or of one that sees the predicted x_0."""

import reprlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from hf_ddpm.models.image_size import size_pair
from hf_ddpm.pipelines.guidance import x_0_of
from hf_ddpm.pipelines.image_processors import check_processor, prepared
from hf_ddpm.pipelines.network_signature import NetworkSignature
from hf_ddpm.schedulers.scheduling_hf_ddpm import HFDDPMScheduler

NOISE_SCHEDULE = "noise_schedule"  # a key in the config of a classifier that was trained on noisy images
UNNAMED = "LABEL_{}"  # the name that transformers gives a class without a name
SCALES_DIFFER = 0.05  # the relative difference of one VAE's scales, measured on two samples of the same images
LogProbability = Callable[[Tensor, int | Tensor], Tensor]  # of (x_t, t): (B, C, H, W) to (B,)


def knows_noise(classifier: Any) -> bool:
    """Return whether a classifier takes (x_t, t), like `NoisyClassifier`; those in `transformers` take clean images."""
    return NOISE_SCHEDULE in _config(classifier)


def classes_of(classifier: Any) -> tuple[int, dict[int, str] | None]:
    """Return K of a classifier, and the names of its classes; None if they have only numbers."""
    config = _config(classifier)
    count = config["num_classes"] if knows_noise(classifier) else config["num_labels"]
    names = {int(number): name for number, name in (config.get("id2label") or {}).items()}
    unnamed = names == {number: UNNAMED.format(number) for number in names}
    return int(count), None if unnamed else dict(sorted(names.items()))


def of_noisy_images(classifier: nn.Module, labels: Tensor) -> LogProbability:
    """Return the function log p(y | x_t), (B,) float32, from `classifier(x_t, t).logits`; `labels` is y, (B,)."""

    def log_probability(x_t: Tensor, t: int | Tensor) -> Tensor:
        t = t.clone() if isinstance(t, Tensor) else t  # it may come from `torch.inference_mode`
        logits = classifier(x_t.to(_dtype(classifier)), t).logits  # (B, K)
        return _of_class(logits, labels)

    return log_probability


def of_clean_images(
    classifier: nn.Module, processor: Any, labels: Tensor, image_of: Callable[[Tensor, int | Tensor], Tensor]
) -> LogProbability:
    """Return the function log p(y | x_0(x_t)), (B,) float32, for a `transformers` classifier of clean images.

    The gradient passes through the network that predicts x_0, which costs a second call of it and a backward pass.

    Args:
        classifier: The classifier, called as `classifier(pixel_values=...).logits`.
        processor: Its image processor, whose size, mean and standard deviation are applied differentiably.
        labels: y, (B,).
        image_of: A function that maps (x_t, t) to the predicted images, about in [-1, 1].
    """

    def log_probability(x_t: Tensor, t: int | Tensor) -> Tensor:
        pixels = prepared(image_of(x_t, t), processor)
        logits = classifier(pixel_values=pixels.to(_dtype(classifier))).logits  # (B, K)
        return _of_class(logits, labels)

    return log_probability


def predicted_x_0(scheduler: Any, output: Tensor, x_t: Tensor, t: int | Tensor) -> Tensor:
    """Return the x_0 that a network's output (C channels) implies, shaped as `x_t`, for a scheduler with alpha_bar."""
    if isinstance(scheduler, HFDDPMScheduler):
        return scheduler.predict_x_0(output, x_t, t)
    return x_0_of(output, x_t, alpha_bar_at(scheduler, t), scheduler.config["prediction_type"])


def check_is_classifier(classifier: Any, processor: Any) -> None:
    """Reject anything that is not a classifier, and an image classifier without its image processor.

    Raises:
        ValueError: If it is; the message says what to pass.
    """
    kind, config = type(classifier).__name__, getattr(classifier, "config", None)
    if isinstance(classifier, DiffusionPipeline):
        raise ValueError(f"classifier of type {kind} is a pipeline: pass the network in it, its .classifier")
    of_transformers = isinstance(classifier, nn.Module) and not isinstance(config, Mapping) and config is not None
    if not of_transformers and not (isinstance(classifier, nn.Module) and config and NOISE_SCHEDULE in config):
        raise ValueError(
            f"classifier of type {kind} must be a NoisyClassifier, or an image classifier from transformers together "
            "with its image_processor"
        )
    if of_transformers and not callable(getattr(processor, "to_dict", None)):
        raise ValueError(
            f"classifier of type {kind} classifies clean images: pass its image_processor too, "
            "AutoImageProcessor.from_pretrained(...)"
        )


def check_classifier(classifier: Any, processor: Any, pipeline: Any) -> None:
    """Reject a classifier that does not fit the images, the noise and the classes of the pipeline.

    Args:
        classifier: A classifier of noisy images, which must fit x_t, or an image classifier from `transformers`.
        processor: The image processor of the second kind.
        pipeline: The `HFDDPMPipeline`, whose network, scheduler and VAE it must fit.

    Raises:
        ValueError: If something does not fit; the message has both values.
    """
    check_is_classifier(classifier, processor)
    signature: NetworkSignature = pipeline.signature
    if knows_noise(classifier):
        _check_space(_config(classifier), pipeline.vae)
        _check_noisy(_config(classifier), signature, pipeline.scheduler)
    elif pipeline.image_channels not in (1, 3) or _config(classifier).get("num_channels", 3) != 3:
        raise ValueError(
            f"num_channels is {_config(classifier).get('num_channels', 3)} for the classifier and "
            f"{pipeline.image_channels} for the images: it must be 3 for the classifier, and 1 or 3 for the images"
        )
    else:
        check_processor(processor, signature.size if pipeline.vae is None else None)
    count, names = classes_of(classifier)
    if signature.num_classes is not None and count != signature.num_classes:
        one_more = signature.null_class is None and count == signature.num_classes - 1
        undeclared = f', or pass null_class={count} if the network\'s last class stands for "no label"'
        raise ValueError(
            f"the classifier has {count} classes, but the network has {signature.num_classes}: use one that was "
            f"trained with the same labels{undeclared if one_more else ''}"
        )
    own = signature.id2label
    if signature.takes_labels and names and own:
        wrong = [number for number in sorted(names.keys() & own.keys()) if names[number] != own[number]]
        if wrong:
            there, here = names[wrong[0]], own[wrong[0]]
            raise ValueError(
                f"class {wrong[0]} is {there!r} for the classifier, but {here!r} for the network: use a classifier "
                "that was trained with the same labels"
            )


def check_known(classifier: Any, labels: Tensor) -> None:
    """Reject classes that the classifier does not have.

    Args:
        classifier: The classifier.
        labels: Integers, (B,).

    Raises:
        ValueError: If there are any; the message names the allowed ones.
    """
    count, _ = classes_of(classifier)
    if not ((labels >= 0) & (labels < count)).all():
        given = f"{int(labels.min())}..{int(labels.max())}"
        raise ValueError(f"class_labels {given} must lie within 0..{count - 1}, the classifier's classes")


def _check_space(config: Mapping[str, Any], vae: Any) -> None:
    """Reject a classifier of pixels for a network of latents, and one of latents for a network of pixels."""
    trained, walked = ("pixels" if there is None else "latents" for there in (config.get("latents"), vae))
    if trained != walked:
        raise ValueError(
            f"the classifier was trained on {trained}, but the network generates {walked}: train a classifier "
            + ("without a 'latents' block" if vae is None else "with the 'latents' block of the network's recipe")
        )
    if vae is None:
        return
    its, own = config["latents"], {"class": type(vae).__name__, "scaling_factor": vae.config["scaling_factor"]}
    ratio = its["scaling_factor"] / own["scaling_factor"]
    if its["class"] != own["class"] or not 1 - SCALES_DIFFER < ratio < 1 + SCALES_DIFFER:
        raise ValueError(
            f"the classifier was trained on the latents of {its}, but the network uses another VAE, {own}: use a "
            "classifier with the same VAE"
        )


def _check_noisy(config: Mapping[str, Any], signature: NetworkSignature, scheduler: Any) -> None:
    if config["in_channels"] != signature.channels:
        raise ValueError(
            f"the classifier has in_channels={config['in_channels']}, but the network has {signature.channels}: use a "
            "classifier that was trained on the same images"
        )
    if signature.size is not None and size_pair(config["sample_size"]) != signature.size:
        raise ValueError(
            f"the classifier has the sample size {size_pair(config['sample_size'])}, but the network has "
            f"{signature.size}: use a classifier that was trained at the same size"
        )
    if config[NOISE_SCHEDULE] is None:
        raise ValueError(
            "the classifier's config does not contain the noise schedule of its training: set its noise_schedule, such "
            "as {'beta_schedule': 'linear', 'num_train_timesteps': 1000}"
        )
    its, own = noise_process(config[NOISE_SCHEDULE]).alphas_cumprod, alphas_cumprod_of(scheduler)
    if its.shape != own.shape or not torch.allclose(its, own, rtol=1e-4, atol=1e-7):
        shown = reprlib.repr({key: value for key, value in config[NOISE_SCHEDULE].items() if value is not None})
        raise ValueError(
            f"the classifier was trained with another noise schedule than the network ({shown}): train a classifier "
            "with the 'scheduler' block of the network's recipe"
        )


def noise_process(noise_schedule: Mapping[str, Any]) -> HFDDPMScheduler:
    """Return q(x_t | x_0) for a classifier's `noise_schedule`, which does not determine predictions or timesteps."""
    return HFDDPMScheduler(**{**noise_schedule, "prediction_type": "sample", "timestep_spacing": "trailing"})


def alphas_cumprod_of(scheduler: Any) -> Tensor:
    """Return alpha_bar of a scheduler, (T,) float64.

    Raises:
        ValueError: If the solver has none, so that the effect of a score on its output is unknown.
    """
    found = getattr(scheduler, "alphas_cumprod", None)
    if found is None:
        raise ValueError(
            f"{type(scheduler).__name__} has no alphas_cumprod, which scales a classifier's gradient: use "
            "HFDDPMScheduler, or a solver such as UniPCMultistepScheduler"
        )
    return torch.as_tensor(found, dtype=torch.float64, device="cpu")


def alpha_bar_at(scheduler: Any, t: int | Tensor) -> float:
    """Return alpha_bar at a timestep, which may lie between two integers."""
    alpha_bars, level = alphas_cumprod_of(scheduler), float(t)
    below, last = int(level), len(alpha_bars) - 1
    if not 0 <= level <= last:
        raise ValueError(f"timestep {t} must lie in [0, {last}]")
    if level == last and scheduler.config.get("rescale_betas_zero_snr"):
        return 0.0  # some solvers have a small number instead
    if level == below:
        return float(alpha_bars[below])
    ends = (1 / alpha_bars[below : below + 2] - 1).sqrt()  # Euler's solver interpolates sigma = sqrt((1 - abar) / abar)
    return 1 / (1 + float(torch.lerp(ends[0], ends[1], level - below)) ** 2)


def _of_class(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the log-probability of each image's class, (B,) float32, from logits (B, K)."""
    return log_softmax(logits.float(), dim=1).gather(1, labels.clone().unsqueeze(1)).squeeze(1)


def _dtype(network: nn.Module) -> torch.dtype:
    return next(network.parameters()).dtype


def _config(classifier: Any) -> Mapping[str, Any]:
    """Return the configuration of a network from diffusers or transformers."""
    config = classifier.config
    if isinstance(config, Mapping):
        return config
    return {**config.to_dict(), "num_labels": config.num_labels}
