"""L_simple, the objective of DDPM (Ho et al. 2020, eq. 14), for every prediction type."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from hf_ddpm.schedulers import HFDDPMScheduler
from hf_ddpm.schedulers.beta_schedules import check_choice

TimestepSampling = Literal["uniform", "antithetic", "stratified", "logit_normal"]


class SimpleObjective:
    """E_{t, x_0, eps} ||target - model(x_t, t)||^2, x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps.

    Args:
        scheduler: owns the noise process and says what the model predicts.
        timestep_sampling: `uniform` in 0 .. T-1 (Algorithm 1); `antithetic` pairs t with T-1-t (DDIM's code);
            `stratified` draws one t from each of B equal parts of the range. These three are uniform for each sample.
            `logit_normal` is not: it trains more where t / T = sigmoid(logit_mean + logit_std * normal) lies
            (arXiv 2403.03206, eq. 19), stratified too. That weights the loss (see benchmarks/RECIPE_TRIALS.md).
        logit_mean, logit_std: of `logit_normal`; a higher mean means more noise.
        min_snr_gamma: weight the loss by min(SNR, gamma) in terms of x_0 (arXiv 2303.09556, eq. 6); None is weight 1.

    Raises:
        ValueError: an unknown sampling, gamma <= 0, gamma with mean prediction, or a learned variance, which L_simple
            cannot train.
    """

    def __init__(
        self,
        scheduler: HFDDPMScheduler,
        *,
        timestep_sampling: TimestepSampling = "uniform",
        logit_mean: float = 0.0,
        logit_std: float = 1.0,
        min_snr_gamma: float | None = None,
    ) -> None:
        check_choice("timestep_sampling", timestep_sampling, get_args(TimestepSampling))
        self.scheduler = scheduler
        self.prediction_type: str = scheduler.config["prediction_type"]
        self.timestep_sampling = timestep_sampling
        self.logit_mean, self.logit_std = logit_mean, logit_std
        self.min_snr_gamma = min_snr_gamma
        if scheduler.config["variance_type"].startswith("learned"):
            raise ValueError(
                f"variance_type={scheduler.config['variance_type']!r} has no gradient in L_simple: "
                "choose 'fixed_small' or 'fixed_large'"
            )
        if logit_std <= 0:
            raise ValueError(f"logit_std={logit_std} must be positive")
        if min_snr_gamma is not None and (min_snr_gamma <= 0 or self.prediction_type == "mean"):
            raise ValueError(
                f"min_snr_gamma={min_snr_gamma} with prediction_type={self.prediction_type!r}: gamma must be positive "
                "and the prediction 'epsilon', 'sample' or 'v_prediction'; null turns the weighting off"
            )

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw `t` (B,) and `noise` (B, C, H, W) for a global batch of `shape`, on the generator's device."""
        t = self._draw_timesteps(shape[0], generator)
        noise = torch.randn(shape, generator=generator, device=generator.device)
        return t, noise

    def __call__(self, model: nn.Module, x_0: Tensor, t: Tensor, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """The loss of one batch, a scalar: mean over dimensions, then over samples.

        Args:
            model: called as `model(x_t, t, class_labels=labels).sample`.
            x_0: images in [-1, 1], (B, C, H, W).
            t: integers in [0, T-1], (B,).
            noise: standard normal, (B, C, H, W).
            labels: classes, (B,), of a class-conditional model.
        """
        x_t = self.scheduler.add_noise(x_0, noise, t)
        target = self.target(x_0, x_t, noise, t)
        prediction = model(x_t, t, **({} if labels is None else {"class_labels": labels})).sample
        if prediction.shape != target.shape:
            raise ValueError(f"the model returns {tuple(prediction.shape)} where L_simple needs {tuple(target.shape)}")
        loss = (prediction.to(target.dtype) - target).square().flatten(1).mean(dim=1)  # (B,)
        return (self.weight(t) * loss).mean()

    def _draw_timesteps(self, batch_size: int, generator: torch.Generator) -> Tensor:
        num_steps, device = len(self.scheduler), generator.device
        if self.timestep_sampling in ("uniform", "antithetic"):
            t = torch.randint(num_steps, (batch_size,), generator=generator, device=device)
            if self.timestep_sampling == "uniform":
                return t
            half = (batch_size + 1) // 2
            return torch.cat([t[:half], num_steps - 1 - t[: batch_size - half]])
        u = torch.rand(batch_size, generator=generator, device=device)
        u = (torch.arange(batch_size, device=device) + u) / batch_size  # one in each part of [0, 1)
        if self.timestep_sampling == "logit_normal":
            u = torch.sigmoid(self.logit_mean + self.logit_std * torch.special.ndtri(u))
        return (u * num_steps).long().clamp(max=num_steps - 1)

    def target(self, x_0: Tensor, x_t: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the model should say about `x_t`, (B, C, H, W)."""
        match self.prediction_type:
            case "epsilon":
                return noise
            case "sample":
                return x_0
            case "v_prediction":
                return self.scheduler.get_velocity(x_0, noise, t)
            case _:  # "mean"
                return self.scheduler.posterior_mean(x_0, x_t, t)

    def weight(self, t: Tensor) -> Any:
        """1, or min-SNR's weight of each sample, (B,): min(SNR, gamma) over the x_0 loss that the target amounts to.

        An error in x_0 is an error in eps times 1 / sqrt(SNR), and one in v times 1 / sqrt(SNR + 1).
        """
        if self.min_snr_gamma is None:
            return 1.0
        snr = self.scheduler.snr(t)
        clipped = snr.clamp(max=self.min_snr_gamma)
        match self.prediction_type:
            case "epsilon":
                return clipped / snr
            case "v_prediction":
                return clipped / (snr + 1)
            case _:  # "sample"
                return clipped
