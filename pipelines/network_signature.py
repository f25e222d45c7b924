"""What a diffusion model's network takes and returns, read from its configuration in one place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from hf_ddpm.models.image_size import size_pair

ClassLabels = int | Sequence[int] | Tensor | None  # one for all images, or one for each


@dataclass(frozen=True)
class NetworkSignature:
    """The channels, size, classes and steps of a network, and one sentence for a call that does not fit them.

    `NetworkSignature.of` reads it from the configurations of a UNet and a scheduler.

    Args:
        channels: C of x_t, which are those of latents where there is a VAE.
        out_channels: of the output: C, or 2C with variances.
        sample_size: of x_t, a number or (H, W); None: any that the levels can halve.
        takes_labels: whether the network was trained with classes.
        num_classes: K, the classes are 0 .. K-1; None: no classes, or labels that are not counted (`class_embed_type`).
        null_class: the class that stands for no label; None: the network knows none.
        num_timesteps: T, the steps of training.
        variance_type: of the scheduler; None: a solver that has none.
    """

    channels: int
    out_channels: int
    sample_size: int | Sequence[int] | None
    takes_labels: bool
    num_classes: int | None
    null_class: int | None
    num_timesteps: int
    variance_type: str | None

    @classmethod
    def of(cls, unet: Mapping[str, Any], scheduler: Mapping[str, Any]) -> "NetworkSignature":
        """The signature of a network by its configuration, and by that of the scheduler that it was trained with."""
        num_classes = unet.get("num_class_embeds")
        return cls(
            channels=unet["in_channels"],
            out_channels=unet["out_channels"],
            sample_size=unet.get("sample_size"),
            takes_labels=num_classes is not None or unet.get("class_embed_type") is not None,
            num_classes=num_classes,
            null_class=None,
            num_timesteps=scheduler["num_train_timesteps"],
            variance_type=scheduler.get("variance_type"),
        )

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) of x_t; None: any."""
        return None if self.sample_size is None else size_pair(self.sample_size)

    @property
    def learns_variance(self) -> bool:
        """Whether the scheduler reads the second half of a 2C-channel output as variances."""
        return str(self.variance_type).startswith("learned")

    @property
    def read_channels(self) -> int:
        """How many channels of the output the scheduler reads: C, or 2C where the variance is learned."""
        return 2 * self.channels if self.learns_variance else self.channels

    def shape(self, remedy: str) -> tuple[int, int, int]:
        """(C, H, W) of x_t.

        Raises:
            ValueError: the configuration names no size; `remedy` says what to do.
        """
        if self.size is None:
            raise ValueError(f"the network's config has no sample_size: {remedy}")
        return (self.channels, *self.size)

    def check_variances(self) -> None:
        """Refuse a network without the variances that the scheduler reads.

        Raises:
            ValueError: the output is not twice as many channels.
        """
        if self.learns_variance and self.out_channels != self.read_channels:
            raise ValueError(
                f"variance_type={self.variance_type!r} reads {self.read_channels} output channels and the network has "
                f"{self.out_channels}: take the one that it was trained with, such as 'fixed_small'"
            )

    def check_steps(self, steps: Any, said: str | None = None) -> None:
        """Refuse a walk of other than 1 to T steps.

        Args:
            said: how the sentence begins, in the caller's words, such as "--steps 0 must be".

        Raises:
            ValueError: what is allowed.
        """
        if not isinstance(steps, Integral) or steps not in range(1, self.num_timesteps + 1):
            said = said or f"num_inference_steps={steps!r} must be a whole number"
            raise ValueError(f"{said} from 1 to {self.num_timesteps}, the steps it was trained with")

    def check_class(self, label: int, said: str) -> None:
        """Refuse a class for a network without classes, and one that it does not know.

        Args:
            said: how the sentence begins, in the caller's words, such as "--class 3".

        Raises:
            ValueError: what is allowed.
        """
        if not self.takes_labels:
            raise ValueError(f"{said}: this network was trained without classes, leave it out")
        if self.num_classes is not None and not 0 <= label < self.num_classes:
            raise ValueError(f"{said} must be from 0 to {self.num_classes - 1}, the network's classes")

    def labels(self, class_labels: ClassLabels, batch_size: int, name: str = "class_labels") -> Tensor | None:
        """Class labels as (batch_size,), or None for a network without classes.

        Args:
            name: what the caller calls them.

        Raises:
            ValueError: labels that are missing, too many, no whole numbers, or none of the network's.
        """
        if not self.takes_labels:
            if class_labels is not None:
                raise ValueError(f"{name} were given, but this network was trained without classes: leave them out")
            return None
        if class_labels is None:
            classes = "classes" if self.num_classes is None else f"{self.num_classes} classes"
            raise ValueError(f"this network was trained with {classes}: give {name}")
        try:
            labels = torch.as_tensor(class_labels)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}={class_labels!r} must be whole numbers") from error
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise ValueError(f"{name}={class_labels!r} must be whole numbers")
        if labels.ndim == 0:
            labels = labels.expand(batch_size)
        if labels.shape != (batch_size,):
            raise ValueError(f"{name} of shape {tuple(labels.shape)} do not fit batch_size={batch_size}")
        if self.num_classes is not None and not ((labels >= 0) & (labels < self.num_classes)).all():
            given = f"{int(labels.min())}..{int(labels.max())}"
            raise ValueError(f"{name} {given} must lie within 0..{self.num_classes - 1}, the network's classes")
        return labels

    def classes_in_turn(self, indices: Sequence[int], class_label: int | None = None) -> list[int] | None:
        """The class of each image: `class_label` for all, or the network's in turn; None for a network without."""
        if class_label is not None:
            return [class_label] * len(indices)
        return None if self.num_classes is None else [i % self.num_classes for i in indices]
