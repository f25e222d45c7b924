"""q and p of DDPM (Ho et al. 2020, arXiv 2006.11239) on all T steps, as training and likelihoods need them.

Each function is a method of `HFDDPMScheduler`, such as `scheduler.add_noise(...)`; none of them depends on a sampler.
All tables are float64 on the CPU. Coefficients are gathered by t from copies cached per device in float32 (float64 for
float64 images), so half-precision images never meet a half-precision alpha_bar, and nothing synchronises with a GPU.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from hf_ddpm.schedulers.coefficient_tables import CoefficientTables
from hf_ddpm.schedulers.transition import between_bounds


class Chain(Protocol):
    """The part of the scheduler that these functions use."""

    alphas_cumprod: Tensor  # alpha_bar, (T,) float64
    _tables: CoefficientTables  # from chain_tables.py

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def learns_variance(self) -> bool: ...

    def __len__(self) -> int: ...


# --- forward process q ------------------------------------------------------------------------------------------------


def add_noise(scheduler: Chain, original_samples: Tensor, noise: Tensor, timesteps: int | Tensor) -> Tensor:
    """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps (DDPM, eq. 4).

    Args:
        original_samples: x_0, (B, ...), in any floating-point dtype.
        noise: eps, of the same shape.
        timesteps: Integers in [0, T-1], (B,) or one.

    Returns:
        Tensor: x_t in the dtype of `original_samples`; the arithmetic is in float32 or better.

    Raises:
        ValueError: If the images are integers, the noise has another shape, or the timesteps do not fit.
    """
    _check_noise("original_samples", original_samples, noise=noise)
    signal, sigma = scheduler._tables.rows("forward", timesteps, original_samples)
    return (signal * original_samples).addcmul_(sigma, noise).to(original_samples.dtype)


def diffuse(scheduler: Chain, sample: Tensor, noise: Tensor, from_timestep: int, to_timestep: int) -> Tensor:
    """x_t = sqrt(abar_t / abar_s) x_s + sqrt(1 - abar_t / abar_s) eps: from level s to a noisier t (DDPM, eq. 2).

    Args:
        sample: x_s, (B, ...); the images themselves if `from_timestep` is -1.
        noise: eps, of the same shape.
        from_timestep, to_timestep: s and t, integers with -1 <= s <= t < T.
    """
    if not -1 <= from_timestep <= to_timestep < len(scheduler):
        raise ValueError(
            f"from_timestep={from_timestep} and to_timestep={to_timestep} must satisfy -1 <= from_timestep <= "
            f"to_timestep <= {len(scheduler) - 1}"
        )
    before = scheduler.alphas_cumprod[from_timestep] if from_timestep >= 0 else 1.0
    kept = float(scheduler.alphas_cumprod[to_timestep] / before)
    return kept**0.5 * sample + (1 - kept) ** 0.5 * noise


def add_noise_pair(
    scheduler: Chain, original_samples: Tensor, noise: Tensor, step_noise: Tensor, timesteps: int | Tensor
) -> tuple[Tensor, Tensor]:
    """Draw (x_{t-1}, x_t) from q(x_{t-1}, x_t | x_0), the real pair of a denoising GAN (arXiv 2112.07804, eq. 5).

    x_{t-1} = sqrt(abar') x_0 + sqrt(1 - abar') eps with abar' = alpha_bar_{t-1}, which is x_0 itself at t = 0, and
    x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) eps'.

    Args:
        original_samples: x_0, (B, ...).
        noise, step_noise: eps and eps', of the same shape.
        timesteps: t, integers in [0, T-1], (B,) or one.

    Raises:
        ValueError: If the images are integers, the noise has another shape, or the timesteps do not fit.
    """
    _check_noise("original_samples", original_samples, noise=noise, step_noise=step_noise)
    signal, sigma, kept, added = scheduler._tables.rows("pair", timesteps, original_samples)
    previous = (signal * original_samples).addcmul_(sigma, noise)
    x_t = (kept * previous).addcmul_(added, step_noise)
    return previous.to(original_samples.dtype), x_t.to(original_samples.dtype)


def _check_noise(name: str, images: Tensor, **others: Tensor) -> None:
    """Check that the images are floating-point tensors, and not integers, and that the others have their shape."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(
            f"{name} of type {kind} must be a floating-point tensor: divide uint8 images by 127.5 and subtract 1"
        )
    for other, given in others.items():
        if not isinstance(given, Tensor) or given.shape != images.shape:
            what = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise ValueError(f"{other} {what} must be a tensor with the shape of {name}, {tuple(images.shape)}")


def get_velocity(scheduler: Chain, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0 (Salimans & Ho 2022), with shapes as in `add_noise`."""
    signal, sigma = scheduler._tables.rows("forward", timesteps, sample)
    return (signal * noise).addcmul_(sigma, sample, value=-1).to(sample.dtype)


def snr(scheduler: Chain, timesteps: Tensor) -> Tensor:
    """alpha_bar_t / (1 - alpha_bar_t), in float32, with the shape and on the device of `timesteps`."""
    return scheduler._tables.column("snr", timesteps)


# --- posterior q(x_{t-1} | x_t, x_0) of the training chain ------------------------------------------------------------


def posterior_mean(scheduler: Chain, x_0: Tensor, x_t: Tensor, timesteps: int | Tensor) -> Tensor:
    """mu-tilde_t(x_t, x_0) = sqrt(abar') beta / (1 - abar) x_0 + sqrt(alpha) (1 - abar') / (1 - abar) x_t.

    DDPM, eq. 7, with abar' = alpha_bar_{t-1}. `x_0` and `x_t` are (B, ...), `timesteps` is (B,) or one integer. The
    mean is x_0 at t = 0.
    """
    from_x_0, from_x_t = scheduler._tables.rows("posterior", timesteps, x_t)
    return (from_x_0 * x_0).addcmul_(from_x_t, x_t).to(x_t.dtype)


def posterior_log_variance_at(scheduler: Chain, timesteps: int | Tensor, like: Tensor) -> Tensor:
    """`posterior_log_variance` at `timesteps`, (B or 1, 1, ..., 1), in float32 or better on the device of `like`."""
    return scheduler._tables.rows("posterior log variance", timesteps, like)[0]


def sample_posterior(scheduler: Chain, x_0: Tensor, x_t: Tensor, noise: Tensor, timesteps: int | Tensor) -> Tensor:
    """x_{t-1} = mu-tilde_t(x_t, x_0) + sqrt(beta-tilde_t) eps, a draw from q(x_{t-1} | x_t, x_0); x_0 itself at t = 0.

    `x_0` and `noise` are shaped as `x_t`, the rest is as for `posterior_mean`. Gradients flow to `x_0`.

    Raises:
        ValueError: If the images are integers, or the tensors have different shapes.
    """
    _check_noise("x_t", x_t, x_0=x_0, noise=noise)
    mean = posterior_mean(scheduler, x_0, x_t, timesteps)
    (variance,) = scheduler._tables.rows("posterior variance", timesteps, x_t)
    return mean + (variance.sqrt() * noise).to(mean.dtype)


# --- what a network should predict ------------------------------------------------------------------------------------


def target(scheduler: Chain, x_0: Tensor, x_t: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Return what a network with this `prediction_type` should predict at (x_t, t), shaped as `x_0`.

    Args:
        x_0: The images, (B, ...).
        x_t: `add_noise(x_0, noise, timesteps)`.
        noise: eps, of the same shape.
        timesteps: Integers in [0, T-1], (B,).
    """
    match scheduler.config["prediction_type"]:
        case "epsilon":
            return noise
        case "sample":
            return x_0
        case "v_prediction":
            return get_velocity(scheduler, x_0, noise, timesteps)
        case _:  # "mean"
            return posterior_mean(scheduler, x_0, x_t, timesteps)


def x_0_error_weight(scheduler: Chain, timesteps: Tensor) -> Tensor:
    """(target - prediction)^2 divided by the squared error of the implied x_0, in float32, shaped as `timesteps`.

    SNR for `epsilon`, 1 for `sample`, SNR + 1 for `v_prediction` (Salimans & Ho 2022, sec. 4); for `mean` the
    square of the coefficient of x_0 in the posterior mean (DDPM, eq. 7).
    """
    match scheduler.config["prediction_type"]:
        case "epsilon":
            return snr(scheduler, timesteps)
        case "sample":
            return torch.ones_like(timesteps, dtype=torch.float32)
        case "v_prediction":
            return snr(scheduler, timesteps) + 1
        case _:  # "mean"
            return scheduler._tables.column("mean from x_0", timesteps).square()


# --- what a prediction implies ----------------------------------------------------------------------------------------


def predict_x_0(scheduler: Chain, model_output: Tensor, x_t: Tensor, timesteps: int | Tensor) -> Tensor:
    """Return the unclipped x_0 that a network's output (C channels, of this `prediction_type`) implies, as `x_t`."""
    from_x_t, from_output = scheduler._tables.rows("prediction", timesteps, x_t)
    return (from_x_t * x_t).addcmul_(from_output, model_output).to(x_t.dtype)


def predict_epsilon(scheduler: Chain, x_0: Tensor, x_t: Tensor, timesteps: int | Tensor) -> Tensor:
    """eps = (x_t - sqrt(alpha_bar_t) x_0) / sqrt(1 - alpha_bar_t), the inverse of `add_noise`."""
    signal, sigma = scheduler._tables.rows("forward", timesteps, x_t)
    return (torch.addcmul(x_t, -signal, x_0) / sigma).to(x_t.dtype)


def score(scheduler: Chain, model_output: Tensor, x_t: Tensor, timesteps: int | Tensor) -> Tensor:
    """grad_{x_t} log q(x_t) = -eps / sqrt(1 - alpha_bar_t) as the network predicts it (Song et al. 2021, sec. 4).

    `model_output` has C channels, or 2C with variances; the shapes are as in `predict_x_0`. L_simple with epsilon is
    denoising score matching with the weight 1 - alpha_bar_t.
    """
    output, _ = split_output(scheduler, model_output, x_t)
    from_x_t, from_output = scheduler._tables.rows("score", timesteps, x_t)
    return (from_x_t * x_t).addcmul_(from_output, output).to(x_t.dtype)


def reverse_mean(scheduler: Chain, model_output: Tensor, x_t: Tensor, timesteps: int | Tensor) -> Tensor:
    """mu_theta(x_t, t) of p(x_{t-1} | x_t) on the training chain, x_0 not clipped (DDPM, eq. 11 for epsilon).

    `model_output` has C channels; the shapes are as in `predict_x_0`. With `mean` prediction this is the output itself.
    """
    from_x_t, from_output = scheduler._tables.rows("reverse mean", timesteps, x_t)
    return (from_x_t * x_t).addcmul_(from_output, model_output).to(x_t.dtype)


def reverse_log_variance(
    scheduler: Chain, variance_output: Tensor | None, x_t: Tensor, timesteps: int | Tensor
) -> Tensor:
    """log Sigma_theta(x_t, t) of p(x_{t-1} | x_t) on the training chain, in a shape that broadcasts to `x_t`.

    It is log beta-tilde_t for `fixed_small`, log beta_t for `fixed_large`, `variance_output` for `learned`, and an
    interpolation of the two bounds for `learned_range` (iDDPM, eq. 15). At t = 0, where Algorithm 2 adds no noise but a
    likelihood needs a width, beta-tilde is that of t = 1, also for `fixed_large`: L_0 is better (DDPM's choice).

    Args:
        variance_output: The second half of a 2C-channel output, None for fixed variances.
        x_t, timesteps: As in `predict_x_0`.

    Raises:
        ValueError: If a learned variance has no output, or a fixed variance has one.
    """
    if (variance_output is None) == scheduler.learns_variance:
        raise ValueError(
            f"variance_type={scheduler.config['variance_type']!r} takes "
            f"{'a' if scheduler.learns_variance else 'no'} variance_output"
        )
    if variance_output is None:
        return scheduler._tables.rows("log variance", timesteps, x_t)[0]
    if scheduler.config["variance_type"] == "learned":
        return variance_output
    return between_bounds(variance_output, *scheduler._tables.rows("log variance", timesteps, x_t))


def split_output(scheduler: Chain, model_output: Tensor, sample: Tensor) -> tuple[Tensor, Tensor | None]:
    """Split a network's output into its prediction (C channels) and, if it has 2C channels, the variance half.

    Raises:
        ValueError: If there are neither C nor 2C channels, or C channels although the variance is learned.
    """
    channels, out_channels = sample.shape[1], model_output.shape[1]
    if out_channels == 2 * channels:
        output, variance = model_output.chunk(2, dim=1)
        return output, variance
    if out_channels != channels or scheduler.learns_variance:
        needed = 2 * channels if scheduler.learns_variance else f"{channels} or {2 * channels}"
        raise ValueError(
            f"the number of channels is {out_channels} for model_output and {channels} for sample, but variance_type="
            f"{scheduler.config['variance_type']!r} requires {needed}: use the one that the network was trained with"
        )
    return model_output, None


def output_channels(scheduler: Chain, channels: int) -> int:
    """Return the number of output channels of a network for C image channels: 2C if the variance is learned, else C."""
    return 2 * channels if scheduler.learns_variance else channels
