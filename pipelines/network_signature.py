"""What a diffusion model's network takes and returns, read from its configuration in one place."""

import difflib
import re
import reprlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from hf_ddpm.models.image_size import size_pair

# One for all images, or one for each: a number, or the name of a class.
ClassLabels = int | str | Sequence[int | str] | Tensor | None


@dataclass(frozen=True)
class NetworkSignature:
    """The channels, size, classes and steps of a network, and one sentence for a call that does not fit them.

    `NetworkSignature.of` reads it from the configurations of a UNet and a scheduler, and from what the index says of
    classes.

    Args:
        channels: C of x_t, which are those of latents where there is a VAE.
        out_channels: of the output: C, or 2C with variances.
        sample_size: of x_t, a number or (H, W); None: any that the levels can halve.
        takes_labels: whether the network was trained with classes.
        num_classes: K, the classes are 0 .. K-1; None: no classes, or labels that are not counted (`class_embed_type`).
        null_class: K, where the network was trained with one class more that stands for "no label"; None: it was not.
            It is no class that a caller may name, and none that is drawn.
        id2label: the names of some or all classes; None: they have numbers only.
        num_timesteps: T, the steps of training.
        variance_type: of the scheduler; None: a solver that has none.
        whose: the classes are, the network's or those of the classifier that guides it.
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
    whose: str = "network"

    @classmethod
    def of(
        cls,
        unet: Mapping[str, Any],
        scheduler: Mapping[str, Any],
        null_class: int | None = None,
        id2label: Mapping[int, str] | None = None,
    ) -> "NetworkSignature":
        """The signature of a network.

        Args:
            unet: its configuration.
            scheduler: that of the scheduler that it was trained with.
            null_class, id2label: of the pipeline's configuration; `id2label` from `names_of_classes`.

        Raises:
            ValueError: a `null_class` that is not the network's last class, or a table of time embeddings that has
                another length than the process.
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

    def check_guidance(self, guidance_scale: float, said: str) -> None:
        """Refuse classifier-free guidance of a network that cannot be asked without its classes.

        Args:
            guidance_scale: 1 is no guidance.
            said: how the sentence begins, in the caller's words, such as "guidance_scale=2".

        Raises:
            ValueError: a scale other than 1 for a network without classes, or without one for "no label".
        """
        if guidance_scale == 1 or (self.takes_labels and self.null_class is not None):
            return
        if self.takes_labels:
            lacks = 'was not trained with images of "no label"; train one with --label_dropout 0.1'
        else:
            lacks = "was trained without classes; train one with --label_column auto --label_dropout 0.1"
        raise ValueError(f"{said} must be 1: this network {lacks}, or take a classifier")

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
            raise ValueError(
                f"{said} must be from 0 to {self.num_classes - 1}, the {self.whose}'s classes{self._but_null()}"
            )

    def class_of_word(self, word: str, said: str) -> int:
        """The class that a word of a command line means: the one of this name, else the one of this number.

        Args:
            said: as in `check_class`.

        Raises:
            ValueError: a word that is neither, the name of several classes, or a network without classes.
        """
        is_name = self.id2label is not None and word in self.id2label.values()
        if not self.takes_labels or (not is_name and re.fullmatch("[-+]?[0-9]{1,18}", word)):
            label = int(word) if self.takes_labels else 0
            self.check_class(label, said)
            return label
        if self.id2label is None:
            number = "a whole number" if self.num_classes is None else f"from 0 to {self.num_classes - 1}"
            raise ValueError(f"{said} must be {number}: this checkpoint does not name its classes")
        return self.class_called(word, said)

    def class_called(self, name: str, said: str) -> int:
        """The class of this name.

        Args:
            said: how the sentence begins, in the caller's words.

        Raises:
            ValueError: no class has this name, or several have; the sentence ends with what to give instead.
        """
        names = self.id2label or {}
        found = [label for label, known in names.items() if known == name]
        if len(found) > 1:
            numbers = " and ".join(map(str, found))
            raise ValueError(f"{said} is the name of the classes {numbers}: give the number of one of them")
        if not found:
            raise ValueError(f"{said} is the name of no class{_nearest(name, names.values())}")
        return found[0]

    def numbers(self, class_labels: ClassLabels, name: str = "class_labels") -> Any:
        """Class labels with the number of each that is a name; whatever else they are, they stay as they are.

        A string is always a name. "3" may be the name of class 7, whose neighbour, class 3, is asked for as 3.

        Args:
            name: what the caller calls them.

        Raises:
            ValueError: as `class_called`, or names where the checkpoint has none.
        """
        several = isinstance(class_labels, list | tuple)
        labels: list[Any] = [*class_labels] if isinstance(class_labels, list | tuple) else [class_labels]
        words = dict.fromkeys(label for label in labels if isinstance(label, str))
        if words and self.id2label is None:
            raise ValueError(
                f"{name}={class_labels!r} must be whole numbers: this checkpoint does not name its classes"
            )
        said = {word: f"{word!r} in {name}" if several else f"{name}={word!r}" for word in words}
        known = {word: self.class_called(word, said[word]) for word in words}
        numbers = [known[label] if isinstance(label, str) else label for label in labels]
        return numbers if several else numbers[0]

    def labels(self, class_labels: ClassLabels, batch_size: int, name: str = "class_labels") -> Tensor | None:
        """Class labels as (batch_size,), or None for a network without classes.

        Args:
            name: what the caller calls them.

        Raises:
            ValueError: labels that are missing, too many, neither whole numbers nor names, or none of the network's.
        """
        if not self.takes_labels:
            if class_labels is not None:
                raise ValueError(f"{name} were given, but this network was trained without classes: leave them out")
            return None
        if class_labels is None:
            classes = "classes" if self.num_classes is None else f"{self.num_classes} classes"
            raise ValueError(f"this {self.whose} was trained with {classes}: give {name}")
        if not isinstance(class_labels, Tensor) and callable(getattr(class_labels, "tolist", None)):
            class_labels = class_labels.tolist()  # type: ignore[union-attr]  # of numpy
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
        """The class of each image: `class_label` for all, or the network's in turn; None for a network without."""
        if class_label is not None:
            return [self.numbers(class_label, "class_label")] * len(indices)
        return None if self.num_classes is None else [i % self.num_classes for i in indices]

    def _but_null(self) -> str:
        """The end of a sentence about the network's classes."""
        return "" if self.null_class is None else f' ({self.null_class} stands for "no label" and is never drawn)'


def takes_labels(unet: Mapping[str, Any]) -> bool:
    """Whether a UNet of this configuration is asked with classes."""
    return unet.get("num_class_embeds") is not None or unet.get("class_embed_type") is not None


def count_classes(unet: Mapping[str, Any], null_class: int | None) -> int | None:
    """K of a UNet's configuration: its classes without the one that stands for "no label"; None if there are none.

    Raises:
        ValueError: a `null_class` that is not the last of two or more classes.
    """
    embedded: int | None = unet.get("num_class_embeds")
    if null_class is None:
        return embedded
    if type(null_class) is not int or embedded is None or null_class < 1 or null_class != embedded - 1:
        allowed = "None" if embedded is None or embedded < 2 else f"None or {embedded - 1}"
        raise ValueError(
            f"null_class={reprlib.repr(null_class)} does not fit a network of num_class_embeds={embedded}: the class "
            f'that stands for "no label" is its last one, so give {allowed}'
        )
    return null_class


def names_of_classes(
    id2label: Mapping[Any, str] | None, unet: Mapping[str, Any], null_class: int | None = None
) -> dict[int, str] | None:
    """The names of classes by their numbers, which JSON has turned into strings, in the order of the numbers.

    Args:
        id2label: {0: "cat", ...} or {"0": "cat", ...}; a class that is left out has its number only.
        unet: the configuration of the network whose classes they are.
        null_class: its class that stands for "no label", which has no name.

    Raises:
        ValueError: what is no name of a class of this network.
    """
    if id2label is None or (isinstance(id2label, Mapping) and not id2label):
        return None
    if not isinstance(id2label, Mapping) or not all(isinstance(name, str) for name in id2label.values()):
        raise ValueError(f"id2label={reprlib.repr(id2label)} must be names by their classes, such as {{0: 'cat'}}")
    if not takes_labels(unet):
        raise ValueError("id2label names classes, and this network was trained without: leave it out")
    names: dict[int, str] = {}
    num_classes = count_classes(unet, null_class)
    for key, name in id2label.items():
        number = int(key) if re.fullmatch(r"[0-9]{1,18}", str(key)) else -1
        if number < 0 or number in names or (num_classes is not None and number >= num_classes):
            last = "" if num_classes is None else f" to {num_classes - 1}"
            raise ValueError(f"id2label has a name for {reprlib.repr(key)}: allowed is one for each class from 0{last}")
        names[number] = name
    return dict(sorted(names.items()))


def _check_table_of_times(unet: Mapping[str, Any], num_timesteps: int) -> None:
    """Refuse a table of time embeddings without exactly one row for each timestep."""
    rows = unet.get("num_train_timesteps")
    if unet.get("time_embedding_type") == "learned" and rows != num_timesteps:
        raise ValueError(
            f"the network has a table of {rows} time embeddings (num_train_timesteps in its config) and the scheduler "
            f"has {num_timesteps} timesteps: both must be equal"
        )


def _nearest(word: str, names: Collection[str]) -> str:
    """The end of a sentence about an unknown name: one that holds it, the most alike, or the first few."""
    folded = word.casefold()
    holding = [name for name in names if folded and folded in name.casefold()][:1]
    near = holding or difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    first = ", ".join(map(repr, list(names)[:5]))
    return f"; there are {first}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")
