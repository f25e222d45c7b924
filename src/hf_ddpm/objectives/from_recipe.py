"""Construction of the objective in the `objective` block of a diffusion recipe."""

from typing import Literal, get_args

from hf_ddpm.objectives.diffusion import DiffusionObjective
from hf_ddpm.objectives.hybrid import HybridObjective
from hf_ddpm.objectives.simple import SimpleObjective
from hf_ddpm.objectives.timestep_sampling import TimestepSampler, TimestepSampling
from hf_ddpm.objectives.vlb import VLBObjective
from hf_ddpm.schedulers import HFDDPMScheduler
from hf_ddpm.schedulers.annotations import check_choice

Loss = Literal["simple", "vlb", "hybrid"]


def make_objective(
    scheduler: HFDDPMScheduler,
    *,
    loss: Loss = "simple",
    rescaled: bool = True,
    timestep_sampling: TimestepSampling = "uniform",
    logit_mean: float = 0.0,
    logit_std: float = 1.0,
    min_snr_gamma: float | None = None,
    label_dropout: float = 0.0,
) -> DiffusionObjective:
    """Build the objective of a diffusion recipe.

    Args:
        scheduler: The noise process; its config defines what the model predicts.
        loss: L_simple of DDPM (`simple`), the variational bound L_vlb in bits per dimension (`vlb`), or L_simple +
            0.001 L_vlb for learned variances (`hybrid`); see arXiv 2102.09672, eq. 16.
        rescaled: Whether `vlb` and `hybrid` multiply their term L_t by T, so that its mean over t is L_vlb. If False,
            `vlb` is L_t and `hybrid` is L_simple + L_t.
        timestep_sampling: How t is drawn, see docs/training.md. `uniform` draws from 0 .. T-1 (Algorithm 1);
            `antithetic` pairs t with T-1-t (DDIM's code); `stratified` draws one t from each of B equal parts of the
            range. These three are uniform for each sample. `loss_second_moment` draws t more often where the loss is
            large and gives it a smaller weight, so the expectation is the same (arXiv 2102.09672, eq. 18).
            `logit_normal` draws t / T = sigmoid(logit_mean + logit_std * normal) (arXiv 2403.03206, eq. 19), also
            stratified, which weights the loss (benchmarks/RECIPE_TRIALS.md).
        logit_mean: The mean of the logits of `logit_normal`; a higher mean means more noise.
        logit_std: The standard deviation of the logits of `logit_normal`.
        min_snr_gamma: The gamma of the weight min(SNR, gamma) of L_simple, in terms of x_0; null is weight 1. See arXiv
            2303.09556, eq. 6.
        label_dropout: The probability of training an image without its label, in [0, 1), for classifier-free guidance:
            one network learns p(x) and p(x | label) (arXiv 2207.12598, Algorithm 1; 0.1 and 0.2 perform similarly
            there). The network has one more class, which stands for "no label".

    Raises:
        ValueError: If a choice is unknown, a number is out of range, the loss cannot train the variance, or a keyword
            does not apply to the loss.
    """
    check_choice("loss", loss, get_args(Loss))
    sampler = TimestepSampler(len(scheduler), timestep_sampling, logit_mean=logit_mean, logit_std=logit_std)
    match loss:
        case "simple":
            if not rescaled:
                raise ValueError("rescaled=False requires loss='vlb' or loss='hybrid': L_simple has no term L_t")
            return SimpleObjective(scheduler, sampler, min_snr_gamma=min_snr_gamma, label_dropout=label_dropout)
        case "vlb":
            if min_snr_gamma is not None:
                raise ValueError(
                    f"min_snr_gamma={min_snr_gamma} weights L_simple, which loss='vlb' does not contain: use "
                    "loss='simple' or loss='hybrid'"
                )
            return VLBObjective(scheduler, sampler, rescaled=rescaled, label_dropout=label_dropout)
        case _:
            return HybridObjective(
                scheduler, sampler, min_snr_gamma=min_snr_gamma, rescaled=rescaled, label_dropout=label_dropout
            )
