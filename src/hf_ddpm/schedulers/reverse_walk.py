"""The timesteps that a sampler visits, and the coefficients of each of its steps."""

import operator
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from hf_ddpm.schedulers.coefficient_tables import CoefficientTables
from hf_ddpm.schedulers.transition import (
    ddim_std,
    fixed_large_std,
    log_variance_bounds,
    mean_coefficients,
    x_0_from_score,
)


class StepCoefficients(NamedTuple):
    """The coefficients of one reverse step, each (B or 1, 1, 1, 1) for images.

    x_0 = x_0_from_x_t * x_t + x_0_from_output * output, then x_{t-1} = from_x_0 * x_0 + from_x_t * x_t + std * noise.
    If eta is a number, a score of guidance moves x_0 by x_0_from_score * score.
    """

    x_0_from_x_t: Tensor
    x_0_from_output: Tensor
    from_x_0: Tensor
    from_x_t: Tensor
    std: Tensor
    sqrt_alpha_bar_prev: Tensor
    x_0_from_score: Tensor
    min_log_variance: Tensor | None = None  # only for learned variances, whose `std` is 1, or 0 at the last step
    max_log_variance: Tensor | None = None


class ReverseWalk:
    """A descending list of timesteps: each step goes to the next timestep, and the last one goes to x_0.

    A step goes to the alpha_bar of the next timestep in the list, whatever the spacing; the last one goes to 1.

    Args:
        steps: The list of timesteps.
        alphas_cumprod: alpha_bar of the training chain, (T,) float64.
        prediction: The coefficients of x_t and of the network's output in x_0, (T, 2) float64.
        variance_type: The variance type of steps with `eta=None`.
    """

    def __init__(self, steps: list[int], alphas_cumprod: Tensor, prediction: Tensor, variance_type: str) -> None:
        self.steps = steps
        self._previous = dict(zip(steps, [*steps[1:], -1], strict=True))
        self._following = {previous: t for t, previous in self._previous.items()}
        self._alphas_cumprod, self._prediction, self._variance_type = alphas_cumprod, prediction, variance_type
        self._tables = CoefficientTables(len(alphas_cumprod))  # one table for each eta in use
        self._coefficients: dict[tuple[float | None, int, torch.device, torch.dtype, int], StepCoefficients] = {}

    def previous(self, timestep: int | Tensor) -> int:
        """Return the timestep that a step goes to, -1 after the last one."""
        return self._previous[self._visit(timestep)]

    def following(self, timestep: int | Tensor) -> int:
        """Return the timestep whose step goes to `timestep`, which may be -1."""
        t = _whole_number(timestep)
        if t not in self._following:
            raise ValueError(
                f"timestep {t} has no noisier neighbour in the list of length {len(self.steps)} that set_timesteps "
                "chose: use the timesteps in inverse_timesteps"
            )
        return self._following[t]

    def coefficients(self, eta: float | None, timestep: int | Tensor, sample: Tensor) -> StepCoefficients:
        """Return the coefficients of the step from `timestep`, shaped for `sample`; later batches reuse them."""
        if isinstance(timestep, Tensor) and not on_host(timestep):
            if timestep.device.type == "cpu":
                for t in set(timestep.flatten().tolist()):
                    self._visit(t)
            return self._rows(eta, timestep, sample)  # not checked on a GPU: rows that are not in the list are NaN
        t = self._visit(timestep)
        cell = (eta, t, sample.device, sample.dtype, sample.ndim)
        if cell not in self._coefficients:
            with torch.inference_mode(False):  # the cached tensors may be used in training too
                self._coefficients[cell] = self._rows(eta, t, sample)
        return self._coefficients[cell]

    def _visit(self, timestep: int | Tensor) -> int:
        """Return a timestep of the list as an int; a fractional one is an error and is not rounded."""
        t = _whole_number(timestep)
        if t not in self._previous:
            raise ValueError(f"timestep {t} is not in the list of length {len(self.steps)} that set_timesteps chose")
        return t

    def _rows(self, eta: float | None, timestep: int | Tensor, sample: Tensor) -> StepCoefficients:
        if eta not in self._tables:
            self._add_table(eta)
        return StepCoefficients(*self._tables.rows(eta, timestep, sample))

    def _add_table(self, eta: float | None) -> None:
        """Add a table with the columns of `StepCoefficients` for each timestep of the list."""
        if eta is not None and not (isinstance(eta, Real) and 0 <= eta <= 1):
            raise ValueError(
                f"eta={eta!r} must lie in [0, 1], or be None for Algorithm 2 with the config's variance_type"
            )
        steps = torch.tensor(self.steps)
        abar = self._alphas_cumprod[steps]
        abar_prev = torch.cat([abar[1:], torch.ones(1, dtype=torch.float64)])
        from_x_0, from_x_t = mean_coefficients(abar, abar_prev, 1.0 if eta is None else eta)
        bounds: tuple[Tensor, ...] = ()
        if eta is not None:
            std = ddim_std(abar, abar_prev, eta)
        elif self._variance_type.startswith("learned"):
            std, bounds = (abar_prev < 1).double(), log_variance_bounds(abar, abar_prev)
        elif self._variance_type.startswith("fixed_large"):
            std = fixed_large_std(abar, abar_prev)
        else:
            std = ddim_std(abar, abar_prev, 1.0)
        prediction = self._prediction[steps].unbind(1)
        columns = [*prediction, from_x_0, from_x_t, std, abar_prev.sqrt(), x_0_from_score(abar), *bounds]
        self._tables.add(eta, columns, steps)


def _whole_number(timestep: int | Tensor) -> int:
    try:
        return operator.index(timestep)
    except TypeError as error:
        raise ValueError(f"timestep {timestep} must be a whole number") from error


def on_host(timestep: int | Tensor) -> bool:
    """Return whether a timestep is a single number that can be read without waiting for a device."""
    return not isinstance(timestep, Tensor) or (timestep.ndim == 0 and timestep.device.type == "cpu")
