"""The samplers of DDPM (Ho et al. 2020, arXiv 2006.11239) and DDIM (Song et al. 2021, arXiv 2010.02502)."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hf_ddpm.schedulers.annotations import check_arguments
from hf_ddpm.schedulers.beta_schedules import (
    STOCK_NAMES,
    BetaSchedule,
    OwnBetaSchedule,
    check_num_steps,
    check_terminal_snr,
    make_betas,
    rescale_zero_terminal_snr,
    user_betas,
)
from hf_ddpm.schedulers.chain_tables import chain_tables
from hf_ddpm.schedulers.clipping import check_clipping, clip_
from hf_ddpm.schedulers.config_files import MOST_BETAS, read_config, wrong_kind_as_value_error
from hf_ddpm.schedulers.reverse_walk import ReverseWalk, StepCoefficients, on_host
from hf_ddpm.schedulers.timestep_spacing import TimestepSpacing, check_timesteps, select_timesteps
from hf_ddpm.schedulers.training_chain import (
    add_noise,
    add_noise_pair,
    diffuse,
    get_velocity,
    output_channels,
    posterior_log_variance_at,
    posterior_mean,
    predict_epsilon,
    predict_x_0,
    reverse_log_variance,
    reverse_mean,
    sample_posterior,
    score,
    snr,
    split_output,
    target,
    x_0_error_weight,
)
from hf_ddpm.schedulers.transition import between_bounds

PredictionType = Literal["epsilon", "sample", "v_prediction", "mean"]
CLIP_AFTER_GUIDANCE = "clip_after_guidance"
OF_OTHER_PROCESSES = ("sigma_data", "sigma_max", "shift", "scaler")  # keys of solvers whose noise is not that of betas
VarianceType = Literal["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"]


class HFDDPMScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # the mixins disagree on config_name
    """A drop-in replacement for `DDPMScheduler` and `DDIMScheduler`: q(x_t | x_0), its posterior, and p(x_{t-1} | x_t).

    Args:
        num_train_timesteps: The number T of training timesteps. Timesteps are integers 0 .. T-1; t = 0 is one step of
            noise.
        beta_start: The first beta; see `beta_schedules.make_betas`.
        beta_end: The last beta.
        beta_schedule: The noise schedule. The config contains `cosine` and `quad` under diffusers' names for them.
        trained_betas: T betas in (0, 1], used instead of a named schedule. The config contains them too for schedules
            that diffusers does not have, and for those that end at alpha_bar = 0.
        variance_type: The variance of `step` with `eta=None`. `fixed_small` is beta-tilde (DDPM, eq. 7), `fixed_large`
            is beta; their `_log` forms are the same variances. `learned` reads a log-variance and `learned_range` an
            interpolation (iDDPM, eq. 15) from the second half of 2C output channels.
        clip_sample: Whether to clip the predicted x_0.
        clip_sample_range: The largest magnitude of a clipped x_0.
        prediction_type: What the network predicts: the noise (`epsilon`), x_0 (`sample`), v = sqrt(abar) eps -
            sqrt(1-abar) x_0 (Salimans & Ho 2022), or the paper's posterior mean mu (`mean`).
        thresholding: Whether to use Imagen's dynamic thresholding instead of clipping.
        dynamic_thresholding_ratio: The quantile of |x_0| to which dynamic thresholding clips.
        sample_max_value: The largest threshold of dynamic thresholding.
        timestep_spacing: The spacing of the timesteps; see `timestep_spacing.spaced_timesteps`.
        steps_offset: The offset of the timesteps with `leading` spacing.
        rescale_betas_zero_snr: Whether to shift the schedule so that alpha_bar_T = 0. The config has True for every
            schedule that ends there.
        clip_after_guidance: Whether x_0 is clipped again after a `score` has moved it. OpenAI's code does not do so,
            and where alpha_bar is nearly 0, as at the noisy end of a cosine schedule, a classifier's small error then
            moves x_0 by thousands. Only False is saved in the config, because stock schedulers do not know the key.

    Raises:
        ValueError: If a choice is unknown (the message lists the allowed ones), or if choices contradict each other,
            such as epsilon prediction with a schedule that ends at alpha_bar = 0, where the noise does not determine
            x_0.
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
        clip_after_guidance: bool = True,
    ) -> None:
        check_num_steps(num_train_timesteps)
        check_arguments(HFDDPMScheduler, self.config)
        check_clipping(self.config)
        self.betas = self._make_betas()
        # `from_config` drops the keys listed here, even those of positional arguments. Every value is kept, as on disk,
        # except the default of a key that stock schedulers would warn about.
        self.register_to_config(_use_default_values=[CLIP_AFTER_GUIDANCE] if clip_after_guidance else [])
        self.alphas = 1 - self.betas
        self.alphas_cumprod = torch.cumprod(self.alphas, dim=0)
        check_terminal_snr(self.alphas_cumprod, self.config)
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self._tables = chain_tables(self.betas, prediction_type, variance_type)
        self._walk = self._new_walk(list(range(num_train_timesteps - 1, -1, -1)))
        self.timesteps = torch.tensor(self._walk.steps)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # like ConfigMixin's, it accepts a path-like object too
        cls, pretrained_model_name_or_path: str | os.PathLike | None = None, subfolder: str | None = None, **kwargs: Any
    ) -> Any:
        """Load a saved scheduler from a folder or the Hub; in a pipeline it is in `subfolder="scheduler"`.

        Args:
            pretrained_model_name_or_path: A folder, or `user/name` on the Hub.
            subfolder: The subfolder of the scheduler.
            **kwargs: The other keywords of diffusers: `revision`, `cache_dir`, `token`, ...

        Raises:
            OSError: If the scheduler does not exist, or cannot be downloaded from the Hub.
            ValueError: If the config is corrupted, does not fit this class or would not fit in memory.
        """
        with wrong_kind_as_value_error(pretrained_model_name_or_path):
            return super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Return what `from_config` uses of a config.

        `clip_after_guidance` counts even if it is listed as a default, and a `variance_type` of None, which solvers of
        diffusers may have, does not.

        Raises:
            ValueError: If the config is that of a solver of another noise process, such as EDM's or flow matching.
        """
        of_others = () if config_dict.keys() & {"beta_schedule", "trained_betas"} else OF_OTHER_PROCESSES
        key = next((key for key in ("use_flow_sigmas", *of_others) if config_dict.get(key)), None)
        if key is not None:
            raise ValueError(
                f"a config with {key}={config_dict[key]!r} is that of a solver of another noise process, without "
                f"betas: create {cls.__name__} from the config of a scheduler such as DDPMScheduler"
            )
        if config_dict.get("variance_type", "") is None:
            config_dict = {key: value for key, value in config_dict.items() if key != "variance_type"}
        passed_over = [key for key in config_dict.get("_use_default_values", []) if key != CLIP_AFTER_GUIDANCE]
        return super().extract_init_dict({**config_dict, "_use_default_values": passed_over}, **kwargs)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict[str, Any]:
        """Read the config for diffusers; it may come from an untrusted source."""
        return read_config(Path(json_file), MOST_BETAS, str(json_file))

    def to_json_string(self) -> str:
        """Return the config as it is saved, without `clip_after_guidance` if it is True."""
        config: dict[str, Any] = json.loads(super().to_json_string())
        if config[CLIP_AFTER_GUIDANCE]:
            del config[CLIP_AFTER_GUIDANCE]
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    # --- the training chain: q and p on all T steps ------------------------------------------------------------------

    add_noise = add_noise
    add_noise_pair = add_noise_pair
    diffuse = diffuse
    get_velocity = get_velocity
    snr = snr
    posterior_mean = posterior_mean
    sample_posterior = sample_posterior
    posterior_log_variance_at = posterior_log_variance_at
    target = target
    x_0_error_weight = x_0_error_weight
    predict_x_0 = predict_x_0
    predict_epsilon = predict_epsilon
    score = score
    reverse_mean = reverse_mean
    reverse_log_variance = reverse_log_variance
    split_output = split_output
    output_channels = output_channels

    @property
    def posterior_variance(self) -> Tensor:
        """beta-tilde_t = (1 - abar_{t-1}) / (1 - abar_t) beta_t (DDPM, eq. 7), (T,) float64; 0 at t = 0."""
        return self._tables["posterior variance"][:, 0]

    @property
    def posterior_log_variance(self) -> Tensor:
        """log beta-tilde_t, (T,) float64, with the value of t = 1 at t = 0, where the variance is 0."""
        return self._tables["posterior log variance"][:, 0]

    @property
    def learns_variance(self) -> bool:
        """Whether the variance is learned, in the second half of a 2C-channel output."""
        return self.config["variance_type"].startswith("learned")

    @property
    def posterior_obstacle(self) -> str | None:
        """Why `step` with `eta=None` differs from `sample_posterior` for an x_0 in [-1, 1]; None if it does not."""
        config = self.config
        if config["prediction_type"] != "sample":
            return f"prediction_type={config['prediction_type']!r} must be 'sample'"
        if not config["variance_type"].startswith("fixed_small"):
            return f"variance_type={config['variance_type']!r} must be 'fixed_small'"
        if config["thresholding"]:
            return "thresholding=True must be False"
        if config["clip_sample"] and config["clip_sample_range"] < 1:
            return f"clip_sample_range={config['clip_sample_range']} must be at least 1"
        return None

    def __len__(self) -> int:
        return self.config["num_train_timesteps"]

    # --- the reverse process p on a sub-sequence ---------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
        *,
        timestep_spacing: str | None = None,
    ) -> None:
        """Choose the timesteps that `step` visits: S spaced steps, sections, or your own descending list.

        A step goes to the alpha_bar of the next timestep in this list, whatever the spacing; the last one goes to 1.
        `num_inference_steps` of the scheduler is then the true number of network calls.

        Args:
            num_inference_steps: The number S of steps.
            device: The device of `timesteps`.
            timesteps: Your own descending list of timesteps.
            timestep_spacing: `leading`, `trailing`, `linspace` or `quadratic` with S (defaults to the config's);
                without S, sections such as "10,15,20", or "ddim25" (see timestep_spacing.py).

        Raises:
            ValueError: If not exactly one kind of choice is passed, or it does not fit the T training timesteps.
        """
        config = self.config
        if timesteps is None:
            if num_inference_steps is None and timestep_spacing is None:
                raise ValueError(
                    "set_timesteps requires exactly one of num_inference_steps, timesteps, and a timestep_spacing such "
                    "as 'ddim25'"
                )
            spacing = config["timestep_spacing"] if timestep_spacing is None else timestep_spacing
            steps = select_timesteps(num_inference_steps, spacing, len(self), config["steps_offset"])
        elif num_inference_steps is None and timestep_spacing is None:
            steps = check_timesteps(timesteps, len(self))
        else:
            raise ValueError(
                "timesteps cannot be combined with num_inference_steps or timestep_spacing: pass exactly one of them"
            )
        self.num_inference_steps = len(steps)
        self.timesteps = torch.tensor(steps, device=device)
        if steps != self._walk.steps:  # the next batch of the same sampler keeps its tables
            self._walk = self._new_walk(steps)

    def scale_model_input(self, sample: Tensor, timestep: int | Tensor | None = None) -> Tensor:
        """Return the sample unchanged: this process needs no scaling."""
        return sample

    def previous_timestep(self, timestep: int | Tensor) -> int:
        """Return the timestep that `step` goes to from `timestep`, -1 after the last one."""
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
        score: Tensor | None = None,
    ) -> DDPMSchedulerOutput | tuple[Tensor, Tensor]:
        """Take one step from x_t to x_{t-1} along `timesteps`.

        `eta=None` is DDPM's Algorithm 2 with the config's `variance_type`. A number is DDIM (eq. 12, with sigma of
        eq. 16), which ignores the variance type; 1 is `fixed_small`, 0 draws no noise.

        A `score` is what guidance adds to grad log q(x_t), such as s grad log p(y | x_t) (ADM, arXiv 2105.05233). If
        `eta` is None, the mean moves by Sigma * score (Algorithm 1); if it is a number, eps moves by
        -sqrt(1 - alpha_bar_t) score (Algorithm 2), and so does x_0, which is clipped again unless `clip_after_guidance`
        is False. If alpha_bar_t = 0, the score is ignored.

        Args:
            model_output: The output of the network, (B, C, H, W), or (B, 2C, H, W) if it also predicts variances.
            timestep: One of `timesteps`, or (B,) of them.
            sample: x_t, (B, C, H, W).
            generator: The generator of the noise, used as in diffusers: Algorithm 2 draws none at t = 0. The value of a
                `timestep` on a GPU is not read, so there the (unused) noise of t = 0 is drawn too.
            return_dict: Whether to return a `DDPMSchedulerOutput` instead of a tuple.
            eta: None, or a number in [0, 1].
            use_clipped_model_output: Whether eps is recomputed from the clipped x_0, if `eta` is a number.
            variance_noise: The noise itself, shaped as `sample`, instead of a draw.
            score: The score of guidance, shaped as `sample`.

        Returns:
            A `DDPMSchedulerOutput` (or a tuple) of x_{t-1} and the clipped x_0 prediction, in the dtype of `sample`. If
            `eta` is None, the prediction does not depend on the score.
        """
        output, variance_output = self.split_output(model_output, sample)
        c = self._walk.coefficients(eta, timestep, sample)
        # The products are new tensors, all else works in place: for small batches memory costs more than arithmetic.
        predicted_x_0 = (c.x_0_from_x_t * sample).addcmul_(c.x_0_from_output, output)
        keeps_eps = eta is not None and not use_clipped_model_output
        x_0 = clip_(predicted_x_0.clone() if keeps_eps else predicted_x_0, self.config)
        if score is not None:
            _check_shape("score", score, sample)
        if score is not None and eta is not None:
            x_0 = self._guided(x_0 + c.x_0_from_score * score)
            predicted_x_0 = predicted_x_0 + c.x_0_from_score * score if keeps_eps else x_0
        prev = (c.from_x_0 * x_0).addcmul_(c.from_x_t, sample)
        if keeps_eps:  # DDIM's direction term with the network's own eps, not the one that the clipped x_0 implies
            prev.addcmul_(c.sqrt_alpha_bar_prev - c.from_x_0, x_0 - predicted_x_0)
        if variance_noise is None and self._draws(eta, timestep):
            variance_noise = randn_tensor(output.shape, generator=generator, device=output.device, dtype=output.dtype)
        if variance_noise is not None:
            _check_shape("variance_noise", variance_noise, sample)
            prev.addcmul_(self._std(c, variance_output), variance_noise)
        if score is not None and eta is None:
            prev.addcmul_(self._variance(c, variance_output), score * (c.x_0_from_score > 0))  # not for pure noise
        if prev.dtype != sample.dtype:
            prev, x_0 = prev.to(sample.dtype), x_0.to(sample.dtype)
        return DDPMSchedulerOutput(prev_sample=prev, pred_original_sample=x_0) if return_dict else (prev, x_0)

    @property
    def inverse_timesteps(self) -> list[int]:
        """The levels that `step_inverse` starts from, in order: -1 for the image itself, then `timesteps` upwards.

        The noisiest timestep is where the last of these steps ends, so it is not included.
        """
        return [-1, *self._walk.steps[:0:-1]]

    def step_inverse(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        return_dict: bool = True,
        *,
        score: Tensor | None = None,
    ) -> DDPMSchedulerOutput | tuple[Tensor, Tensor]:
        """Take one step from x_t to the next noisier x along `timesteps`: DDIM's step (eq. 12, eta = 0) reversed.

        This is an Euler step of the ODE of eq. 14 (sec. 4.3): it uses eps at the level where the sample is in place of
        eps at the level where it goes, so `step` leads back with an error that decreases with the number of steps.
        Nothing is clipped.

        Args:
            model_output: The output of the network at (sample, max(timestep, 0)), (B, C, H, W) or (B, 2C, H, W).
            timestep: The level of the sample, one of `inverse_timesteps`; -1 is the image itself.
            sample: x_t, (B, C, H, W).
            return_dict: Whether to return a `DDPMSchedulerOutput` instead of a tuple.
            score: The score of guidance, as in `step` with `eta=0`, shaped as `sample`.

        Returns:
            A `DDPMSchedulerOutput` (or a tuple) of the noisier x, as `prev_sample`, and the x_0 prediction.

        Raises:
            ValueError: If the timestep is not one of `inverse_timesteps`.
        """
        reached = self._walk.following(timestep)
        level = max(int(timestep), 0)  # for the image itself, the cleanest level that the network knows
        output, _ = self.split_output(model_output, sample)
        x_0 = self.predict_x_0(output, sample, level)
        epsilon = self.predict_epsilon(x_0, sample, level)
        if score is not None:
            _check_shape("score", score, sample)
            to_x_0, to_epsilon = self._tables.rows("guidance", level, sample)
            x_0, epsilon = (x_0 + to_x_0 * score).to(x_0.dtype), (epsilon + to_epsilon * score).to(epsilon.dtype)
        if timestep < 0:
            x_0 = sample
        noisier = self.add_noise(x_0, epsilon, reached)
        return DDPMSchedulerOutput(prev_sample=noisier, pred_original_sample=x_0) if return_dict else (noisier, x_0)

    def step_langevin(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        *,
        snr: float = 0.16,
        noise: Tensor | None = None,
        score: Tensor | None = None,
    ) -> Tensor:
        """Take a step of Langevin dynamics that stays at the level t: x_t + delta score + sqrt(2 delta) z.

        This is the corrector of Song et al. 2021 (arXiv 2011.13456, Algorithm 5), delta = 2 (snr |z| / |score|)^2, with
        the norms replaced by their averages: delta = 2 snr^2 (1 - alpha_bar_t), the annealed step size of Song & Ermon
        2019 (Algorithm 1). So images do not depend on their batch. The stationary distribution is q(x_t) up to an error
        of the order of snr^2.

        Args:
            model_output: The output of the network at (sample, timestep), (B, C, H, W) or (B, 2C, H, W).
            timestep: An integer in [0, T-1], or (B,) of them.
            sample: x_t.
            generator: The generator of z.
            snr: The signal-to-noise ratio of a step, which determines its size.
            noise: z itself, instead of a draw.
            score: What guidance adds to the score of the network, shaped as `sample`.
        """
        if snr <= 0:
            raise ValueError(f"snr={snr} must be positive")
        own = self.score(model_output, sample, timestep)
        if noise is None:
            noise = randn_tensor(own.shape, generator=generator, device=own.device, dtype=own.dtype)
        if score is not None:
            _check_shape("score", score, sample)
            own = own + score * (self._tables.rows("guidance", timestep, sample)[0] > 0)
        sigma = self._tables.rows("forward", timestep, sample)[1]
        delta = 2 * (snr * sigma) ** 2
        return (sample + delta * own + (2 * delta).sqrt() * noise).to(sample.dtype)

    # --- construction --------------------------------------------------------------------------------------------

    def _make_betas(self) -> Tensor:
        config = self.config
        num_steps, schedule, given = config["num_train_timesteps"], config["beta_schedule"], config["trained_betas"]
        named = make_betas(schedule, num_steps, config["beta_start"], config["beta_end"])
        self.register_to_config(beta_schedule=STOCK_NAMES.get(schedule, schedule))
        betas = named if given is None else user_betas(given, num_steps)
        if config["rescale_betas_zero_snr"]:
            named, betas = rescale_zero_terminal_snr(named), rescale_zero_terminal_snr(betas)
        if schedule in get_args(OwnBetaSchedule) and not torch.allclose(named, betas, rtol=1e-9, atol=0):
            raise ValueError(
                f"trained_betas differ from beta_schedule={schedule!r}: pass only one of them, or use "
                "beta_schedule='linear' with your own trained_betas"
            )
        # stock classes compute these curves differently or not at all: the config has the betas, and the flag for 0
        ends_at_zero = bool(betas[-1] == 1)
        if given is not None or schedule in get_args(OwnBetaSchedule) or ends_at_zero:
            self.register_to_config(trained_betas=betas.tolist(), rescale_betas_zero_snr=ends_at_zero)
        return betas

    def _new_walk(self, steps: list[int]) -> ReverseWalk:
        return ReverseWalk(steps, self.alphas_cumprod, self._tables["prediction"], self.config["variance_type"])

    # --- parts of a step ---------------------------------------------------------------------------------------------

    def _draws(self, eta: float | None, timestep: int | Tensor) -> bool:
        """Return whether this step draws noise; DDPMScheduler and DDIMScheduler use the generator in the same steps."""
        if eta is not None:
            return eta > 0
        return not (on_host(timestep) and int(timestep) == 0)

    def _std(self, c: StepCoefficients, variance_output: Tensor | None) -> Tensor:
        """Compute the standard deviation of the noise, 0 at the last step."""
        log_variance = self._learned_log_variance(c, variance_output)
        return c.std if log_variance is None else c.std * torch.exp(0.5 * log_variance)

    def _variance(self, c: StepCoefficients, variance_output: Tensor | None) -> Tensor:
        """Compute Sigma of p(x_{t-1} | x_t), which guidance needs; a learned one is not 0 at the last step."""
        log_variance = self._learned_log_variance(c, variance_output)
        return c.std.square() if log_variance is None else log_variance.exp()

    def _learned_log_variance(self, c: StepCoefficients, variance_output: Tensor | None) -> Tensor | None:
        """Compute log Sigma from the network's output; None if the table has no bounds because Sigma is fixed."""
        if c.min_log_variance is None or c.max_log_variance is None or variance_output is None:
            return None
        log_variance = variance_output.to(c.std.dtype)
        if self.config["variance_type"] == "learned_range":
            log_variance = between_bounds(log_variance, c.min_log_variance, c.max_log_variance)
        return log_variance

    def _guided(self, x_0: Tensor) -> Tensor:
        """Clip an x_0 that a score has moved, if the config says so."""
        return clip_(x_0, self.config) if self.config[CLIP_AFTER_GUIDANCE] else x_0


def _check_shape(name: str, given: Tensor, sample: Tensor) -> None:
    if given.shape != sample.shape:
        raise ValueError(f"{name} of shape {tuple(given.shape)} must have the shape of sample, {tuple(sample.shape)}")
