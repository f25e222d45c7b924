"""The reverse step x_t -> x_{t'} between any two noise levels, in closed form.

Every step of DDPM and DDIM is x_{t'} = from_x_0 * x_0 + from_x_t * x_t + std * noise. Arguments are float64 tensors of
one shape: `alpha_bar` (at t) and `alpha_bar_prev` (at t', 1 after the last step); beta = 1 - alpha_bar / alpha_bar_prev
is the respaced beta of that step.
"""

import math

import torch
from torch import Tensor


def mean_coefficients(alpha_bar: Tensor, alpha_bar_prev: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """`from_x_0` and `from_x_t` of DDIM's mean, sqrt(abar') x_0 + sqrt(1 - abar' - sigma^2) eps(x_t, x_0) (eq. 12).

    Here eps = (x_t - sqrt(abar) x_0) / sqrt(1 - abar), and 1 - abar' - sigma^2 is computed without a difference of
    nearly equal numbers. At eta = 1 this is DDPM's posterior mean (eq. 7).
    """
    alpha = alpha_bar / alpha_bar_prev
    beta = 1 - alpha
    direction = (1 - alpha_bar_prev) * ((1 - eta**2) * beta + alpha * (1 - alpha_bar_prev))
    from_x_t = direction.sqrt() / (1 - alpha_bar)
    from_x_0 = alpha_bar_prev.sqrt() - alpha_bar.sqrt() * from_x_t
    return from_x_0, from_x_t


def velocity(prediction_type: str, prediction: Tensor, x_t: Tensor, angle: float, angle_prev: float) -> Tensor:
    """v = cos(phi) eps - sin(phi) x_0 of what a network predicts, x_0 not clipped (Salimans & Ho 2022, appendix D).

    Args:
        prediction_type: The `prediction_type` of the `HFDDPMScheduler`.
        prediction: The prediction of the network at x_t, of the same shape.
        x_t: The noisy images, (B, ...), at any level, which need not be an integer t.
        angle: phi at this level, where cos(phi) = sqrt(alpha_bar).
        angle_prev: phi one step before, at the level of a `mean` prediction.
    """
    alpha, sigma = math.cos(angle), math.sin(angle)
    match prediction_type:
        case "v_prediction":
            return prediction
        case "epsilon":
            return (prediction - sigma * x_t) / alpha
        case "sample":
            return (alpha * x_t - prediction) / sigma
        case _:  # "mean"
            alpha_bars = [torch.tensor(math.cos(phi) ** 2, dtype=torch.float64) for phi in (angle, angle_prev)]
            from_x_0, from_x_t = (c.item() for c in mean_coefficients(alpha_bars[0], alpha_bars[1], 1.0))
            return (alpha * x_t - (prediction - from_x_t * x_t) / from_x_0) / sigma


def x_0_from_score(alpha_bar: Tensor) -> Tensor:
    """(1 - abar) / sqrt(abar): the coefficient of a score in x_0; in eps it is -sqrt(1 - abar) (ADM, Algorithm 2).

    It is 0 where alpha_bar = 0: x_t is pure noise there, and a classifier's score has no meaning.
    """
    return torch.where(alpha_bar > 0, (1 - alpha_bar) / alpha_bar.sqrt(), 0.0)


def ddim_std(alpha_bar: Tensor, alpha_bar_prev: Tensor, eta: float) -> Tensor:
    """sigma = eta sqrt((1 - abar') / (1 - abar)) sqrt(1 - abar / abar') (DDIM, eq. 16); beta-tilde at eta = 1."""
    return eta * ((1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)).sqrt()


def log_variance_bounds(alpha_bar: Tensor, alpha_bar_prev: Tensor) -> tuple[Tensor, Tensor]:
    """log beta-tilde and log beta of each step of a whole chain, noisiest step first.

    beta-tilde is 0 at the last step, so its logarithm there is replaced by that of the step before, as in DDPM's code
    (by log beta in a chain of one step).
    """
    beta = 1 - alpha_bar / alpha_bar_prev
    variance = (1 - alpha_bar_prev) / (1 - alpha_bar) * beta
    before_last = variance[-2:-1] if len(variance) > 1 else beta
    return torch.cat([variance[:-1], before_last]).log(), beta.log()


def between_bounds(output: Tensor, log_beta_tilde: Tensor, log_beta: Tensor) -> Tensor:
    """exp(s log beta + (1 - s) log beta-tilde) as a logarithm, s = (output + 1) / 2 (iDDPM, eq. 15)."""
    share = (output + 1) / 2
    return share * log_beta + (1 - share) * log_beta_tilde


def fixed_large_std(alpha_bar: Tensor, alpha_bar_prev: Tensor) -> Tensor:
    """sqrt(beta), and 0 at the last step, which returns its mean. On a sub-sequence this is DDIM's sigma-hat."""
    return (1 - alpha_bar / alpha_bar_prev).sqrt() * (alpha_bar_prev < 1)
