"""The accuracy of a noisy classifier by noise level, as logged in ADM's training (arXiv 2105.05233)."""

import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import diffusers
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import cross_entropy

from hf_ddpm.data import ImageData
from hf_ddpm.data.pixels import to_float
from hf_ddpm.errors import UserError, did_you_mean
from hf_ddpm.evaluation.measure import Number
from hf_ddpm.evaluation.report import CONDITIONS, NUMBERS, to_json
from hf_ddpm.models import NoisyClassifier
from hf_ddpm.objectives.classification import MANY, QUARTILES, is_right, quartile_of
from hf_ddpm.pipelines.classifiers import noise_process
from hf_ddpm.pipelines.evaluating import evaluating
from hf_ddpm.pipelines.image_space import encode_moments, latent_scale
from hf_ddpm.progress import ProgressBar
from hf_ddpm.sampling import image_generator
from hf_ddpm.schedulers import HFDDPMScheduler
from hf_ddpm.version import __version__
from hf_ddpm.weights import weights_sha256

MOST = 10_000  # the largest number of images that is used by default
BATCH = 64
_FIGURES = ("top1", "top5", "nats")


def noisy_accuracy(
    classifier: NoisyClassifier,
    data: ImageData,
    *,
    num_images: int | None = None,
    seed: int = 0,
    batch_size: int = BATCH,
    accelerator: Accelerator | None = None,
    vae: Any = None,
) -> dict[str, Any]:
    """Measure top-1 and top-5 accuracy by quartile of t and over all t, and -log p(y | x_t, t), for x_t ~ q(x_t | x_0).

    Image i, its t (uniform in 0 .. T-1) and its noise are determined by (seed, i) alone, whatever the batches and the
    processes. If more images are requested than there are, they are used again with other t and noise.

    Args:
        classifier: The classifier, whose config contains the schedule that it was trained with.
        data: Labelled images that it was not trained on.
        num_images: N; None uses all images, at most 10,000.
        seed: The seed of t, of the noise and of the order of the images.
        batch_size: The number of images at a time.
        accelerator: The accelerator of the processes.
        vae: The VAE in whose scaled latents the classifier was trained, if any; the latents are drawn from q(z|image),
            as in training.

    Returns:
        dict: The `numbers` and `conditions` of a record.

    Raises:
        UserError: If the data is a stream or has no labels, or if a label is not a class of this classifier.
    """
    accelerator = accelerator or Accelerator(cpu=True)
    if data.num_images is None:
        raise UserError(f"{data.source!r} is a stream, whose images have no indices: set streaming to false")
    scheduler = scheduler_of(classifier)
    class_of = _classes(classifier, data)
    order = torch.randperm(data.num_images, generator=torch.Generator().manual_seed(seed))
    total = min(data.num_images, MOST) if num_images is None else num_images
    mine = range(total)[accelerator.process_index :: accelerator.num_processes]
    device = next(classifier.parameters()).device
    sums = torch.zeros(QUARTILES, len(_FIGURES) + 1, dtype=torch.float32, device=device)
    with torch.no_grad(), evaluating(classifier), ProgressBar("images", len(mine), accelerator) as bar:
        for start in range(0, len(mine), batch_size):
            part = mine[start : start + batch_size]
            rows = order[[i % data.num_images for i in part]]
            generators = [image_generator(seed, i) for i in part]
            t = torch.stack([torch.randint(len(scheduler), (), generator=generator) for generator in generators])
            x_0 = to_float(data.pixels(rows))
            x_0 = x_0 if vae is None else _latents(vae, x_0, generators)
            x_t = scheduler.add_noise(x_0, _normal(x_0.shape[1:], generators), t)
            logits = classifier(x_t.to(device, classifier.dtype), t.to(device)).logits.float()
            sums += _sums(logits, class_of(rows).to(device), quartile_of(t, len(scheduler)).to(device))
            bar.update(len(part))
    sums = accelerator.reduce(sums, reduction="sum").double().cpu()
    conditions = {"num_images": total, "draws": 1, "noise": {"seed": seed, "num_train_timesteps": len(scheduler)}}
    conditions |= {} if vae is None else {"vae_sha256": weights_sha256(vae)}
    return {NUMBERS: to_json(_numbers(sums, many=classifier.config["num_classes"] > MANY)), CONDITIONS: conditions}


def accuracy_record(
    classifier: NoisyClassifier, data: ImageData, about: Mapping[str, Any], **settings: Any
) -> dict[str, Any]:
    """Return the result of `noisy_accuracy` as the record of a checkpoint, which `model_card_metrics` reads.

    Args:
        classifier, data: See `noisy_accuracy`.
        about: Further facts, which come first in the record.
        **settings: The keyword arguments of `noisy_accuracy`.
    """
    began = time.perf_counter()
    found = noisy_accuracy(classifier, data, **settings)
    facts = data.facts
    of_data = {"source": facts.source, "origin": facts.origin, "split": facts.split, "config_name": facts.config_name}
    versions = {"hf_ddpm": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__}
    found[CONDITIONS] |= {
        "reference": {"num_images": data.num_images, "data": of_data},
        "versions": versions | {"python": platform.python_version()},
    }
    seconds = {"images": time.perf_counter() - began}
    about = {**about, "weights_sha256": weights_sha256(classifier)}
    return {**about, **found, "seconds": seconds, "date": time.strftime("%Y-%m-%d")}


def scheduler_of(classifier: NoisyClassifier) -> HFDDPMScheduler:
    """Return the noise process that a classifier was trained with.

    Raises:
        UserError: If its config does not contain it.
    """
    schedule = classifier.config["noise_schedule"]
    if schedule is None:
        raise UserError("the classifier's config has no noise_schedule, so its noise process is unknown: add one")
    return noise_process(schedule)


def _latents(vae: Any, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw scaled latents (B, J, h, w) of images in [-1, 1], on the CPU, z = mu + sigma eps."""
    moments = encode_moments(vae, images.to(vae.device, vae.dtype)).float().cpu()
    mean, variance = moments.chunk(2, dim=1)
    return latent_scale(vae) * (mean + variance.sqrt() * _normal(mean.shape[1:], generators))


def _normal(shape: torch.Size, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw standard normal noise for each image from its own generator, (B, *shape)."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def _sums(logits: Tensor, y: Tensor, quartile: Tensor) -> Tensor:
    """Return the sums of `_FIGURES` and the number of images for each quartile, (4, 4)."""
    right = is_right(logits, y)
    figures = [right["top1"], right.get("top5", torch.ones_like(y)), cross_entropy(logits, y, reduction="none")]
    each = torch.stack([*(figure.float() for figure in figures), torch.ones(len(y), device=y.device)], dim=1)  # (B, 4)
    return torch.zeros(QUARTILES, each.shape[1], device=y.device).index_add_(0, quartile, each)


def _numbers(sums: Tensor, *, many: bool) -> list[Number]:
    """Return the cross-entropy, and the accuracies over all t and in each quartile that has images."""
    total = sums.sum(dim=0)
    found = [Number("-log p(y | x_t, t) in nats", "cross_entropy", float(total[2] / total[3]))]
    for column, name in enumerate(["top-1", "top-5"] if many else ["top-1"]):
        found.append(_accuracy(f"{name} accuracy, all t", f"{name.replace('-', '_')}_accuracy", total[[column, 3]]))
        for q in range(QUARTILES):
            if sums[q, 3]:
                kind = f"{name.replace('-', '_')}_accuracy_q{q + 1}"
                found.append(_accuracy(f"{name} accuracy, quartile {q + 1} of t", kind, sums[q, [column, 3]]))
    return found


def _accuracy(name: str, kind: str, pair: Tensor) -> Number:
    """Return the accuracy from [right, all], with the standard error of a share."""
    right, count = pair.tolist()
    share = right / count
    return Number(name, kind, share, standard_error=math.sqrt(share * (1 - share) / count))


def _classes(classifier: NoisyClassifier, data: ImageData) -> Callable[[Tensor], Tensor]:
    """Return a function from rows to the classifier's class numbers, (b,), which matches names if both have names.

    Raises:
        UserError: If there are no labels, or if a class is not one of the classifier's.
    """
    labels = data.labels(torch.arange(data.num_images or 0))
    if data.num_classes is None or labels is None:
        raise UserError(f"the images of {data.source!r} have no labels, which accuracy needs: set their column")
    names, known = data.class_names, classifier.class_names
    if names is None or classifier.config["id2label"] is None:
        names = tuple(map(str, range(data.num_classes)))
        known = list(map(str, range(len(known))))
    strangers = [name for name in names if name not in known]
    if strangers:
        raise UserError(
            f"the images of {data.source!r} have a class {strangers[0]!r}, which is not one of the classifier's "
            f"{len(known)} classes{did_you_mean(strangers[0], known)}; use images of its classes"
        )
    numbers = torch.tensor([known.index(name) for name in names])[labels]
    return lambda rows: numbers[rows]
