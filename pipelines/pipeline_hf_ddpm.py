"""Noise to images with any DDPM-family network and any diffusers scheduler."""

import dataclasses
import inspect
import os
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

from diffusers.models.unets.unet_2d import UNet2DModel
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
    """Sample images from a `UNet2DModel` (Ho et al. 2020, Algorithm 2; Song et al. 2021, eq. 12).

    Args:
        unet: predicts what `scheduler.config.prediction_type` says, from C channels to C, or 2C with variances.
        scheduler: any diffusers scheduler. `DDPMScheduler` and `DDIMScheduler` are turned into `HFDDPMScheduler` here;
            one that is assigned later stays as it is.
        default_eta: the `eta` of a call that gives none. None is Algorithm 2; a `DDIMScheduler` makes it 0.
        vae: an `HFVAE`, `AutoencoderKL` or `AutoencoderTiny` whose latents the UNet works in (arXiv 2112.10752). Images
            are then encoded before and decoded after; `latents` and x_t everywhere are those of the VAE, scaled.
        null_class: K, of a UNet with `num_class_embeds = K + 1` that was trained with one class more for "no label",
            which is never drawn. It is not inferred; None is a network without.
        id2label: names of classes by their numbers, {0: "cat", ...}, by which `class_labels` may ask for them.
        classifier: a `NoisyClassifier` of the same noise schedule, images and classes, or an image classifier of
            `transformers`, which sees the predicted x_0. Its gradient guides the walk (ADM, arXiv 2105.05233, section
            4); a UNet without classes gets its classes.
        image_processor: of a classifier of `transformers`.

    Raises:
        ValueError: networks that do not fit, a classifier that does not, a VAE whose `scaling_factor` was not measured,
            or a `null_class` or names that are not of the UNet's classes.
    """

    model_cpu_offload_seq = "unet->vae"  # type: ignore[assignment]
    _optional_components = ["vae", "classifier", "image_processor"]  # noqa: RUF012  # diffusers' name and type
    _exclude_from_cpu_offload = ["classifier"]  # noqa: RUF012  # which is asked after every call of the UNet
    _interrupt = False

    vary, interpolate = vary, interpolate
    invert, reconstruct = invert, reconstruct
    inpaint = inpaint
    _guided = guided

    def __init__(
        self,
        unet: UNet2DModel,
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
        """What the network takes and returns; of latents, where there is a VAE."""
        of_classes = {name: self.config[name] for name in ("null_class", "id2label")}
        return NetworkSignature.of(self.unet.config, self.scheduler.config, **of_classes)

    @property
    def image_channels(self) -> int:
        """C of the images, which those of the latents are not."""
        return self._space.channels

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(H, W) of the images, found by decoding one where there is a VAE; None: any."""
        return self._space.size

    @property
    def num_classes(self) -> int | None:
        """K of a network with class labels, which are 0 to K - 1; None for one without. "No label" is not counted.

        Of a network without, the classes of the classifier that guides it.
        """
        return self.class_signature.num_classes

    @property
    def class_signature(self) -> NetworkSignature:
        """`signature` with the classes that may be asked for: the classifier's, where the network has none."""
        signature, classifier = self.signature, self.classifier
        if signature.takes_labels or classifier is None:
            return signature
        count, names = classes_of(classifier)
        return dataclasses.replace(signature, takes_labels=True, num_classes=count, id2label=names, whose="classifier")

    @property
    def noise_network(self) -> Any:
        """The network that noise goes into."""
        return self.unet

    @property
    def noise_shape(self) -> tuple[int, int, int] | None:
        """(C, h, w) of the noise that an image starts from; None where the network's config has no sample_size."""
        signature = self.signature
        return None if signature.size is None else (signature.channels, *signature.size)

    @property
    def interrupt(self) -> bool:
        """Whether the walk ends after this step: a callback sets `pipeline._interrupt = True`."""
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
        """Draw x_T and walk the scheduler's timesteps down to x_0.

        Args:
            batch_size: number of images.
            num_inference_steps: number of network calls, all T training steps when nothing else says.
            eta: 0 (DDIM) to 1; None takes `default_eta`, and if that is None too, Algorithm 2.
            generator: one generator, drawn from as diffusers draws; or one for each image, which fixes image i whatever
                the batch around it.
            class_labels: one class, or one for each image, if and only if the network was trained with classes or a
                classifier guides it. A number, or one of the names in `id2label`.
            latents: x_T, (batch_size, C, H, W) of unit variance, instead of a draw.
            output_type: `pil`, `np` (B, H, W, C) in [0, 1], or `pt` (B, C, H, W) in [0, 1].
            return_dict: `ImagePipelineOutput`, or a tuple of the images.
            callback_on_step_end: called as `callback(pipeline, i, t, {"latents": x})` after each step; our
                scheduler adds `"pred_original_sample"`, the x_0 seen there. A returned dict may replace the latents.
                `pipeline._interrupt = True` ends the walk after this step.
            timesteps: a descending list of timesteps of your own, for schedulers that take one.
            timestep_spacing: another spacing than the config's, or sections (see `HFDDPMScheduler.set_timesteps`).
            start_timestep: `latents` is x_t of this t, and the walk begins there.
            corrector_steps: steps of Langevin dynamics at each level on the way, each a network call more
                (predictor-corrector sampling, Song et al. 2021, arXiv 2011.13456, Algorithm 1).
            corrector_snr: of `HFDDPMScheduler.step_langevin`.
            guidance_scale: s of classifier-free guidance, eps_u + s (eps_c - eps_u); 1 is off. Other scales need a
                network with a `null_class`, and twice the time.
            classifier_scale: what the gradient of the classifier's log p(y | x_t) is multiplied by; 0 is off, None is 1
                with a classifier and `class_labels`.
            guidance_rescale, guidance_interval, guidance_schedule, classifier_gradient, classifier_max_norm: see
                `Guidance`. `classifier_gradient="mean"` goes with Algorithm 2 alone.

        Raises:
            ValueError: a batch, labels, latents, steps, eta or guidance that do not fit, said in one sentence.
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
        """grad log q(x_t) as the network sees it, -eps / sqrt(1 - alpha_bar_t), shaped as `x_t` (B, C, H, W).

        `guidance` are keywords of a call: the score that guides a walk with them.
        """
        self._needs_own_scheduler("score")
        channels = self.signature.channels
        if x_t.ndim != 4 or x_t.shape[1] != channels:
            raise ValueError(f"x_t of shape {tuple(x_t.shape)} must have shape (B, {channels}, H, W)")
        if guidance.get("classifier_gradient", "x_t") != "x_t":
            raise ValueError("classifier_gradient='mean' is of a step: the score at x_t takes 'x_t'")
        asked = self._guided(class_labels, len(x_t), **guidance)(x_t, timestep, timestep)
        own = self.scheduler.score(asked["model_output"], x_t, timestep)
        return own + asked["score"].to(own.dtype) if "score" in asked else own

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write model_index.json, for stock classes where they sample the same, and the code files of door 3.

        `save_pretrained` calls this last, after the components and before an upload.
        """
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)
        folder = Path(save_directory)
        ours = name_ours(folder)
        for absent in self._optional_components:
            if getattr(self, absent) is None:
                forget_component(folder, absent)
        is_ours = type(self).__module__ == __name__ and "scheduler" in ours  # a derived class may sample otherwise
        eta = self.config["default_eta"]
        if (
            is_ours
            and self.vae is None
            and self.classifier is None
            and stock_samples_the_same(self.scheduler.config, self.unet.config, eta)
        ):
            open_stock_door(folder)
        write_code(folder, __name__, ours.values())

    @property
    def _space(self) -> ImageSpace:
        return ImageSpace(self.vae, self.signature, self._execution_device, self.unet.dtype)

    @property
    def _reads_variance(self) -> bool:
        """Whether the scheduler takes the second half of 2C output channels."""
        return isinstance(self.scheduler, HFDDPMScheduler) or (
            isinstance(self.scheduler, (DDPMScheduler, DDPMParallelScheduler)) and self.signature.learns_variance
        )

    def _step_kwargs(self, eta: float | None, generator: object) -> dict[str, Any]:
        """Of eta and generator, what the scheduler's `step` takes."""
        accepted = inspect.signature(self.scheduler.step).parameters
        if eta is not None and "eta" not in accepted:
            raise ValueError(f"eta={eta} has no meaning for {type(self.scheduler).__name__}: leave it out")
        eta = self.config["default_eta"] if eta is None else eta
        given = {"generator": generator} | ({} if eta is None else {"eta": eta})
        return {name: value for name, value in given.items() if name in accepted}

    def _set_timesteps(
        self, num_inference_steps: int | None, timesteps: Sequence[int] | None, timestep_spacing: str | None
    ) -> None:
        """Have the scheduler choose; one number, one spacing or one list."""
        if timestep_spacing is not None and not isinstance(self.scheduler, HFDDPMScheduler):
            raise ValueError(
                f"timestep_spacing={timestep_spacing!r} has no meaning for {type(self.scheduler).__name__}: "
                "set the one of its config"
            )
        if timesteps is not None:
            if num_inference_steps is not None or timestep_spacing is not None:
                raise ValueError("give timesteps alone, not both them and num_inference_steps or timestep_spacing")
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
            shape = (batch_size, *signature.shape("give latents of the size to sample"))
        device, dtype = self._execution_device, self.unet.dtype
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        elif tuple(latents.shape) != shape:
            raise ValueError(f"latents of shape {tuple(latents.shape)} must have shape {shape}")
        return latents.to(device, dtype) * self.scheduler.init_noise_sigma

    def _start_at(self, t: int, latents: Tensor | None) -> None:
        """Begin the walk at `t`, and go on with the chosen timesteps below it."""
        self._needs_own_scheduler("start_timestep")
        if latents is None:
            raise ValueError(
                f"start_timestep={t} needs latents, x_t of that level: vary(images, {t}) makes them of images"
            )
        self.scheduler.set_timesteps(timesteps=[t, *(s for s in self.scheduler.timesteps.tolist() if s < t)])

    def _check_start_at_noise(self) -> None:
        """A walk that starts from pure noise starts where the schedule has no signal, if it has such a place."""
        if not isinstance(self.scheduler, HFDDPMScheduler) or self.scheduler.alphas_cumprod[-1] > 0:
            return
        first, last = int(self.scheduler.timesteps[0]), len(self.scheduler) - 1
        if first != last:
            raise ValueError(
                f"the walk starts at t = {first}, and a schedule that ends at alpha_bar = 0 has pure noise at {last} "
                "only: choose timestep_spacing='trailing', or give latents of that level and start_timestep"
            )

    def _needs_own_scheduler(self, what: str) -> None:
        if not isinstance(self.scheduler, HFDDPMScheduler):
            raise ValueError(
                f"{what} needs an HFDDPMScheduler, not {type(self.scheduler).__name__}: "
                "pipeline.scheduler = HFDDPMScheduler.from_config(pipeline.scheduler.config)"
            )


def _as_hf_ddpm(scheduler: SchedulerMixin) -> HFDDPMScheduler:
    """A stock DDPM or DDIM scheduler as ours; old configs call `num_train_timesteps` `timesteps`."""
    config: dict[str, Any] = dict(scheduler.config)  # type: ignore[attr-defined]
    if "timesteps" in config:
        config["num_train_timesteps"] = config["timesteps"]
    return HFDDPMScheduler.from_config({k: v for k, v in config.items() if k != "_use_default_values"})
