"""Sampling loops between noise and images, and the callable with which they call the network.

`Predict` is the only place where a pipeline or a likelihood calls a network, and `Guided` is the only place where a
classifier is used.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from hf_ddpm.pipelines.classifiers import LogProbability, alpha_bar_at
from hf_ddpm.pipelines.guidance import (
    UNGUIDED,
    Guidance,
    classifier_free,
    clipped_norm,
    gradient,
    rescaled,
    shift_output,
)
from hf_ddpm.schedulers.scheduling_hf_ddpm import HFDDPMScheduler


@dataclass(frozen=True)
class Predict:
    """The prediction of a network for x_t at the timestep t, with classifier-free guidance, as the scheduler reads it.

    Args:
        network: The network, called as `network(x_t, t, class_labels=labels).sample`.
        labels: The classes, (B,) on the network's device; None for a network without classes.
        reads_variance: Whether the scheduler uses the second half of 2C output channels; if not, it is cut off.
        guidance: The settings of guidance, of which those for `classifier_free` are used here.
        null_class: The class "no label", which is needed for a `guidance_scale` other than 1.
        num_timesteps: T.
    """

    network: Callable[..., Any]
    labels: Tensor | None = None
    reads_variance: bool = True
    guidance: Guidance = UNGUIDED
    null_class: int | None = None
    num_timesteps: int = 1000

    def __call__(self, x_t: Tensor, t: int | Tensor) -> Tensor:
        """Return the output, (B, C, H, W) or (B, 2C, H, W), for `x_t` (B, C, H, W) and `t`, one or (B,)."""
        scale, _ = self.guidance.scales(t, self.num_timesteps)
        if self.labels is None or self.null_class is None or scale == 1:
            output = self._asked(x_t, t, self.labels)
        else:
            output = self._guided(x_t, t, scale, self.labels, torch.full_like(self.labels, self.null_class))
        return output if self.reads_variance else output[:, : x_t.shape[1]]

    def _guided(self, x_t: Tensor, t: int | Tensor, scale: float, labels: Tensor, no_labels: Tensor) -> Tensor:
        """Combine predictions with and without the classes, from one call; the variance is that with the classes."""
        twice = torch.cat([t, t]) if isinstance(t, Tensor) and t.ndim else t
        output = self._asked(torch.cat([x_t, x_t]), twice, torch.cat([no_labels, labels]))
        (without, _), (with_class, variance) = (half.tensor_split([x_t.shape[1]], dim=1) for half in output.chunk(2))
        guided = classifier_free(without, with_class, scale)
        if self.guidance.guidance_rescale:
            guided = rescaled(guided, with_class, self.guidance.guidance_rescale)
        return torch.cat([guided, variance], dim=1)

    def _asked(self, x_t: Tensor, t: int | Tensor, labels: Tensor | None) -> Tensor:
        output: Tensor = self.network(x_t, t, **({} if labels is None else {"class_labels": labels})).sample
        return output


@dataclass(frozen=True)
class Guided:
    """A prediction, and a classifier that guides it: all that a scheduler's step needs at x_t.

    Args:
        predict: The prediction of the network.
        scheduler: The scheduler that takes the step.
        log_probability: The log-probability of the requested classes, see classifiers.py; None for no classifier.
    """

    predict: Predict
    scheduler: Any
    log_probability: LogProbability | None = None

    def __call__(self, x_t: Tensor, t: int | Tensor, on_device: int | Tensor) -> dict[str, Tensor]:
        """Return the keywords of the step at `x_t` (B, C, H, W): `model_output`, and `score` if there is one.

        Args:
            x_t: The noisy images.
            t: The timestep on the host, for the scheduler.
            on_device: The timestep on the device, for the networks.
        """
        seen = self.scheduler.scale_model_input(x_t, t)
        output = self.predict(seen, on_device)
        score = self._score(output, x_t, seen, t, on_device)
        if score is None:
            return {"model_output": output}
        if isinstance(self.scheduler, HFDDPMScheduler):
            return {"model_output": output, "score": score}
        config = self.scheduler.config
        clips = config.get("clip_sample") and config.get("clip_after_guidance", True)
        border = config.get("clip_sample_range", 1.0) if clips else None
        shifted = shift_output(output, score, seen, alpha_bar_at(self.scheduler, t), config["prediction_type"], border)
        return {"model_output": shifted}

    def _score(
        self, output: Tensor, x_t: Tensor, seen: Tensor, t: int | Tensor, on_device: int | Tensor
    ) -> Tensor | None:
        """Return what the classifier adds to grad log q(x_t); None if it adds nothing."""
        guidance, log_probability = self.predict.guidance, self.log_probability
        _, scale = guidance.scales(t, self.predict.num_timesteps)
        if log_probability is None or not scale or alpha_bar_at(self.scheduler, t) <= 0:
            return None
        at, level = seen, on_device
        if guidance.classifier_gradient == "mean":
            level = self.scheduler.previous_timestep(t)
            if level < 0:  # sampling ends with this mean
                return None
            no_noise = torch.zeros_like(x_t)
            at = self.scheduler.step(output, t, x_t, return_dict=False, variance_noise=no_noise)[0]
        found = gradient(lambda x: log_probability(x, level), at)
        return scale * clipped_norm(found, guidance.classifier_max_norm)


def walk_down(
    ask: Guided,
    x_t: Tensor,
    step: Mapping[str, Any],
    *,
    corrector_steps: int = 0,
    langevin: Mapping[str, Any],
    on_call: Callable[[], object],
) -> Iterator[tuple[int, Tensor, dict[str, Tensor]]]:
    """Sample from x_t down along the scheduler's `timesteps`, with `corrector_steps` at each level after a step.

    Args:
        ask: The callable that computes the inputs of the scheduler's steps at x_t.
        x_t: The starting point, (B, C, H, W).
        corrector_steps: The number of Langevin steps at each level after a step.
        step, langevin: The keywords of the scheduler's `step` and `step_langevin`.
        on_call: A function that is called after each network call.

    Yields:
        tuple: After each step its number, its t on the host, and `{"latents": x, "pred_original_sample": x_0}`, the
        second only for schedulers that return it. The loop continues from the latents in this dict, so the caller may
        replace them, or stop iterating.
    """
    # The scheduler reads t on the host and the network reads it on its device: nothing waits for the device.
    scheduler = ask.scheduler
    on_host, on_device = scheduler.timesteps.cpu(), scheduler.timesteps.to(x_t.device)
    for i, t in enumerate(on_host):
        asked = ask(x_t, t, on_device[i])
        x_t, *x_0 = scheduler.step(**asked, timestep=t, sample=x_t, return_dict=False, **step)
        on_call()
        for _ in range(corrector_steps if i + 1 < len(on_host) else 0):
            asked = ask(x_t, on_host[i + 1], on_device[i + 1])
            x_t = scheduler.step_langevin(**asked, timestep=on_host[i + 1], sample=x_t, **langevin)
            on_call()
        seen = {"latents": x_t} | ({"pred_original_sample": x_0[0]} if x_0 else {})
        yield i, t, seen
        x_t = seen["latents"]


def walk_up(ask: Guided, x_0: Tensor) -> Tensor:
    """Encode images x_0 along the `inverse_timesteps` of an `HFDDPMScheduler` as the x_T that leads back to them."""
    x_t = x_0
    for t in ask.scheduler.inverse_timesteps:
        # the network is called at the level of the sample; for the image itself at t = 0, the cleanest it knows
        level = max(t, 0)
        x_t = ask.scheduler.step_inverse(**ask(x_t, level, level), timestep=t, sample=x_t).prev_sample
    return x_t


def walk_around(
    ask: Guided,
    x_0: Tensor,
    mask: Tensor,
    path: Sequence[int],
    draw: Callable[[], Tensor],
    step: Mapping[str, Any],
    *,
    on_call: Callable[[], object],
) -> Tensor:
    """Sample an image that is x_0 where `mask` is 0, down and up along a path (RePaint, Algorithm 1).

    Args:
        ask: As in `walk_down`.
        x_0, mask: The image and the mask, (B, C, H, W).
        path: The number of timesteps of an `HFDDPMScheduler` that are left after each move, from all of them to 0.
        draw: A function that draws standard normal noise, shaped as `x_0`, first for x_T.
        step: The keywords of the scheduler's `step`.
        on_call: A function that is called after each step down.
    """
    scheduler = ask.scheduler
    levels = [-1, *scheduler.timesteps.tolist()[::-1]]  # by the number of steps left
    x_t = draw()
    for here, there in pairwise(path):
        if there > here:  # back up, so that the new pixels and the known ones grow together
            x_t = scheduler.diffuse(x_t, draw(), levels[here], levels[there])
            continue
        t = levels[here]
        x_t = scheduler.step(**ask(x_t, t, t), timestep=t, sample=x_t, return_dict=False, **step)[0]
        known = x_0 if there == 0 else scheduler.add_noise(x_0, draw(), levels[there])
        x_t = mask * x_t + (1 - mask) * known
        on_call()
    return x_t
