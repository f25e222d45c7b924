"""Sampling with any network of the DDPM family and any diffusers scheduler."""

import dataclasses
import inspect
import os
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_ddpm_parallel import DDPMParallelScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hf_ddpm.pipelines.call_checks import Generators, StepCallback, check_call, check_solver
from hf_ddpm.pipelines.classifiers import check_classifier, check_is_classifier, classes_of
from hf_ddpm.pipelines.doors import (
    forget_component,
    name_ours,
    open_stock_door,
    stock_samples_the_same,
    write_code,
)
from hf_ddpm.pipelines.editing import inpaint, interpolate, invert, reconstruct, vary
from hf_ddpm.pipelines.evaluating import without_training
from hf_ddpm.pipelines.guidance import GradientAt, GuidanceSchedule
from hf_ddpm.pipelines.guiding import check_mean, guided
from hf_ddpm.pipelines.image_inputs import to_images
from hf_ddpm.pipelines.image_space import ImageSpace, check_vae
from hf_ddpm.pipelines.network_signature import ClassLabels, NetworkSignature, count_classes, names_of_classes
from hf_ddpm.pipelines.opening import CheckedOpening
from hf_ddpm.pipelines.walk import walk_down
from hf_ddpm.schedulers.scheduling_hf_ddpm import HFDDPMScheduler
from hf_ddpm.schedulers.timestep_spacing import EVEN_SPACINGS


class HFDDPMPipeline(CheckedOpening, DiffusionPipeline):
    """A pipeline that samples from a `UNet2DModel` or an `ADMUNet`.

    The samplers are those of DDPM (Ho et al. 2020, Algorithm 2) and DDIM (Song et al. 2021, eq. 12).

    Args:
        unet: A `UNet2DModel` or an `ADMUNet` that predicts what `scheduler.config.prediction_type` says, from C
            channels to C, or 2C with variances.
        scheduler: Any diffusers scheduler. `DDPMScheduler` and `DDIMScheduler` are converted to `HFDDPMScheduler` here;
            a scheduler that is assigned later is left unchanged.
        default_eta: The `eta` of a call without `eta`. None is Algorithm 2; for a `DDIMScheduler` it defaults to 0.
        vae: An `HFVAE`, `AutoencoderKL` or `AutoencoderTiny` in whose latents the UNet works (arXiv 2112.10752). Images
            are then encoded before and decoded after sampling; `latents` and x_t are always scaled latents of the VAE.
        null_class: K, for a UNet with `num_class_embeds = K + 1` that was trained with one more class for "no label",
            which is never drawn. It is not inferred; None is a network without this class.
        id2label: The names of classes by their numbers, {0: "cat", ...}, which `class_labels` may contain.
        classifier: A `NoisyClassifier` with the same noise schedule, images and classes, or an image classifier from
            `transformers`, which sees the predicted x_0. Its gradient guides sampling (ADM, arXiv 2105.05233, section
            4); a UNet without classes uses those of the classifier.
        image_processor: The image processor of a classifier from `transformers`.

    Raises:
        ValueError: If the networks or the classifier do not fit, the VAE's `scaling_factor` was not measured, or
            `null_class` or the names do not fit the UNet's classes.
    """

    model_cpu_offload_seq = "unet->vae"  # type: ignore[assignment]
    _optional_components = ["vae", "classifier", "image_processor"]  # noqa: RUF012  # diffusers' name and type
    _exclude_from_cpu_offload = ["classifier"]  # noqa: RUF012  # used after every call of the UNet
    _interrupt = False

    vary, interpolate = vary, interpolate
    invert, reconstruct = invert, reconstruct
    inpaint = inpaint
    _guided = guided

    def __init__(
        self,
        unet: ModelMixin,
        scheduler: SchedulerMixin,
        default_eta: float | None = None,
        vae: Any = None,
        null_class: int | None = None,
        id2label: dict[int, str] | dict[str, str] | None = None,  # JSON turns numbers into strings
        classifier: Any = None,
        image_processor: Any = None,
    ) -> None:
        super().__init__()
        if type(scheduler) is DDIMScheduler and default_eta is None:
            default_eta = 0.0
        if type(scheduler) in (DDPMScheduler, DDIMScheduler):
            scheduler = _as_hf_ddpm(scheduler)
        if isinstance(scheduler, HFDDPMScheduler):
            NetworkSignature.of(unet.config, scheduler.config).check_variances()
        if channels := unet.config.get("low_res_channels"):
            raise ValueError(
                f"unet is an upsampler with low_res_channels={channels}, and this pipeline has no low-resolution image "
                "for it: pass a network without them"
            )
        if vae is not None:
            check_vae(vae, unet.config["in_channels"])
        count_classes(unet.config, null_class)
        names = names_of_classes(id2label, unet.config, null_class)
        if classifier is not None:
            check_is_classifier(classifier, image_processor)
        self.register_modules(
            unet=unet, scheduler=scheduler, vae=vae, classifier=classifier, image_processor=image_processor
        )
        self.register_to_config(default_eta=default_eta, null_class=null_class, id2label=names)
        if classifier is not None:
            check_classifier(classifier, image_processor, self)

    @property
    def signature(self) -> NetworkSignature:
        """The inputs and outputs of the network, which are latents if there is a VAE."""
        of_classes = {name: self.config[name] for name in ("null_class", "id2label")}
        return NetworkSignature.of(self.unet.config, self.scheduler.config, **of_classes)

    @property
    def image_channels(self) -> int:
        """C of the images, not of the latents."""
        return self._space.channels

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(H, W) of the images, found by decoding one if there is a VAE; None for any size."""
        return self._space.size

    @property
    def num_classes(self) -> int | None:
        """K for a network with class labels, which are 0 to K - 1; None for one without. "No label" is not counted.

        For a network without classes, K of the classifier that guides it, if any.
        """
        return self.class_signature.num_classes

    @property
    def class_signature(self) -> NetworkSignature:
        """`signature` with the classes that may be passed: those of the classifier if the network has none."""
        signature, classifier = self.signature, self.classifier
        if signature.takes_labels or classifier is None:
            return signature
        count, names = classes_of(classifier)
        return dataclasses.replace(signature, takes_labels=True, num_classes=count, id2label=names, whose="classifier")

    @property
    def noise_network(self) -> Any:
        """The network whose input is noise."""
        return self.unet

    @property
    def noise_shape(self) -> tuple[int, int, int] | None:
        """(C, h, w) of the noise that an image starts from; None if the network's config has no sample_size."""
        signature = self.signature
        return None if signature.size is None else (signature.channels, *signature.size)

    @property
    def interrupt(self) -> bool:
        """Whether sampling stops after this step: a callback sets `pipeline._interrupt = True`."""
        return self._interrupt

    @without_training
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int | None = None,
        eta: float | None = None,
        generator: Generators = None,
        class_labels: ClassLabels = None,
        latents: Tensor | None = None,
        output_type: Literal["pil", "np", "pt"] = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        timesteps: Sequence[int] | None = None,
        timestep_spacing: str | None = None,
        start_timestep: int | None = None,
        corrector_steps: int = 0,
        corrector_snr: float = 0.16,
        guidance_scale: float = 1.0,
        classifier_scale: float | None = None,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[int, int] | None = None,
        guidance_schedule: GuidanceSchedule = "constant",
        classifier_gradient: GradientAt = "x_t",
        classifier_max_norm: float | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw x_T and sample along the scheduler's timesteps down to x_0.

        Args:
            batch_size: The number of images.
            num_inference_steps: The number of network calls; by default, all T training steps.
            eta: A number from 0 (DDIM) to 1; None uses `default_eta`, and if that is None too, Algorithm 2.
            generator: One generator, used as in diffusers; or a list with one for each image, so that an image does not
                depend on the rest of its batch.
            class_labels: One class, or one for each image, if and only if the network was trained with classes or a
                classifier guides it. Each is a number, or one of the names in `id2label`.
            latents: x_T, (batch_size, C, H, W) with unit variance, instead of a draw.
            output_type: `pil`, `np` (B, H, W, C) in [0, 1], or `pt` (B, C, H, W) in [0, 1].
            return_dict: Whether to return an `ImagePipelineOutput` instead of a tuple of the images.
            callback_on_step_end: A function that is called as `callback(pipeline, i, t, {"latents": x})` after each
                step; our scheduler adds `"pred_original_sample"`, the prediction of x_0. A returned dict may replace
                the latents. `pipeline._interrupt = True` stops sampling after this step.
            timesteps: Your own descending list of timesteps, for schedulers that accept one.
            timestep_spacing: Another spacing than the config's, or sections (see `HFDDPMScheduler.set_timesteps`).
            start_timestep: The timestep t at which sampling starts, from `latents`, which are then x_t.
            corrector_steps: The number of steps of Langevin dynamics at each level after a step, each of them one more
                network call (predictor-corrector sampling, Song et al. 2021, arXiv 2011.13456, Algorithm 1).
            corrector_snr: `snr` of `HFDDPMScheduler.step_langevin`.
            guidance_scale: s of classifier-free guidance, eps_u + s (eps_c - eps_u); 1 disables it. Other scales
                require a network with a `null_class`, and take twice the time.
            classifier_scale: The factor of the gradient of the classifier's log p(y | x_t); 0 disables it, None is 1
                with a classifier and `class_labels`.
            guidance_rescale, guidance_interval, guidance_schedule, classifier_gradient, classifier_max_norm: See
                `Guidance`. `classifier_gradient="mean"` requires Algorithm 2.

        Raises:
            ValueError: If the batch size, labels, latents, steps, eta or guidance do not fit.
        """
        check_call(batch_size, generator, output_type)
        check_solver(type(self.scheduler).__name__, self.scheduler.config, self.signature.channels)
        ask = self._guided(
            class_labels,
            batch_size,
            guidance_scale=guidance_scale,
            classifier_scale=classifier_scale,
            guidance_rescale=guidance_rescale,
            guidance_interval=guidance_interval,
            guidance_schedule=guidance_schedule,
            classifier_gradient=classifier_gradient,
            classifier_max_norm=classifier_max_norm,
        )
        step_kwargs = self._step_kwargs(eta, generator)
        if classifier_gradient == "mean":
            check_mean(self, step_kwargs, corrector_steps)
        self._set_timesteps(num_inference_steps, timesteps, timestep_spacing)
        if start_timestep is None:
            self._check_start_at_noise()
        else:
            self._start_at(start_timestep, latents)
        if not isinstance(corrector_steps, Integral) or corrector_steps < 0:
            raise ValueError(f"corrector_steps={corrector_steps!r} must be a whole number, 0 or more")
        if corrector_steps:
            self._needs_own_scheduler("corrector_steps")
            if not corrector_snr > 0:
                raise ValueError(f"corrector_snr={corrector_snr!r} must be positive")
        x_t = self._x_T(batch_size, latents, generator)
        steps, langevin = len(self.scheduler.timesteps), {"generator": generator, "snr": corrector_snr}
        corrector: dict[str, Any] = {"corrector_steps": corrector_steps, "langevin": langevin}
        self._interrupt = False
        with self.progress_bar(total=steps + corrector_steps * (steps - 1)) as bar:
            for i, t, seen in walk_down(ask, x_t, step_kwargs, **corrector, on_call=bar.update):
                if callback_on_step_end is not None:
                    seen["latents"] = (callback_on_step_end(self, i, t, {**seen}) or {}).get("latents", seen["latents"])
                x_t = seen["latents"]
                if self._interrupt:
                    break
        images = to_images(self._space.decoded(x_t), output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @without_training
    def score(self, x_t: Tensor, timestep: int, class_labels: ClassLabels = None, **guidance: Any) -> Tensor:
        """grad log q(x_t) as the network predicts it, -eps / sqrt(1 - alpha_bar_t), shaped as `x_t` (B, C, H, W).

        `guidance` are the guidance arguments of a call; the score then includes their effect.
        """
        self._needs_own_scheduler("score")
        channels = self.signature.channels
        if x_t.ndim != 4 or x_t.shape[1] != channels:
            raise ValueError(f"x_t of shape {tuple(x_t.shape)} must have shape (B, {channels}, H, W)")
        if guidance.get("classifier_gradient", "x_t") != "x_t":
            raise ValueError("classifier_gradient='mean' applies to a step: the score at x_t requires 'x_t'")
        asked = self._guided(class_labels, len(x_t), **guidance)(x_t, timestep, timestep)
        own = self.scheduler.score(asked["model_output"], x_t, timestep)
        return own + asked["score"].to(own.dtype) if "score" in asked else own

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write model_index.json, for stock classes if they draw the same images, and the code files of door 3.

        `save_pretrained` calls this last, after the components and before an upload.
        """
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)
        folder = Path(save_directory)
        ours = name_ours(folder)
        for absent in self._optional_components:
            if getattr(self, absent) is None:
                forget_component(folder, absent)
        is_ours = type(self).__module__ == __name__ and "scheduler" in ours  # a derived class may sample differently
        eta = self.config["default_eta"]
        if (
            is_ours
            and self.vae is None
            and self.classifier is None
            and stock_samples_the_same(self.scheduler.config, self.unet, eta)
        ):
            open_stock_door(folder)
        write_code(folder, __name__, ours.values())

    @property
    def _space(self) -> ImageSpace:
        return ImageSpace(self.vae, self.signature, self._execution_device, self.unet.dtype)

    @property
    def _reads_variance(self) -> bool:
        """Whether the scheduler uses the second half of 2C output channels."""
        return isinstance(self.scheduler, HFDDPMScheduler) or (
            isinstance(self.scheduler, (DDPMScheduler, DDPMParallelScheduler)) and self.signature.learns_variance
        )

    def _step_kwargs(self, eta: float | None, generator: object) -> dict[str, Any]:
        """Return those of eta and generator that the scheduler's `step` accepts."""
        accepted = inspect.signature(self.scheduler.step).parameters
        if eta is not None and "eta" not in accepted:
            raise ValueError(f"eta={eta} is not supported by {type(self.scheduler).__name__}: omit it")
        eta = self.config["default_eta"] if eta is None else eta
        given = {"generator": generator} | ({} if eta is None else {"eta": eta})
        return {name: value for name, value in given.items() if name in accepted}

    def _set_timesteps(
        self, num_inference_steps: int | None, timesteps: Sequence[int] | None, timestep_spacing: str | None
    ) -> None:
        """Set the scheduler's timesteps from one number, one spacing or one list."""
        if timestep_spacing is not None and not isinstance(self.scheduler, HFDDPMScheduler):
            of_diffusers = timestep_spacing in ("leading", "trailing", "linspace")
            raise ValueError(
                f"timestep_spacing={timestep_spacing!r} is not supported in a call with "
                f"{type(self.scheduler).__name__}: "
                + ("set it in the scheduler's config" if of_diffusers else "only HFDDPMScheduler has it, omit it")
            )
        if timesteps is not None:
            if num_inference_steps is not None or timestep_spacing is not None:
                raise ValueError(
                    "timesteps cannot be combined with num_inference_steps or timestep_spacing: pass only one of them"
                )
            self.scheduler.set_timesteps(timesteps=timesteps)
            return
        respaced = timestep_spacing is not None and timestep_spacing not in EVEN_SPACINGS
        all_steps = num_inference_steps is None and not respaced
        steps = self.signature.num_timesteps if all_steps else num_inference_steps
        if steps is not None:
            self.signature.check_steps(steps)
        self.scheduler.set_timesteps(
            steps, **({} if timestep_spacing is None else {"timestep_spacing": timestep_spacing})
        )

    def _x_T(self, batch_size: int, latents: Tensor | None, generator: Generators) -> Tensor:
        if latents is not None and not isinstance(latents, Tensor):
            raise ValueError(f"latents of type {type(latents).__name__} must be a tensor")
        signature = self.signature
        if latents is not None and signature.size is None:
            shape = (batch_size, signature.channels, *latents.shape[2:])
        else:
            shape = (batch_size, *signature.shape("pass latents of the size to sample"))
        device, dtype = self._execution_device, self.unet.dtype
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        elif tuple(latents.shape) != shape:
            raise ValueError(f"latents of shape {tuple(latents.shape)} must have shape {shape}")
        signature.check_size(shape[2:], "latents")
        return latents.to(device, dtype) * self.scheduler.init_noise_sigma

    def _start_at(self, t: int, latents: Tensor | None) -> None:
        """Start sampling at `t`, and continue with the chosen timesteps below it."""
        self._needs_own_scheduler("start_timestep")
        if latents is None:
            raise ValueError(
                f"start_timestep={t} requires latents, x_t at that level: scheduler.add_noise(x_0, noise, {t}) "
                f"computes them; or call vary(images, {t})"
            )
        self.scheduler.set_timesteps(timesteps=[t, *(s for s in self.scheduler.timesteps.tolist() if s < t)])

    def _check_start_at_noise(self) -> None:
        """Check that sampling from pure noise starts at the timestep without signal, if the schedule has one."""
        if not isinstance(self.scheduler, HFDDPMScheduler) or self.scheduler.alphas_cumprod[-1] > 0:
            return
        first, last = int(self.scheduler.timesteps[0]), len(self.scheduler) - 1
        if first != last:
            raise ValueError(
                f"sampling starts at t = {first}, but a schedule that ends at alpha_bar = 0 has pure noise only at "
                f"t = {last}: use timestep_spacing='trailing' (--spacing trailing) instead"
            )

    def _needs_own_scheduler(self, what: str) -> None:
        if not isinstance(self.scheduler, HFDDPMScheduler):
            remedy = "set pipeline.scheduler = HFDDPMScheduler.from_config(pipeline.scheduler.config)"
            if getattr(self.scheduler, "alphas_cumprod", None) is None:  # of another noise process
                remedy = "use the scheduler that the network was trained with"
            raise ValueError(f"{what} requires an HFDDPMScheduler, not {type(self.scheduler).__name__}: {remedy}")


def _as_hf_ddpm(scheduler: SchedulerMixin) -> HFDDPMScheduler:
    """Convert a stock DDPM or DDIM scheduler to ours; in old configs `num_train_timesteps` is called `timesteps`."""
    config: dict[str, Any] = dict(scheduler.config)  # type: ignore[attr-defined]
    if "timesteps" in config:
        config["num_train_timesteps"] = config["timesteps"]
    return HFDDPMScheduler.from_config({k: v for k, v in config.items() if k != "_use_default_values"})
