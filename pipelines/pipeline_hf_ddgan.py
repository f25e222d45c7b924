"""Sampling in a few steps with the generator of a denoising diffusion GAN."""

import os
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from hf_ddpm.models.ddgan_discriminator import DDGANDiscriminator
from hf_ddpm.models.ddgan_generator import DDGANGenerator
from hf_ddpm.models.image_size import size_pair
from hf_ddpm.pipelines.call_checks import Generators, StepCallback, check_call
from hf_ddpm.pipelines.doors import forget_component, name_ours, write_code
from hf_ddpm.pipelines.evaluating import without_training
from hf_ddpm.pipelines.image_inputs import to_images
from hf_ddpm.pipelines.network_signature import ClassLabels, NetworkSignature, names_of_classes
from hf_ddpm.pipelines.opening import CheckedOpening
from hf_ddpm.schedulers.scheduling_hf_ddpm import HFDDPMScheduler


class HFDDGANPipeline(CheckedOpening, DiffusionPipeline):
    """A pipeline for a denoising diffusion GAN (Xiao et al. 2022, arXiv 2112.07804): T steps of the posterior, T small.

    In each step the generator predicts x_0 from x_t and a fresh latent z, and x_{t-1} is drawn from
    q(x_{t-1} | x_t, x_0).

    Args:
        generator: A `DDGANGenerator`.
        scheduler: The `HFDDPMScheduler` that it was trained with, with T steps, `prediction_type="sample"` and
            `variance_type="fixed_small"`.
        discriminator: The `DDGANDiscriminator` that it was trained against; sampling does not need it.
        id2label: The names of some or all classes, by their numbers.

    Raises:
        ValueError: If the components do not fit together.
    """

    model_cpu_offload_seq = "generator"  # type: ignore[assignment]
    _optional_components = ["discriminator"]  # noqa: RUF012  # diffusers' name and type
    _interrupt = False

    def __init__(
        self,
        generator: DDGANGenerator,
        scheduler: HFDDPMScheduler,
        discriminator: DDGANDiscriminator | None = None,
        id2label: dict[int, str] | dict[str, str] | None = None,  # JSON turns numbers into strings
    ) -> None:
        super().__init__()
        # by its config: if hf_ddpm is imported next to door 3 there are two such classes; torch.compile has a third
        if not isinstance(generator, torch.nn.Module) or "latent_dim" not in getattr(generator, "config", {}):
            raise ValueError(f"generator of type {type(generator).__name__} must be a DDGANGenerator")
        _check_discriminator(discriminator, generator.config)
        _check_scheduler(scheduler)
        names = names_of_classes(id2label, {"num_class_embeds": generator.config["num_classes"]})
        self.register_modules(generator=generator, scheduler=scheduler, discriminator=discriminator)
        self.register_to_config(id2label=names)

    @property
    def signature(self) -> NetworkSignature:
        """The inputs and outputs of the generator."""
        config, scheduler = self.generator.config, self.scheduler.config
        return NetworkSignature(
            channels=config["in_channels"],
            out_channels=config["in_channels"],
            sample_size=config["sample_size"],
            takes_labels=config["num_classes"] is not None,
            num_classes=config["num_classes"],
            null_class=None,
            id2label=self.config["id2label"],
            num_timesteps=scheduler["num_train_timesteps"],
            variance_type=scheduler["variance_type"],
        )

    @property
    def class_signature(self) -> NetworkSignature:
        """The same as `signature`, because no classifier guides a GAN."""
        return self.signature

    @property
    def num_classes(self) -> int | None:
        """K for a generator with classes; None for one without."""
        return self.generator.config["num_classes"]

    @property
    def image_channels(self) -> int:
        """C of the images."""
        return self.generator.config["in_channels"]

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the images."""
        return size_pair(self.generator.config["sample_size"])

    @property
    def noise_network(self) -> Any:
        """The network whose input is noise."""
        return self.generator

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the noise that an image starts from."""
        return (self.image_channels, *self.image_size)

    @without_training
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int | None = None,
        generator: Generators = None,
        class_labels: ClassLabels = None,
        latents: Tensor | None = None,
        truncation: float = 1.0,
        output_type: Literal["pil", "np", "pt"] = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw x_T, and in each of the T steps z, x_0 = G(x_t, z, t) and x_{t-1} ~ q(x_{t-1} | x_t, x_0).

        Args:
            batch_size: The number of images.
            num_inference_steps: T, the number of steps in training; no other number is allowed.
            generator: The generator of x_T, then of z and the noise of each step; or a list with one for each image,
                so that an image does not depend on the rest of its batch.
            class_labels: One class, or one for each image, if and only if the GAN was trained with classes. Each is a
                number, or one of the names in `id2label`.
            latents: x_T, (batch_size, C, H, W) with unit variance, instead of a draw.
            truncation: A number in [0, 1], which moves w, the output of the mapping network, towards its mean: 1
                leaves w as in training, smaller values give less diverse images (arXiv 1812.04948, appendix B).
            output_type: `pil`, `np` (B, H, W, C) in [0, 1], or `pt` (B, C, H, W) in [0, 1].
            return_dict: Whether to return an `ImagePipelineOutput` instead of a tuple of the images.
            callback_on_step_end: A function that is called as `callback(pipeline, i, t, {"latents": x})` after each
                step. It may return other latents, and `pipeline._interrupt = True` stops sampling after this step.

        Raises:
            ValueError: If the batch size, labels, latents or steps do not fit.
        """
        check_call(batch_size, generator, output_type)
        _check_scheduler(self.scheduler)  # another one may have been assigned
        num_steps = len(self.scheduler)
        given = num_inference_steps
        if given is not None and not (isinstance(given, Integral) and given == num_steps):
            raise ValueError(
                f"num_inference_steps={given!r} must be {num_steps}, the number of steps in training, or be omitted"
            )
        device, dtype = self._execution_device, self.generator.dtype
        labels = self.signature.labels(class_labels, batch_size)
        labels = None if labels is None else labels.to(device)
        x_t = self._x_T(batch_size, latents, generator)
        self.scheduler.set_timesteps(num_steps, timestep_spacing="trailing")
        shape = (batch_size, self.generator.config["latent_dim"])
        self._interrupt = False
        for i, t in enumerate(self.progress_bar(self.scheduler.timesteps.tolist())):
            z = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
            x_0 = self.generator(x_t, t, z, labels, truncation=truncation).sample
            x_t = self.scheduler.step(x_0, t, x_t, generator=generator).prev_sample
            if callback_on_step_end is not None:
                timestep = self.scheduler.timesteps[i]
                x_t = (callback_on_step_end(self, i, timestep, {"latents": x_t}) or {}).get("latents", x_t)
            if self._interrupt:
                break
        images = to_images(x_t, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def invert(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise an error: `reconstruct`, `vary`, `interpolate`, `inpaint` and `score` are not supported either.

        Raises:
            ValueError: Always; the message says which pipeline supports them.
        """
        raise ValueError(
            "a denoising GAN draws a latent at each of its few steps, so an image cannot be inverted to its noise, and "
            "there is no score: use an HFDDPMPipeline for edits, inversion and scores"
        )

    reconstruct = vary = interpolate = inpaint = score = invert

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write model_index.json and the code files of door 3; door 2 is impossible, as diffusers has no such class.

        `save_pretrained` calls this last, after the components and before an upload.
        """
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)
        folder = Path(save_directory)
        ours = name_ours(folder)
        if self.discriminator is None:
            forget_component(folder, "discriminator")
        write_code(folder, __name__, ours.values())

    def _x_T(self, batch_size: int, latents: Tensor | None, generator: Generators) -> Tensor:
        shape, device, dtype = (batch_size, *self.noise_shape), self._execution_device, self.generator.dtype
        if latents is None:
            return randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        if not isinstance(latents, Tensor) or tuple(latents.shape) != shape:
            given = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise ValueError(f"latents of shape {given} must be a tensor of shape {shape}")
        return latents.to(device, dtype)


def _check_scheduler(scheduler: Any) -> None:
    """Reject a scheduler whose steps are not draws from the posterior."""
    # by its name: if hf_ddpm is imported next to door 3 there are two such classes
    if type(scheduler).__name__ != HFDDPMScheduler.__name__:
        raise ValueError(
            f"the scheduler of type {type(scheduler).__name__} must be the HFDDPMScheduler that the generator was "
            "trained with"
        )
    if obstacle := scheduler.posterior_obstacle:
        raise ValueError(f"{obstacle} in the scheduler's config, as in the training of the generator")


def _check_discriminator(discriminator: Any, wanted: Mapping[str, Any]) -> None:
    """Reject anything but a discriminator for the images and classes of a generator with the configuration `wanted`."""
    if discriminator is None:
        return
    config = getattr(discriminator, "config", {})
    if not isinstance(discriminator, torch.nn.Module) or "group_size" not in config:
        raise ValueError(f"discriminator of type {type(discriminator).__name__} must be a DDGANDiscriminator, or None")
    for key in ("sample_size", "in_channels", "num_classes"):
        given, needed = config[key], wanted[key]
        if key == "sample_size":
            given, needed = size_pair(given), size_pair(needed)
        if given != needed:
            raise ValueError(f"the discriminator's {key}={given} must be {needed}, as the generator's is")
