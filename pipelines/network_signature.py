"""The inputs and outputs of a diffusion model's network, from its configuration."""

import difflib
import re
import reprlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from hf_ddpm.models.image_size import side_unit, size_pair

# One for all images, or one for each: a number, or the name of a class.
ClassLabels = int | str | Sequence[int | str] | Tensor | None


@dataclass(frozen=True)
class NetworkSignature:
    """The channels, size, classes and steps of a network, and checks of the arguments of a call against them.

    `NetworkSignature.of` reads it from the configurations of a UNet and a scheduler, and from the classes in the index.

    Args:
        channels: C of x_t, which is the number of latent channels if there is a VAE.
        out_channels: The number of output channels: C, or 2C with variances.
        sample_size: The size of x_t, a number or (H, W); None for any size that the levels can halve.
        takes_labels: Whether the network was trained with classes.
        num_classes: K, for the classes 0 .. K-1; None for no classes, or an unknown number (`class_embed_type`).
        null_class: K, if the network was trained with one more class, which stands for "no label"; None if it was not.
            Callers cannot pass this class, and it is never drawn.
        id2label: The names of some or all classes; None if they have only numbers.
        num_timesteps: T, the number of training timesteps.
        variance_type: The variance type of the scheduler; None for a solver that has none.
        levels: The number of levels of the network; every level but the last halves x_t.
        whose: The owner of the classes, "network", or "classifier" for those of a classifier that guides it.
    """

    channels: int
    out_channels: int
    sample_size: int | Sequence[int] | None
    takes_labels: bool
    num_classes: int | None
    null_class: int | None
    id2label: Mapping[int, str] | None
    num_timesteps: int
    variance_type: str | None
    levels: int = 1
    whose: str = "network"

    @classmethod
    def of(
        cls,
        unet: Mapping[str, Any],
        scheduler: Mapping[str, Any],
        null_class: int | None = None,
        id2label: Mapping[int, str] | None = None,
    ) -> "NetworkSignature":
        """Read the signature of a network.

        Args:
            unet: The configuration of the network.
            scheduler: The configuration of the scheduler that it was trained with.
            null_class, id2label: From the pipeline's configuration; `id2label` as returned by `names_of_classes`.

        Raises:
            ValueError: If `null_class` is not the network's last class, or a table of time embeddings does not have T
                rows.
        """
        _check_table_of_times(unet, scheduler["num_train_timesteps"])
        return cls(
            channels=unet["in_channels"],
            out_channels=unet["out_channels"],
            sample_size=unet.get("sample_size"),
            takes_labels=takes_labels(unet),
            num_classes=count_classes(unet, null_class),
            null_class=null_class,
            id2label=id2label,
            num_timesteps=scheduler["num_train_timesteps"],
            variance_type=scheduler.get("variance_type"),
            levels=len(unet.get("block_out_channels") or (1,)),
        )

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) of x_t; None for any size."""
        return None if self.sample_size is None else size_pair(self.sample_size)

    @property
    def learns_variance(self) -> bool:
        """Whether the scheduler reads the second half of a 2C-channel output as variances."""
        return str(self.variance_type).startswith("learned")

    @property
    def read_channels(self) -> int:
        """The number of output channels that the scheduler reads: C, or 2C if the variance is learned."""
        return 2 * self.channels if self.learns_variance else self.channels

    def shape(self, remedy: str) -> tuple[int, int, int]:
        """Return (C, H, W) of x_t.

        Raises:
            ValueError: If the configuration has no size; `remedy` is the end of the message.
        """
        if self.size is None:
            raise ValueError(f"the network's config has no sample_size: {remedy}")
        return (self.channels, *self.size)

    def check_size(self, size: Sequence[int], said: str) -> None:
        """Reject a size (H, W) of x_t that the levels of the network cannot halve.

        Args:
            size: The size.
            said: The beginning of the message, in the caller's words, such as "latents".

        Raises:
            ValueError: If a side is not a multiple of 2^(levels - 1).
        """
        unit = side_unit(self.levels)
        if any(side % unit for side in size):
            shown = "x".join(map(str, size))
            raise ValueError(f"{said} of size {shown} do not fit this network: use sides that are multiples of {unit}")

    def check_variances(self) -> None:
        """Reject a network without the variances that the scheduler reads.

        Raises:
            ValueError: If the output does not have twice as many channels.
        """
        if self.learns_variance and self.out_channels != self.read_channels:
            raise ValueError(
                f"variance_type={self.variance_type!r} requires {self.read_channels} output channels, but the network "
                f"has {self.out_channels}: use the one that it was trained with, such as 'fixed_small'"
            )

    def check_steps(self, steps: Any, said: str | None = None) -> None:
        """Check that the number of steps is from 1 to T.

        Args:
            steps: The number of steps.
            said: The beginning of the message, in the caller's words, such as "--steps 0 must be".

        Raises:
            ValueError: If it is not.
        """
        if not isinstance(steps, Integral) or steps not in range(1, self.num_timesteps + 1):
            said = said or f"num_inference_steps={steps!r} must be a whole number"
            raise ValueError(f"{said} from 1 to {self.num_timesteps}, the number of steps in training")

    @property
    def supports_guidance(self) -> bool:
        """Whether classifier-free guidance is possible: the network has a class for "no label"."""
        return self.takes_labels and self.null_class is not None

    def check_guidance(self, guidance_scale: float, said: str) -> None:
        """Reject classifier-free guidance for a network that does not support calls without a class.

        Args:
            guidance_scale: The scale; 1 is no guidance.
            said: The beginning of the message, in the caller's words, such as "guidance_scale=2".

        Raises:
            ValueError: If the scale is not 1 and the network has no classes, or no class for "no label".
        """
        if guidance_scale == 1 or self.supports_guidance:
            return
        if self.takes_labels:
            lacks = 'was trained without the class "no label"; train one with --label_dropout 0.1'
        else:
            lacks = "was trained without classes; train one with --label_column auto --label_dropout 0.1"
        raise ValueError(f"{said} must be 1: this network {lacks}, or use a classifier")

    def check_class(self, label: int, said: str) -> None:
        """Reject a class for a network without classes, and a class that it does not have.

        Args:
            label: The class.
            said: The beginning of the message, in the caller's words, such as "--class 3".

        Raises:
            ValueError: If it is one of these; the message names the allowed classes.
        """
        if not self.takes_labels:
            raise ValueError(f"{said} must be omitted: this network was trained without classes")
        if self.num_classes is not None and not 0 <= label < self.num_classes:
            raise ValueError(
                f"{said} must be from 0 to {self.num_classes - 1}, the {self.whose}'s classes{self._but_null()}"
            )

    def class_of_word(self, word: str, said: str) -> int:
        """Return the class that a word on the command line means: the class with this name, or else with this number.

        Args:
            word: The word.
            said: As in `check_class`.

        Raises:
            ValueError: If the word is neither, it is the name of several classes, or the network has no classes.
        """
        is_name = self.id2label is not None and word in self.id2label.values()
        if not self.takes_labels or (not is_name and re.fullmatch("[-+]?[0-9]{1,18}", word)):
            label = int(word) if self.takes_labels else 0
            self.check_class(label, said)
            return label
        if self.id2label is None:
            number = "a whole number" if self.num_classes is None else f"from 0 to {self.num_classes - 1}"
            raise ValueError(f"{said} must be {number}: this checkpoint has no class names")
        return self.class_called(word, said)

    def class_called(self, name: str, said: str) -> int:
        """Return the class with this name.

        Args:
            name: The name.
            said: The beginning of the message, in the caller's words.

        Raises:
            ValueError: If no class has this name, or several have it; the message ends with what to pass instead.
        """
        names = self.id2label or {}
        found = [label for label, known in names.items() if known == name]
        if len(found) > 1:
            numbers = " and ".join(map(str, found))
            raise ValueError(f"{said} is the name of the classes {numbers}: pass the number of one of them")
        if not found:
            raise ValueError(f"{said} is not the name of a class{_nearest(name, names.values())}")
        return found[0]

    def numbers(self, class_labels: ClassLabels, name: str = "class_labels") -> Any:
        """Replace the names in class labels by numbers, and leave everything else unchanged.

        A string is always a name: "3" may be the name of class 7, while 3 is class 3.

        Args:
            class_labels: The class labels.
            name: What the message calls them.

        Raises:
            ValueError: As in `class_called`, or if there are names, but the checkpoint has none.
        """
        several = isinstance(class_labels, list | tuple)
        labels: list[Any] = [*class_labels] if isinstance(class_labels, list | tuple) else [class_labels]
        words = dict.fromkeys(label for label in labels if isinstance(label, str))
        if words and self.id2label is None:
            raise ValueError(f"{name}={class_labels!r} must be whole numbers: this checkpoint has no class names")
        said = {word: f"{word!r} in {name}" if several else f"{name}={word!r}" for word in words}
        known = {word: self.class_called(word, said[word]) for word in words}
        numbers = [known[label] if isinstance(label, str) else label for label in labels]
        return numbers if several else numbers[0]

    def labels(self, class_labels: ClassLabels, batch_size: int, name: str = "class_labels") -> Tensor | None:
        """Return class labels as (batch_size,), or None for a network without classes.

        Args:
            class_labels: The class labels.
            batch_size: The batch size.
            name: What the message calls the labels.

        Raises:
            ValueError: If labels are missing, too many, neither integers nor names, or not classes of the network.
        """
        if not self.takes_labels:
            if class_labels is not None:
                raise ValueError(f"{name} must be omitted: this network was trained without classes")
            return None
        if class_labels is None:
            classes = "classes" if self.num_classes is None else f"{self.num_classes} classes"
            raise ValueError(f"this {self.whose} was trained with {classes}: pass {name}")
        if not isinstance(class_labels, Tensor) and callable(getattr(class_labels, "tolist", None)):
            class_labels = class_labels.tolist()  # type: ignore[union-attr]  # for numpy
        class_labels = self.numbers(class_labels, name)
        try:
            labels = torch.as_tensor(class_labels)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{name}={class_labels!r} must be whole numbers") from error
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise ValueError(f"{name}={class_labels!r} must be whole numbers")
        labels = labels.long()
        if labels.ndim == 0:
            labels = labels.expand(batch_size)
        if labels.shape != (batch_size,):
            raise ValueError(f"{name} of shape {tuple(labels.shape)} do not fit batch_size={batch_size}")
        if self.num_classes is not None and not ((labels >= 0) & (labels < self.num_classes)).all():
            given = f"{int(labels.min())}..{int(labels.max())}"
            allowed = f"0..{self.num_classes - 1}, the {self.whose}'s classes{self._but_null()}"
            raise ValueError(f"{name} {given} must lie within {allowed}")
        return labels

    def classes_in_turn(self, indices: Sequence[int], class_label: int | str | None = None) -> list[int] | None:
        """Return the class of each image: `class_label` for all, or the classes in turn; None without classes."""
        if class_label is not None:
            return [self.numbers(class_label, "class_label")] * len(indices)
        return None if self.num_classes is None else [i % self.num_classes for i in indices]

    def _but_null(self) -> str:
        """Return the end of a message about the network's classes."""
        return "" if self.null_class is None else f' ({self.null_class} stands for "no label" and is never drawn)'


def takes_labels(unet: Mapping[str, Any]) -> bool:
    """Return whether a UNet with this configuration takes class labels."""
    return unet.get("num_class_embeds") is not None or unet.get("class_embed_type") is not None


def count_classes(unet: Mapping[str, Any], null_class: int | None) -> int | None:
    """Return K from a UNet's configuration: the number of classes without "no label"; None if there are no classes.

    Raises:
        ValueError: If `null_class` is not the last of two or more classes.
    """
    embedded: int | None = unet.get("num_class_embeds")
    if null_class is None:
        return embedded
    if type(null_class) is not int or embedded is None or null_class < 1 or null_class != embedded - 1:
        allowed = "None" if embedded is None or embedded < 2 else f"None or {embedded - 1}"
        raise ValueError(
            f"null_class={reprlib.repr(null_class)} does not fit a network with num_class_embeds={embedded}: the class "
            f'that stands for "no label" must be the last one, so pass {allowed}'
        )
    return null_class


def names_of_classes(
    id2label: Mapping[Any, str] | None, unet: Mapping[str, Any], null_class: int | None = None
) -> dict[int, str] | None:
    """Return the names of classes by their numbers, in order; JSON may have converted the numbers to strings.

    Args:
        id2label: {0: "cat", ...} or {"0": "cat", ...}; a class that is left out has no name.
        unet: The configuration of the network that has the classes.
        null_class: The class that stands for "no label", which has no name.

    Raises:
        ValueError: If a key is not a class of this network, or a name is not a string.
    """
    if id2label is None or (isinstance(id2label, Mapping) and not id2label):
        return None
    if not isinstance(id2label, Mapping) or not all(isinstance(name, str) for name in id2label.values()):
        raise ValueError(f"id2label={reprlib.repr(id2label)} must map classes to names, such as {{0: 'cat'}}")
    if not takes_labels(unet):
        raise ValueError("id2label must be omitted: this network was trained without classes")
    names: dict[int, str] = {}
    num_classes = count_classes(unet, null_class)
    for key, name in id2label.items():
        number = int(key) if re.fullmatch(r"[0-9]{1,18}", str(key)) else -1
        if number < 0 or number in names or (num_classes is not None and number >= num_classes):
            last = " on" if num_classes is None else f" to {num_classes - 1}"
            raise ValueError(f"id2label has a name for {reprlib.repr(key)}: use one for each class from 0{last}")
        names[number] = name
    return dict(sorted(names.items()))


def _check_table_of_times(unet: Mapping[str, Any], num_timesteps: int) -> None:
    """Reject a table of time embeddings that does not have exactly one row for each timestep."""
    rows = unet.get("num_train_timesteps")
    if unet.get("time_embedding_type") == "learned" and rows != num_timesteps:
        raise ValueError(
            f"the network has a table of {rows} time embeddings (num_train_timesteps in its config) and the scheduler "
            f"has {num_timesteps} timesteps: both must be equal"
        )


def _nearest(word: str, names: Collection[str]) -> str:
    """Return the end of a message about an unknown name: a name that contains it, the closest one, or the first few."""
    folded = word.casefold()
    holding = [name for name in names if folded and folded in name.casefold()][:1]
    near = holding or difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    first = ", ".join(map(repr, list(names)[:5]))
    return f"; the names are {first}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")
