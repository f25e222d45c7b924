"""Noise schedules: beta_t for t = 0 .. T-1, in float64.

Index convention of the whole project: `t = 0` is one step of noise, so `betas[0]` is beta_1 of the papers,
`alphas_cumprod[t]` is alpha_bar_{t+1}, and alpha_bar before the first step is 1.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from hf_ddpm.schedulers.annotations import check_choice

StockBetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"]
"""Schedules that diffusers computes under the same name; `sigmoid` is the one of GeoDiff."""

OwnBetaSchedule = Literal["linear_rescaled", "sigmoid_cumprod", "const", "jsd", "vp", "geometric"]
"""Schedules that diffusers does not have: a saved config contains their betas, so that stock classes can use them."""

PaperBetaSchedule = Literal["cosine", "quad"]
"""The papers' names for `squaredcos_cap_v2` (iDDPM) and `scaled_linear` (DDPM's code)."""

BetaSchedule = Literal[StockBetaSchedule, OwnBetaSchedule, PaperBetaSchedule]

STOCK_NAMES = {"cosine": "squaredcos_cap_v2", "quad": "scaled_linear"}
MAX_BETA = 0.999
VP_START = 1e-3  # the time in the SDE at which DDGAN's chain begins
MAX_STEPS = 10**6  # the largest T, because every coefficient table has T rows


def make_betas(schedule: BetaSchedule, num_steps: int, beta_start: float, beta_end: float) -> Tensor:
    """Compute beta_t of a named schedule.

    Args:
        schedule: One of `BetaSchedule`.
        num_steps: T, at least 1.
        beta_start, beta_end: The first and the last beta of `linear`, `scaled_linear`, `sigmoid`, `linear_rescaled` and
            `vp` (in the last two, as if T were 1000); `beta_end` is the value of `const`. The variance of `geometric`
            grows from `beta_start` to `beta_end`, so `beta_end` has to be near 1. The other schedules ignore both.

    Returns:
        Tensor: The betas, (T,) float64 in (0, 1].

    Raises:
        ValueError: If the schedule is unknown, T < 1, or not 0 < `beta_start` <= `beta_end` < 1.
    """
    check_choice("beta_schedule", schedule, get_args(BetaSchedule))
    check_num_steps(num_steps)
    if not 0 < beta_start <= beta_end < 1:
        raise ValueError(f"beta_start={beta_start} and beta_end={beta_end} must satisfy 0 < beta_start <= beta_end < 1")
    if schedule == "geometric" and beta_start == beta_end:
        raise ValueError(f"beta_start={beta_start} must be smaller than beta_end={beta_end} for 'geometric'")
    steps = torch.arange(num_steps, dtype=torch.float64)
    match STOCK_NAMES.get(schedule, schedule):
        case "linear":  # DDPM, sec. 4
            return torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64)
        case "linear_rescaled":  # iDDPM, sec. 3.2: the same total noise for every T
            scale = 1000 / num_steps
            betas = torch.linspace(scale * beta_start, scale * beta_end, num_steps, dtype=torch.float64)
            return betas.clamp(max=MAX_BETA)
        case "scaled_linear":  # linear in sqrt(beta)
            return torch.linspace(beta_start**0.5, beta_end**0.5, num_steps, dtype=torch.float64) ** 2
        case "squaredcos_cap_v2":  # iDDPM, eq. 17
            return _betas_of_alpha_bar(_cosine_alpha_bar, num_steps)
        case "laplace":
            return _betas_of_alpha_bar(_laplace_alpha_bar, num_steps)
        case "sigmoid_cumprod":  # arXiv 2212.11972, Algorithm 1, start -3, end 3, tau 1
            return _betas_of_alpha_bar(_sigmoid_alpha_bar, num_steps)
        case "sigmoid":  # GeoDiff: a sigmoid of beta, not of alpha_bar
            ramp = torch.linspace(-6, 6, num_steps, dtype=torch.float64)
            return torch.sigmoid(ramp) * (beta_end - beta_start) + beta_start
        case "vp":  # the variance-preserving SDE in T steps, however few (arXiv 2011.13456, eq. 33; DDGAN, app. A)
            return _betas_of_alpha_bar(partial(_vp_alpha_bar, 1000 * beta_start, 1000 * beta_end), num_steps, most=1)
        case "geometric":
            return _betas_of_alpha_bar(partial(_geometric_alpha_bar, beta_start, beta_end), num_steps, most=1)
        case "const":
            return torch.full((num_steps,), beta_end, dtype=torch.float64)
        case _:  # "jsd", Sohl-Dickstein et al. 2015: alpha_bar falls linearly to 0
            return 1 / (num_steps - steps)


def check_num_steps(num_steps: int) -> None:
    """Raise a `ValueError` unless T is a whole number from 1 to `MAX_STEPS`."""
    if not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"num_train_timesteps={num_steps!r} must be a whole number of at least 1")
    if num_steps > MAX_STEPS:
        raise ValueError(
            f"num_train_timesteps={num_steps} must be at most {MAX_STEPS}: the tables would not fit in memory"
        )


def user_betas(betas: Sequence[float], num_steps: int) -> Tensor:
    """Check the betas that a user passes, `num_steps` numbers in (0, 1], and return them as (T,) float64."""
    values = torch.as_tensor(betas, dtype=torch.float64)
    if values.shape != (num_steps,):
        shape = tuple(values.shape)
        raise ValueError(
            f"trained_betas has shape {shape}, but num_train_timesteps={num_steps} requires shape ({num_steps},)"
        )
    if not ((values > 0) & (values <= 1)).all():
        raise ValueError(f"trained_betas from {values.min().item()} to {values.max().item()} must all lie in (0, 1]")
    return values


def rescale_zero_terminal_snr(betas: Tensor) -> Tensor:
    """Shift and scale the curve of the betas so that alpha_bar_T = 0 (arXiv 2305.08891, Algorithm 1).

    Idempotent: a curve that already ends at 0 is returned unchanged, to the last bit.

    Raises:
        ValueError: If there is only one step, so that there is nothing to scale.
    """
    if betas[-1] == 1:
        return betas
    if len(betas) < 2:
        raise ValueError("rescale_betas_zero_snr=True requires num_train_timesteps to be at least 2")
    root = torch.cumprod(1 - betas, dim=0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alpha_bar = root**2
    alpha_bar_prev = torch.cat([torch.ones(1, dtype=betas.dtype), alpha_bar[:-1]])
    return 1 - alpha_bar / alpha_bar_prev


def check_terminal_snr(alphas_cumprod: Tensor, config: Mapping[str, Any]) -> None:
    """Check a curve that reaches alpha_bar = 0: only its last step may, and the config must allow sampling from there.

    Args:
        alphas_cumprod: alpha_bar, (T,).
        config: The config of the `HFDDPMScheduler`.
    """
    if alphas_cumprod[-1] > 0:
        return
    if len(alphas_cumprod) > 1 and alphas_cumprod[-2] == 0:
        first = int((alphas_cumprod == 0).nonzero()[0])
        raise ValueError(
            f"alpha_bar is 0 from t = {first} on, but it may be 0 only at the last step: use smaller betas"
        )
    if config["prediction_type"] == "epsilon":
        raise ValueError(
            "prediction_type='epsilon' is undefined for a schedule that ends at alpha_bar = 0: "
            "use 'v_prediction', 'sample' or 'mean'"
        )
    if config["timestep_spacing"] != "trailing":
        raise ValueError(
            f"timestep_spacing={config['timestep_spacing']!r} does not always start at the last step, where sampling "
            "must start if the schedule ends at alpha_bar = 0: use 'trailing'"
        )


def _betas_of_alpha_bar(alpha_bar: Callable[[float], float], num_steps: int, most: float = MAX_BETA) -> Tensor:
    """beta_t = min(1 - alpha_bar((t+1)/T) / alpha_bar(t/T), .999) (iDDPM, eq. 17); alpha_bar(0) counts as 1."""
    curve = [alpha_bar(t / num_steps) for t in range(num_steps + 1)]
    betas = [1 - after / before for before, after in pairwise(curve)]
    return torch.tensor(betas, dtype=torch.float64).clamp(max=most)


def _cosine_alpha_bar(u: float) -> float:
    return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2


def _vp_alpha_bar(beta_min: float, beta_max: float, u: float) -> float:
    """exp(-int_0^s beta), where beta is linear from beta_min to beta_max, and s goes from `VP_START` to 1."""
    s = VP_START + (1 - VP_START) * u
    return math.exp(-0.5 * s**2 * (beta_max - beta_min) - s * beta_min)


def _geometric_alpha_bar(first: float, last: float, u: float) -> float:
    """1 - first^(1 - u) last^u; `_betas_of_alpha_bar` divides by its value at u = 0, so that a chain starts at x_0."""
    return 1 - first * (last / first) ** u


def _sigmoid_alpha_bar(u: float, start: float = -3, end: float = 3) -> float:
    def sigmoid(value: float) -> float:
        return 1 / (1 + math.exp(-value))

    return (sigmoid(end) - sigmoid(u * (end - start) + start)) / (sigmoid(end) - sigmoid(start))


def _laplace_alpha_bar(u: float) -> float:
    """The curve that diffusers calls `laplace`: the log-SNR follows a Laplace distribution over u."""
    log_snr_half = -0.5 * math.copysign(1, 0.5 - u) * math.log(1 - 2 * math.fabs(0.5 - u) + 1e-6)
    snr = math.exp(log_snr_half)
    return math.sqrt(snr / (1 + snr))
