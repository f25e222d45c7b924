"""Classification of images with a noisy classifier."""

import os
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import Tensor

from hf_ddpm.models.image_size import size_pair
from hf_ddpm.models.noisy_classifier import NoisyClassifier
from hf_ddpm.pipelines.doors import name_ours, write_code
from hf_ddpm.pipelines.evaluating import without_training
from hf_ddpm.pipelines.image_inputs import Images, to_x_0
from hf_ddpm.pipelines.opening import CheckedOpening

WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
DEFAULT_STEPS = 1000  # the default T of `HFDDPMScheduler`


@dataclass
class HFClassifierOutput(BaseOutput):
    """The output of `HFClassifierPipeline`.

    Attributes:
        probabilities: p(y | x_t, t), float32 (B, K), which sum to 1 over the classes.
        names: The names of the K classes.
    """

    probabilities: Tensor
    names: list[str]


class HFClassifierPipeline(CheckedOpening, DiffusionPipeline):
    """A pipeline for p(y | x_t, t) of noisy or clean images (Dhariwal & Nichol 2021, arXiv 2105.05233, sec. 4).

    Args:
        classifier: A `NoisyClassifier`.
    """

    model_cpu_offload_seq = "classifier"  # type: ignore[assignment]

    def __init__(self, classifier: NoisyClassifier) -> None:
        super().__init__()
        # by its config: if hf_ddpm is imported next to door 3 there are two such classes; torch.compile has a third
        if not isinstance(classifier, torch.nn.Module) or "pool" not in getattr(classifier, "config", {}):
            raise ValueError(f"classifier of type {type(classifier).__name__} must be a NoisyClassifier")
        self.register_modules(classifier=classifier)

    @property
    def num_classes(self) -> int:
        """K."""
        return self.classifier.config["num_classes"]

    @property
    def image_channels(self) -> int:
        """C of the images."""
        return self.classifier.config["in_channels"]

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the images."""
        return size_pair(self.classifier.config["sample_size"])

    @without_training
    def __call__(
        self, images: Images, timestep: int | Tensor = 0, return_dict: bool = True
    ) -> HFClassifierOutput | tuple[Tensor, list[str]]:
        """Compute the probability of each class.

        Args:
            images: x_t: PIL images, tensors (B, C, H, W) or arrays (B, H, W, C), see `to_x_0`. The values of noisy
                images may lie beyond [-1, 1].
            timestep: t in 0 .. T-1, one integer for all images or (B,). Use 0, the least noise, for clean images.
            return_dict: Whether to return an `HFClassifierOutput` instead of a tuple of probabilities and names.

        Raises:
            ValueError: If the images have another size or number of channels, or the timesteps do not fit.
        """
        x_t = to_x_0(images, self.image_channels, self.image_size, noisy=True)
        t = self._checked(timestep, len(x_t)).to(self._execution_device)
        logits = self.classifier(x_t.to(self._execution_device, self.classifier.dtype), t).logits
        found = HFClassifierOutput(logits.float().softmax(dim=1), self.classifier.class_names)
        self.maybe_free_model_hooks()
        return found if return_dict else (found.probabilities, found.names)

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write model_index.json and the code files of door 3; door 2 is impossible, as diffusers has no such class.

        `save_pretrained` calls this last, after the component and before an upload.
        """
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)
        folder = Path(save_directory)
        write_code(folder, __name__, name_ours(folder).values())

    def _checked(self, timestep: int | Tensor, batch_size: int) -> Tensor:
        """Check the timesteps and return them as int64, () or (B,)."""
        is_whole = isinstance(timestep, Integral) and not isinstance(timestep, bool)
        if not is_whole and not (isinstance(timestep, Tensor) and timestep.dtype in WHOLE):
            raise ValueError(f"timestep={timestep!r} must be a whole number, or a tensor with one for each image")
        t = torch.as_tensor(timestep).long()
        if t.shape not in ((), (1,), (batch_size,)):
            raise ValueError(
                f"timesteps of shape {tuple(t.shape)} do not fit {batch_size} image(s): pass one, or one for each image"
            )
        num_steps = (self.classifier.config["noise_schedule"] or {}).get("num_train_timesteps", DEFAULT_STEPS)
        if not bool(((t >= 0) & (t < num_steps)).all()):
            raise ValueError(f"timestep={t.tolist()} must lie in 0 .. {num_steps - 1}; 0 is the least noise")
        return t
