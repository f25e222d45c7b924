"""L_simple, the objective of DDPM (Ho et al. 2020, eq. 14), for every prediction type."""

import torch
from torch import Tensor, nn

from hf_ddpm.objectives.network import network_output
from hf_ddpm.objectives.timestep_sampling import TimestepSampler
from hf_ddpm.schedulers import HFDDPMScheduler


class SimpleObjective:
    """E_{t, x_0, eps} ||target - model(x_t, t)||^2, x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps.

    Args:
        scheduler: owns the noise process and says what the model predicts.
        sampler: draws t.
        min_snr_gamma: see `min_snr_weight`.

    Raises:
        ValueError: a learned variance, which L_simple cannot train, or a gamma that `min_snr_weight` does not know.
    """

    def __init__(
        self, scheduler: HFDDPMScheduler, sampler: TimestepSampler, *, min_snr_gamma: float | None = None
    ) -> None:
        if scheduler.learns_variance:
            raise ValueError(
                f"variance_type={scheduler.config['variance_type']!r} has no gradient in L_simple: "
                "choose loss='hybrid' or 'vlb', or variance_type='fixed_small' or 'fixed_large'"
            )
        check_min_snr(min_snr_gamma, scheduler.config["prediction_type"])
        self.scheduler, self.sampler, self.min_snr_gamma = scheduler, sampler, min_snr_gamma
        self.history = sampler.history

    def draw(self, shape: tuple[int, ...], generator: torch.Generator, step: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """`t` (B,), `noise` (B, C, H, W) and the weight of each loss (B,) for a global batch of `shape`; any step."""
        t, weight = self.sampler.draw(shape[0], generator)
        return t, torch.randn(shape, generator=generator, device=generator.device), weight

    def __call__(self, model: nn.Module, x_0: Tensor, t: Tensor, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """The loss of each image, (B,): the mean over its dimensions.

        Args:
            model: called as `model(x_t, t, class_labels=labels).sample`.
            x_0: images in [-1, 1], (B, C, H, W).
            t: integers in [0, T-1], (B,).
            noise: standard normal, (B, C, H, W).
            labels: classes, (B,), of a class-conditional model.
        """
        x_t = self.scheduler.add_noise(x_0, noise, t)
        prediction = network_output(model, self.scheduler, x_t, t, labels)
        return simple_loss(self.scheduler, prediction, x_0, x_t, noise, t, self.min_snr_gamma)


def simple_loss(
    scheduler: HFDDPMScheduler,
    prediction: Tensor,
    x_0: Tensor,
    x_t: Tensor,
    noise: Tensor,
    t: Tensor,
    min_snr_gamma: float | None = None,
) -> Tensor:
    """||target - prediction||^2 of each image, (B,): the mean over its dimensions, times min-SNR's weight if asked."""
    loss = (prediction - scheduler.target(x_0, x_t, noise, t)).square().flatten(1).mean(dim=1)
    return loss if min_snr_gamma is None else min_snr_weight(scheduler, t, min_snr_gamma) * loss


def min_snr_weight(scheduler: HFDDPMScheduler, t: Tensor, gamma: float) -> Tensor:
    """min(SNR, gamma) over the weight that an error in x_0 has in the target's, (B,) (arXiv 2303.09556, eq. 6)."""
    return scheduler.snr(t).clamp(max=gamma) / scheduler.x_0_error_weight(t)


def check_min_snr(gamma: float | None, prediction_type: str) -> None:
    """Raise a `ValueError` for a gamma <= 0, and for any with mean prediction."""
    if gamma is not None and (gamma <= 0 or prediction_type == "mean"):
        raise ValueError(
            f"min_snr_gamma={gamma} with prediction_type={prediction_type!r}: gamma must be positive "
            "and the prediction 'epsilon', 'sample' or 'v_prediction'; null turns the weighting off"
        )
