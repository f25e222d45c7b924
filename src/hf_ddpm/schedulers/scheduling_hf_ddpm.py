"""The noise process of DDPM (Ho et al. 2020, arXiv 2006.11239) and DDIM (Song et al. 2021, arXiv 2010.02502).

All tables are float64 on the CPU. Coefficients are gathered by t from copies cached per device in float32 (float64 for
float64 images), so half precision images never meet a half precision alpha_bar, and nothing synchronises with a GPU.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hf_ddpm.schedulers.beta_schedules import (
    STOCK_NAMES,
    BetaSchedule,
    OwnBetaSchedule,
    check_choice,
    make_betas,
    rescale_zero_terminal_snr,
    user_betas,
)
from hf_ddpm.schedulers.coefficient_tables import CoefficientTables
from hf_ddpm.schedulers.reverse_walk import ReverseWalk, StepCoefficients, on_host
from hf_ddpm.schedulers.timestep_spacing import TimestepSpacing, check_timesteps, spaced_timesteps
from hf_ddpm.schedulers.transition import log_variance_bounds

PredictionType = Literal["epsilon", "sample", "v_prediction", "mean"]
VarianceType = Literal["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"]


class HFDDPMScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # the mixins disagree on config_name
    """q(x_t | x_0), q(x_{t-1} | x_t, x_0) and p(x_{t-1} | x_t), drop-in for `DDPMScheduler` and `DDIMScheduler`.

    Args:
        num_train_timesteps: T. Timesteps are integers 0 .. T-1; t = 0 is one step of noise.
        beta_start, beta_end, beta_schedule: see `beta_schedules.make_betas`. `cosine` and `quad` are kept in the config
            under the names that diffusers gives the same curves.
        trained_betas: T betas in (0, 1], used instead of a named schedule; filled in for those that diffusers lacks.
        variance_type: the variance of `step` with `eta=None`. `fixed_small` is beta-tilde (DDPM, eq. 7), `fixed_large`
            is beta; their `_log` forms are the same variances. `learned` reads a log-variance and `learned_range` an
            interpolation (iDDPM, eq. 15) from the second half of 2C output channels.
        clip_sample, clip_sample_range: clip the predicted x_0.
        prediction_type: what the network predicts: the noise, x_0 (`sample`), v = sqrt(abar) eps - sqrt(1-abar) x_0
            (Salimans & Ho 2022), or the paper's posterior mean mu (`mean`).
        thresholding, dynamic_thresholding_ratio, sample_max_value: Imagen's dynamic thresholding, instead of clipping.
        timestep_spacing, steps_offset: see `timestep_spacing.spaced_timesteps`.
        rescale_betas_zero_snr: shift the curve so that alpha_bar_T = 0.

    Raises:
        ValueError: an unknown choice (the allowed ones are listed) or a contradiction, e.g. epsilon prediction on a
            curve that ends at alpha_bar = 0, where x_0 cannot be recovered from the noise.
    """

    _compatibles = [e.name for e in KarrasDiffusionSchedulers]  # noqa: RUF012 (diffusers reads the class attribute)
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: BetaSchedule = "linear",
        trained_betas: Sequence[float] | None = None,
        variance_type: VarianceType = "fixed_small",
        clip_sample: bool = True,
        prediction_type: PredictionType = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: TimestepSpacing = "leading",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        check_choice("variance_type", variance_type, get_args(VarianceType))
        check_choice("prediction_type", prediction_type, get_args(PredictionType))
        check_choice("timestep_spacing", timestep_spacing, get_args(TimestepSpacing))
        self._check_thresholds()
        self.betas = self._make_betas()
        # `from_config` drops keys listed here, positional arguments included: say that every value counts, as on disk
        self.register_to_config(_use_default_values=[])
        self.alphas = 1 - self.betas
        self.alphas_cumprod = torch.cumprod(self.alphas, dim=0)
        self._check_terminal_snr()
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self._tables = self._chain_tables()
        self._walk = self._new_walk(list(range(num_train_timesteps - 1, -1, -1)))
        self.timesteps = torch.tensor(self._walk.steps)

    # --- forward process q ---------------------------------------------------------------------------------------

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps (DDPM, eq. 4).

        Args:
            original_samples: x_0, (B, ...), any floating dtype.
            noise: eps, of the same shape.
            timesteps: integers in [0, T-1], (B,) or one.

        Returns:
            Tensor: x_t in the dtype of `original_samples`; the arithmetic is float32 or better.
        """
        signal, sigma = self._tables.rows("forward", timesteps, original_samples)
        return (signal * original_samples).addcmul_(sigma, noise).to(original_samples.dtype)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0 (Salimans & Ho 2022), shapes as `add_noise`."""
        signal, sigma = self._tables.rows("forward", timesteps, sample)
        return (signal * noise).addcmul_(sigma, sample, value=-1).to(sample.dtype)

    def snr(self, timesteps: Tensor) -> Tensor:
        """alpha_bar_t / (1 - alpha_bar_t), float32, shaped and placed as `timesteps`."""
        return self._tables.column("snr", timesteps)

    # --- posterior q(x_{t-1} | x_t, x_0) of the training chain ------------------------------------------------------

    def posterior_mean(self, x_0: Tensor, x_t: Tensor, timesteps: Tensor) -> Tensor:
        """mu-tilde_t(x_t, x_0) = sqrt(abar') beta / (1 - abar) x_0 + sqrt(alpha) (1 - abar') / (1 - abar) x_t.

        DDPM, eq. 7, with abar' = alpha_bar_{t-1}. `x_0`, `x_t` (B, ...), `timesteps` (B,) or one; equals x_0 at t = 0.
        """
        from_x_0, from_x_t = self._tables.rows("posterior", timesteps, x_t)
        return (from_x_0 * x_0).addcmul_(from_x_t, x_t).to(x_t.dtype)

    @property
    def posterior_variance(self) -> Tensor:
        """beta-tilde_t = (1 - abar_{t-1}) / (1 - abar_t) beta_t (DDPM, eq. 7), (T,) float64; 0 at t = 0."""
        return self._tables["posterior variance"][:, 0]

    @property
    def posterior_log_variance(self) -> Tensor:
        """log beta-tilde_t, (T,) float64, with the value of t = 1 at t = 0, where the variance is 0."""
        return self._tables["posterior log variance"][:, 0]

    def fixed_log_variance(self, timesteps: Tensor) -> Tensor:
        """log sigma_t^2 of p(x_{t-1} | x_t) of the training chain, float32, shaped and placed as `timesteps`.

        log beta-tilde_t for `fixed_small`, log beta_t for `fixed_large`. At t = 0, where Algorithm 2 adds no noise but
        a likelihood needs a width, both are log beta-tilde_1, which gives the better L_0 (DDPM's choice).

        Raises:
            ValueError: the `variance_type` is learned.
        """
        if self._learns_variance:
            raise ValueError(f"variance_type={self.config['variance_type']!r} is the network's to say: it is not fixed")
        return self._tables.column("fixed log variance", timesteps)

    # --- what a prediction says --------------------------------------------------------------------------------------

    def predict_x_0(self, model_output: Tensor, x_t: Tensor, timesteps: Tensor) -> Tensor:
        """The unclipped x_0 that a network output (C channels) of `prediction_type` stands for, shaped as `x_t`."""
        from_x_t, from_output = self._tables.rows("prediction", timesteps, x_t)
        return (from_x_t * x_t).addcmul_(from_output, model_output).to(x_t.dtype)

    def predict_epsilon(self, x_0: Tensor, x_t: Tensor, timesteps: Tensor) -> Tensor:
        """eps = (x_t - sqrt(alpha_bar_t) x_0) / sqrt(1 - alpha_bar_t), the inverse of `add_noise`."""
        signal, sigma = self._tables.rows("forward", timesteps, x_t)
        return (torch.addcmul(x_t, -signal, x_0) / sigma).to(x_t.dtype)

    # --- reverse process p -------------------------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Choose the sub-sequence that `step` walks: S spaced steps, or your own descending list.

        The alpha_bar before each step is read from this list, whatever its spacing; after the last one it is 1.
        """
        config = self.config
        if timesteps is not None and num_inference_steps is None:
            steps = check_timesteps(timesteps, len(self))
        elif timesteps is None and num_inference_steps is not None:
            steps = spaced_timesteps(config["timestep_spacing"], num_inference_steps, len(self), config["steps_offset"])
        else:
            raise ValueError("set_timesteps takes either num_inference_steps or timesteps, and exactly one of them")
        self.num_inference_steps = len(steps)
        self.timesteps = torch.tensor(steps, device=device)
        if steps != self._walk.steps:  # the next batch of the same sampler keeps its tables
            self._walk = self._new_walk(steps)

    def scale_model_input(self, sample: Tensor, timestep: int | Tensor | None = None) -> Tensor:
        """The sample itself: this process needs no scaling."""
        return sample

    def previous_timestep(self, timestep: int | Tensor) -> int:
        """The timestep that `step` goes to from `timestep`, -1 after the last."""
        return self._walk.previous(timestep)

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        *,
        eta: float | None = None,
        use_clipped_model_output: bool = True,
        variance_noise: Tensor | None = None,
    ) -> DDPMSchedulerOutput | tuple[Tensor, Tensor]:
        """x_t -> x_{t-1} along `timesteps`.

        `eta=None` is DDPM's Algorithm 2 with the config's `variance_type`. A number is DDIM (eq. 12, with sigma of
        eq. 16), the variance type ignored; 1 is `fixed_small`, 0 draws no noise.

        Args:
            model_output: (B, C, H, W), or (B, 2C, H, W) of a network that also predicts variances.
            timestep: one of `timesteps`, or (B,) of them.
            sample: x_t, (B, C, H, W).
            generator: draws the noise as diffusers does: none at t = 0 of Algorithm 2. A `timestep` on a GPU is not
                looked at, so there the (unused) noise of t = 0 is drawn too.
            eta: None, or in [0, 1].
            use_clipped_model_output: with `eta` a number, whether eps is re-derived from the clipped x_0.
            variance_noise: the noise itself, shaped as `sample`, instead of a draw.

        Returns:
            `DDPMSchedulerOutput` (or a tuple) of x_{t-1} and the clipped x_0 prediction, in the dtype of `sample`.
        """
        output, variance_output = self._split(model_output, sample, eta)
        c = self._walk.coefficients(eta, timestep, sample)
        # Products are new tensors, everything after works in place: at small batches memory costs more than arithmetic.
        predicted_x_0 = (c.x_0_from_x_t * sample).addcmul_(c.x_0_from_output, output)
        keeps_eps = eta is not None and not use_clipped_model_output
        x_0 = self._clip_(predicted_x_0.clone() if keeps_eps else predicted_x_0)
        prev = (c.from_x_0 * x_0).addcmul_(c.from_x_t, sample)
        if keeps_eps:  # DDIM's direction term with the network's own eps, not the one that the clipped x_0 implies
            prev.addcmul_(c.sqrt_alpha_bar_prev - c.from_x_0, x_0 - predicted_x_0)
        if variance_noise is None and self._draws(eta, timestep):
            variance_noise = randn_tensor(output.shape, generator=generator, device=output.device, dtype=output.dtype)
        if variance_noise is not None:
            prev.addcmul_(self._std(c, variance_output), variance_noise)
        if prev.dtype != sample.dtype:
            prev, x_0 = prev.to(sample.dtype), x_0.to(sample.dtype)
        return DDPMSchedulerOutput(prev_sample=prev, pred_original_sample=x_0) if return_dict else (prev, x_0)

    def __len__(self) -> int:
        return self.config["num_train_timesteps"]

    # --- construction --------------------------------------------------------------------------------------------

    def _check_thresholds(self) -> None:
        config = self.config
        if config["clip_sample_range"] <= 0 or config["sample_max_value"] < 1:
            raise ValueError(
                f"clip_sample_range={config['clip_sample_range']} must be positive and "
                f"sample_max_value={config['sample_max_value']} at least 1"
            )
        if not 0 < config["dynamic_thresholding_ratio"] <= 1:
            raise ValueError(f"dynamic_thresholding_ratio={config['dynamic_thresholding_ratio']} must lie in (0, 1]")

    def _make_betas(self) -> Tensor:
        config = self.config
        num_steps, schedule, given = config["num_train_timesteps"], config["beta_schedule"], config["trained_betas"]
        betas = make_betas(schedule, num_steps, config["beta_start"], config["beta_end"])
        self.register_to_config(beta_schedule=STOCK_NAMES.get(schedule, schedule))
        if given is not None:
            named, betas = betas, user_betas(given, num_steps)
            if schedule in get_args(OwnBetaSchedule) and not torch.allclose(named, betas, rtol=1e-9, atol=0):
                raise ValueError(
                    f"trained_betas differ from beta_schedule={schedule!r}: give one of them, "
                    "trained_betas with beta_schedule='linear' for betas of your own"
                )
        if given is not None or schedule in get_args(OwnBetaSchedule):
            self.register_to_config(trained_betas=betas.tolist())
        if not config["rescale_betas_zero_snr"]:
            return betas
        if num_steps < 2:
            raise ValueError("rescale_betas_zero_snr=True needs num_train_timesteps of at least 2")
        return rescale_zero_terminal_snr(betas)

    def _check_terminal_snr(self) -> None:
        if self.alphas_cumprod[-1] > 0:
            return
        if len(self) > 1 and self.alphas_cumprod[-2] == 0:
            first = int((self.alphas_cumprod == 0).nonzero()[0])
            raise ValueError(f"alpha_bar is 0 from t = {first} on, which only the last step may be: take smaller betas")
        if self.config["prediction_type"] == "epsilon":
            raise ValueError(
                "prediction_type='epsilon' is undefined where the schedule ends at alpha_bar = 0, "
                "allowed are 'v_prediction', 'sample' and 'mean'"
            )
        if self.config["timestep_spacing"] != "trailing":
            raise ValueError(
                f"timestep_spacing={self.config['timestep_spacing']!r} need not start at the last step, where a "
                "schedule that ends at alpha_bar = 0 must start: choose 'trailing'"
            )

    def _chain_tables(self) -> CoefficientTables:
        """The tables of the training chain."""
        abar, beta, alpha = self.alphas_cumprod, self.betas, self.alphas
        abar_prev = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
        from_x_0 = abar_prev.sqrt() * beta / (1 - abar)
        from_x_t = alpha.sqrt() * (1 - abar_prev) / (1 - abar)
        x_0_from_x_t_and_output = {
            "epsilon": (1 / abar.sqrt(), -((1 - abar) / abar).sqrt()),
            "sample": (torch.zeros_like(abar), torch.ones_like(abar)),
            "v_prediction": (abar.sqrt(), -(1 - abar).sqrt()),
            "mean": (-from_x_t / from_x_0, 1 / from_x_0),
        }
        tables = CoefficientTables(len(abar))
        tables.add("forward", [abar.sqrt(), (1 - abar).sqrt()])
        tables.add("snr", [abar / (1 - abar)])
        tables.add("posterior", [from_x_0, from_x_t])
        tables.add("posterior variance", [(1 - abar_prev) / (1 - abar) * beta])
        log_posterior, log_beta = (bound.flip(0) for bound in log_variance_bounds(abar.flip(0), abar_prev.flip(0)))
        log_large = torch.cat([log_posterior[:1], log_beta[1:]])
        is_large = self.config["variance_type"].startswith("fixed_large")
        tables.add("posterior log variance", [log_posterior])
        tables.add("fixed log variance", [log_large if is_large else log_posterior])
        tables.add("prediction", x_0_from_x_t_and_output[self.config["prediction_type"]])
        return tables

    def _new_walk(self, steps: list[int]) -> ReverseWalk:
        return ReverseWalk(steps, self.alphas_cumprod, self._tables["prediction"], self.config["variance_type"])

    # --- parts of a step ---------------------------------------------------------------------------------------------

    @property
    def _learns_variance(self) -> bool:
        return self.config["variance_type"].startswith("learned")

    def _split(self, model_output: Tensor, sample: Tensor, eta: float | None) -> tuple[Tensor, Tensor | None]:
        """The prediction and, of a 2C-channel output, the variance half."""
        channels, out_channels = sample.shape[1], model_output.shape[1]
        if out_channels == 2 * channels:
            output, variance = model_output.chunk(2, dim=1)
            return output, variance
        if out_channels != channels or (eta is None and self._learns_variance):
            raise ValueError(
                f"model_output has {out_channels} channels for a sample of {channels}; "
                f"variance_type={self.config['variance_type']!r} needs "
                f"{2 * channels if self._learns_variance else f'{channels} or {2 * channels}'}"
            )
        return model_output, None

    def _clip_(self, x_0: Tensor) -> Tensor:
        """Clip or threshold `x_0`, overwriting it."""
        if self.config["thresholding"]:
            return self._dynamic_threshold(x_0)
        if self.config["clip_sample"]:
            return x_0.clamp_(-self.config["clip_sample_range"], self.config["clip_sample_range"])
        return x_0

    def _dynamic_threshold(self, x_0: Tensor) -> Tensor:
        """Clip to the s-th quantile of |x_0| of each image, then divide by it (Imagen, arXiv 2205.11487, sec. 2.3)."""
        config = self.config
        limit = torch.quantile(x_0.flatten(1).abs(), config["dynamic_thresholding_ratio"], dim=1)
        limit = limit.clamp(1, config["sample_max_value"]).view(-1, *[1] * (x_0.ndim - 1))
        return torch.clamp(x_0, -limit, limit) / limit

    def _draws(self, eta: float | None, timestep: int | Tensor) -> bool:
        """Whether this step draws noise: the same calls of the generator as DDPMScheduler's and DDIMScheduler's."""
        if eta is not None:
            return eta > 0
        return not (on_host(timestep) and int(timestep) == 0)

    def _std(self, c: StepCoefficients, variance_output: Tensor | None) -> Tensor:
        """The standard deviation of the noise; a network's variance output counts where the table holds bounds."""
        if c.min_log_variance is None or c.max_log_variance is None or variance_output is None:
            return c.std
        log_variance = variance_output.to(c.std.dtype)
        if self.config["variance_type"] == "learned_range":  # iDDPM, eq. 15, with the output in [-1, 1]
            share = (log_variance + 1) / 2
            log_variance = share * c.max_log_variance + (1 - share) * c.min_log_variance
        return c.std * torch.exp(0.5 * log_variance)
