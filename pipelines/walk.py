"""Walks between noise and images: one callable that asks the network, and the ways that go where it points.

`Predict` is the only place where a pipeline or a likelihood calls a network, so what shifts a prediction enters there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Predict:
    """What a network says of x_t at the timestep t, as the scheduler reads it.

    Args:
        network: called as `network(x_t, t, class_labels=labels).sample`.
        labels: (B,) on the network's device; None for a network without classes.
        reads_variance: whether the scheduler takes the second half of 2C output channels; if not, it is cut off.
    """

    network: Callable[..., Any]
    labels: Tensor | None = None
    reads_variance: bool = True

    def __call__(self, x_t: Tensor, t: int | Tensor) -> Tensor:
        """The output (B, C, H, W), or (B, 2C, H, W), for `x_t` (B, C, H, W) and `t`, one or (B,)."""
        given = {} if self.labels is None else {"class_labels": self.labels}
        output: Tensor = self.network(x_t, t, **given).sample
        return output if self.reads_variance else output[:, : x_t.shape[1]]


def walk_down(
    predict: Predict,
    scheduler: Any,
    x_t: Tensor,
    step: Mapping[str, Any],
    *,
    corrector_steps: int = 0,
    langevin: Mapping[str, Any],
    on_call: Callable[[], object],
) -> Iterator[tuple[int, Tensor, dict[str, Tensor]]]:
    """From x_t down the scheduler's `timesteps`, with `corrector_steps` at each level on the way.

    Args:
        x_t: where the walk begins, (B, C, H, W).
        step, langevin: keywords of the scheduler's `step` and `step_langevin`.
        on_call: called after each network call.

    Yields:
        tuple: after each step its number, its t on the host, and `{"latents": x, "pred_original_sample": x_0}`, the
        second only of schedulers that tell it. The walk goes on from the latents that then stand there, so whoever
        iterates may put others in their place, or end the walk.
    """
    # The scheduler reads t on the host and the network on its device: nothing waits for the device.
    on_host, on_device = scheduler.timesteps.cpu(), scheduler.timesteps.to(x_t.device)
    for i, t in enumerate(on_host):
        output = predict(scheduler.scale_model_input(x_t, t), on_device[i])
        x_t, *x_0 = scheduler.step(output, t, x_t, return_dict=False, **step)
        on_call()
        for _ in range(corrector_steps if i + 1 < len(on_host) else 0):
            x_t = scheduler.step_langevin(predict(x_t, on_device[i + 1]), on_host[i + 1], x_t, **langevin)
            on_call()
        seen = {"latents": x_t} | ({"pred_original_sample": x_0[0]} if x_0 else {})
        yield i, t, seen
        x_t = seen["latents"]


def walk_up(predict: Predict, scheduler: Any, x_0: Tensor) -> Tensor:
    """From images x_0 up the `inverse_timesteps` of an `HFDDPMScheduler` to the x_T that leads back to them."""
    x_t = x_0
    for t in scheduler.inverse_timesteps:
        # the network is asked at the level where the sample is; the image itself at t = 0, the cleanest it knows
        x_t = scheduler.step_inverse(predict(x_t, max(t, 0)), t, x_t).prev_sample
    return x_t


def walk_around(
    predict: Predict,
    scheduler: Any,
    x_0: Tensor,
    mask: Tensor,
    path: Sequence[int],
    draw: Callable[[], Tensor],
    step: Mapping[str, Any],
    *,
    on_call: Callable[[], object],
) -> Tensor:
    """From noise to an image that is x_0 where `mask` is 0, down and up along a path (RePaint, Algorithm 1).

    Args:
        x_0, mask: (B, C, H, W).
        path: how many of the timesteps of an `HFDDPMScheduler` are left after each move, from all of them to 0.
        draw: standard normal noise, shaped as `x_0`: the x_T first.
        step: keywords of the scheduler's `step`.
        on_call: called after each step down.
    """
    levels = [-1, *scheduler.timesteps.tolist()[::-1]]  # the timestep with so many steps left
    x_t = draw()
    for here, there in pairwise(path):
        if there > here:  # back up, so that the new pixels and the known ones grow together
            x_t = scheduler.diffuse(x_t, draw(), levels[here], levels[there])
            continue
        x_t = scheduler.step(predict(x_t, levels[here]), levels[here], x_t, return_dict=False, **step)[0]
        known = x_0 if there == 0 else scheduler.add_noise(x_0, draw(), levels[there])
        x_t = mask * x_t + (1 - mask) * known
        on_call()
    return x_t
