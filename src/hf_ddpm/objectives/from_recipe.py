"""The objective that a diffusion recipe's block `objective` asks for."""

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
    """The objective of a diffusion recipe.

    Args:
        scheduler: owns the noise process and says what the model predicts.
        loss: L_simple of DDPM, the variational bound L_vlb in bits a dimension, or L_simple + 0.001 L_vlb for learned
            variances (arXiv 2102.09672, eq. 16).
        rescaled: whether vlb and hybrid multiply their term L_t by T, so that its mean over t is L_vlb. If not, vlb is
            L_t and hybrid L_simple + L_t.
        timestep_sampling: how t is drawn, see docs/training.md. `uniform` in 0 .. T-1 (Algorithm 1); `antithetic` pairs
            t with T-1-t (DDIM's code); `stratified` draws one t from each of B equal parts of the range. These three
            are uniform for each sample. `loss_second_moment` draws t more often where the loss is large and weighs it
            less: the same expectation (arXiv 2102.09672, eq. 18). `logit_normal` trains more where t / T =
            sigmoid(logit_mean + logit_std * normal) lies (arXiv 2403.03206, eq. 19), stratified too: that weights the
            loss (benchmarks/RECIPE_TRIALS.md).
        logit_mean, logit_std: of `logit_normal`; a higher mean means more noise.
        min_snr_gamma: weight L_simple by min(SNR, gamma) in terms of x_0; null is weight 1 (arXiv 2303.09556, eq. 6).
        label_dropout: how likely an image is trained without its label, in [0, 1), for classifier-free guidance: one
            network learns p(x) and p(x | label) (arXiv 2207.12598, Algorithm 1; 0.1 and 0.2 serve alike there). The
            network has one class more, which stands for "no label".

    Raises:
        ValueError: an unknown choice, a number out of range, a variance that the loss cannot train, or a keyword that
            the loss does not have.
    """
    check_choice("loss", loss, get_args(Loss))
    sampler = TimestepSampler(len(scheduler), timestep_sampling, logit_mean=logit_mean, logit_std=logit_std)
    match loss:
        case "simple":
            if not rescaled:
                raise ValueError("rescaled=False belongs to loss='vlb' and 'hybrid': L_simple has no term L_t")
            return SimpleObjective(scheduler, sampler, min_snr_gamma=min_snr_gamma, label_dropout=label_dropout)
        case "vlb":
            if min_snr_gamma is not None:
                raise ValueError(f"min_snr_gamma={min_snr_gamma} weights L_simple: choose loss='simple' or 'hybrid'")
            return VLBObjective(scheduler, sampler, rescaled=rescaled, label_dropout=label_dropout)
        case _:
            return HybridObjective(
                scheduler, sampler, min_snr_gamma=min_snr_gamma, rescaled=rescaled, label_dropout=label_dropout
            )
