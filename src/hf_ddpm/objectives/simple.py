"""L_simple, the objective of DDPM (Ho et al. 2020, eq. 14), for every prediction type."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from hf_ddpm.objectives.diffusion import DiffusionObjective
from hf_ddpm.objectives.network import network_output
from hf_ddpm.objectives.objective import Draws, Losses
from hf_ddpm.objectives.timestep_sampling import TimestepSampler
from hf_ddpm.schedulers import HFDDPMScheduler

if TYPE_CHECKING:
    from hf_ddpm.data import Batch


class SimpleObjective(DiffusionObjective):
    """E_{t, x_0, eps} ||target - model(x_t, t)||^2, x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps.

    Args:
        scheduler: The noise process; its config defines what the model predicts.
        sampler: The sampler of t.
        min_snr_gamma: See `min_snr_weight`.
        label_dropout: See `DiffusionObjective`.

    Raises:
        ValueError: If the variance is learned, which L_simple cannot train, `min_snr_weight` does not support the
            gamma, or `label_dropout` is out of range.
    """

    def __init__(
        self,
        scheduler: HFDDPMScheduler,
        sampler: TimestepSampler,
        *,
        min_snr_gamma: float | None = None,
        label_dropout: float = 0.0,
    ) -> None:
        if scheduler.learns_variance:
            raise ValueError(
                f"variance_type={scheduler.config['variance_type']!r} has no gradient in L_simple: "
                "use loss='hybrid' or 'vlb', or variance_type='fixed_small' or 'fixed_large'"
            )
        check_min_snr(min_snr_gamma, scheduler.config["prediction_type"])
        super().__init__(scheduler, sampler, label_dropout=label_dropout)
        self.min_snr_gamma = min_snr_gamma

    def loss(self, turn: str, models: Mapping[str, nn.Module], batch: "Batch", draws: Draws, step: int) -> Losses:
        """Algorithm 1: compute x_t and the model's prediction for it; the loss is a mean over each image, (B,)."""
        x_0, t, noise = batch.x_0, draws.rows["t"], draws.rows["noise"]
        labels = self.labels(batch, draws)
        x_t = self.scheduler.add_noise(x_0, noise, t)
        prediction = network_output(models[turn], self.scheduler, x_t, t, labels)
        return Losses(simple_loss(self.scheduler, prediction, x_0, x_t, noise, t, self.min_snr_gamma))


def simple_loss(
    scheduler: HFDDPMScheduler,
    prediction: Tensor,
    x_0: Tensor,
    x_t: Tensor,
    noise: Tensor,
    t: Tensor,
    min_snr_gamma: float | None = None,
) -> Tensor:
    """||target - prediction||^2 of each image, (B,): the mean over its dimensions, times the min-SNR weight if any."""
    loss = (prediction - scheduler.target(x_0, x_t, noise, t)).square().flatten(1).mean(dim=1)
    return loss if min_snr_gamma is None else min_snr_weight(scheduler, t, min_snr_gamma) * loss


def min_snr_weight(scheduler: HFDDPMScheduler, t: Tensor, gamma: float) -> Tensor:
    """min(SNR, gamma) / `x_0_error_weight`, the min-SNR weight of an error in the target, (B,).

    An error in x_0 then has the weight min(SNR, gamma) (arXiv 2303.09556, eq. 6).
    """
    return scheduler.snr(t).clamp(max=gamma) / scheduler.x_0_error_weight(t)


def check_min_snr(gamma: float | None, prediction_type: str) -> None:
    """Raise a `ValueError` for a gamma <= 0, and for any gamma with `mean` prediction."""
    if gamma is not None and (gamma <= 0 or prediction_type == "mean"):
        raise ValueError(
            f"min_snr_gamma={gamma} with prediction_type={prediction_type!r} is not supported: gamma must be positive "
            "and the prediction type 'epsilon', 'sample' or 'v_prediction'; null disables the weighting"
        )
