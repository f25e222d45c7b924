"""The flags of improved-diffusion and guided-diffusion, and the published configurations.

Sources: the READMEs of the two repositories, which list the flags of every published checkpoint, and the papers:
Improved DDPM (Nichol & Dhariwal 2021, arXiv 2102.09672) and ADM (Dhariwal & Nichol 2021, arXiv 2105.05233).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from hf_ddpm.errors import UserError, did_you_mean

Origin = Literal["improved-diffusion", "guided-diffusion"]
ORIGINS: tuple[str, ...] = ("improved-diffusion", "guided-diffusion")
IMAGENET_CLASSES = Path(__file__).parent / "imagenet_classes.txt"
MULTIPLIERS: dict[int, tuple[float, ...]] = {  # the widths of the levels, by the size of the images
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}


@dataclass(frozen=True)
class Flags:
    """The flags that determine a network and how it samples; their names are those of the scripts.

    The defaults are those of guided-diffusion; improved-diffusion has `rescale_timesteps=True`.

    Attributes:
        image_size: The size of the images; for an upsampler, `large_size` counts.
        num_channels: The base width.
        num_res_blocks: The number of residual blocks per level.
        channel_mult: The widths of the levels as multiples of the base width, such as "1,2,3,4"; "" depends on the
            size.
        num_heads: The number of heads of every level; `num_head_channels` counts if it is not -1.
        num_head_channels: The number of channels per head.
        attention_resolutions: The sizes of images with attention, such as "32,16,8".
        class_cond: Whether the network has classes.
        learn_sigma: Whether it predicts variances.
        sigma_small: Whether fixed variances are the small ones.
        predict_xstart: Whether it predicts x_0 and not the noise.
        dropout: The dropout probability in training.
        use_scale_shift_norm: Whether t scales and shifts the norms.
        resblock_updown: Whether residual blocks resample.
        use_new_attention_order: Whether the channels of attention are ordered by (qkv, head, d), not (head, qkv, d).
        diffusion_steps: T.
        noise_schedule: "linear" or "cosine".
        rescale_timesteps: Whether the network receives 1000 t / T.
        large_size, small_size: The sizes of an upsampler.
    """

    image_size: int = 64
    num_channels: int = 128
    num_res_blocks: int = 2
    channel_mult: str = ""
    num_heads: int = 4
    num_head_channels: int = -1
    attention_resolutions: str = "16,8"
    class_cond: bool = False
    learn_sigma: bool = False
    sigma_small: bool = False
    predict_xstart: bool = False
    dropout: float = 0.0
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    diffusion_steps: int = 1000
    noise_schedule: str = "linear"
    rescale_timesteps: bool = False
    large_size: int | None = None
    small_size: int | None = None

    @property
    def size(self) -> int:
        """The size of the images that the network makes."""
        return self.large_size or self.image_size

    @property
    def size_flag(self) -> str:
        """The name of the flag that gives `size`."""
        return "large_size" if self.is_upsampler else "image_size"

    @property
    def multipliers(self) -> tuple[float, ...]:
        """The widths of the levels as multiples of the base width.

        Raises:
            UserError: If `channel_mult` is not a list of numbers, or is missing for a size without a default.
        """
        if not self.channel_mult:
            if self.size not in MULTIPLIERS:
                known = ", ".join(map(str, sorted(MULTIPLIERS)))
                raise UserError(f"--{self.size_flag} {self.size} needs --channel_mult: only {known} have a default")
            return MULTIPLIERS[min(self.size, 256) if self.is_upsampler else self.size]
        return _numbers("channel_mult", self.channel_mult)

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths of the levels."""
        return tuple(int(multiplier * self.num_channels) for multiplier in self.multipliers)

    @property
    def attention(self) -> tuple[bool, ...]:
        """Whether each level has attention.

        Raises:
            UserError: If `attention_resolutions` is not a list of sizes.
        """
        sizes = _numbers("attention_resolutions", self.attention_resolutions)
        reductions = {self.size // int(size) for size in sizes if size >= 1}
        return tuple(2**level in reductions for level in range(len(self.multipliers)))

    @property
    def is_upsampler(self) -> bool:
        """Whether the network enlarges low-resolution images."""
        return self.large_size is not None


IGNORED = (
    "use_fp16",
    "use_checkpoint",
    "use_kl",
    "rescale_learned_sigmas",
    "timestep_respacing",
    "use_ddim",
    "clip_denoised",
    "num_samples",
    "batch_size",
    "base_samples",
    "model_path",
    "classifier_path",
    "classifier_scale",
    "classifier_pool",
    "classifier_use_fp16",
)
"""Flags that may be pasted: they determine neither the network nor the noise process, or the weights show them."""
ALSO_OF_CLASSIFIERS = ("image_size", "channel_mult", "diffusion_steps", "noise_schedule")
"""The flags of a diffusion model that count for a classifier too."""

_CLASSIFIER = Flags(
    num_head_channels=64, attention_resolutions="32,16,8", use_scale_shift_norm=True, resblock_updown=True
)
OF_CLASSIFIERS = {  # the flag of a classifier for each of ours
    "classifier_width": "num_channels",
    "classifier_depth": "num_res_blocks",
    "classifier_attention_resolutions": "attention_resolutions",
    "classifier_use_scale_shift_norm": "use_scale_shift_norm",
    "classifier_resblock_updown": "resblock_updown",
}
_ADM = Flags(
    attention_resolutions="32,16,8", class_cond=True, learn_sigma=True, resblock_updown=True, num_head_channels=64
)
_LSUN = replace(_ADM, image_size=256, num_channels=256, class_cond=False, dropout=0.1)
_IDDPM = Flags(
    num_res_blocks=3, learn_sigma=True, diffusion_steps=4000, noise_schedule="cosine", rescale_timesteps=True
)


@dataclass(frozen=True)
class Published:
    """A published checkpoint: its flags, whether it is a classifier, and how its authors sample.

    Attributes:
        flags: The flags of its README.
        classifier: Whether it is a noisy classifier.
        sampling: The number of steps, "250", or that of training for the best samples.
        classifier_scale: The scale of classifier guidance in the README; None without a classifier.
    """

    flags: Flags
    classifier: bool = False
    sampling: str = "250"
    classifier_scale: float | None = None


PUBLISHED: Mapping[str, Mapping[str, Published]] = MappingProxyType(
    {
        "guided-diffusion": {
            "imagenet-64-conditional": Published(
                replace(
                    _ADM,
                    num_channels=192,
                    num_res_blocks=3,
                    dropout=0.1,
                    noise_schedule="cosine",
                    use_new_attention_order=True,
                ),
                classifier_scale=1.0,
            ),
            "imagenet-128-conditional": Published(
                replace(_ADM, image_size=128, num_channels=256, num_head_channels=-1), classifier_scale=0.5
            ),
            "imagenet-256-conditional": Published(
                replace(_ADM, image_size=256, num_channels=256), classifier_scale=1.0
            ),
            "imagenet-256-unconditional": Published(
                replace(_ADM, image_size=256, num_channels=256, class_cond=False), classifier_scale=10.0
            ),
            "imagenet-512-conditional": Published(
                replace(_ADM, image_size=512, num_channels=256), classifier_scale=4.0
            ),
            "lsun-256": Published(_LSUN, sampling="1000"),
            "lsun-256-no-dropout": Published(replace(_LSUN, dropout=0.0), sampling="1000"),
            "upsampler-64-256": Published(
                replace(_ADM, large_size=256, small_size=64, num_channels=192, num_head_channels=-1)
            ),
            "upsampler-128-512": Published(
                replace(_ADM, large_size=512, small_size=128, num_channels=192, attention_resolutions="32,16")
            ),
            "imagenet-classifier-64": Published(
                replace(_CLASSIFIER, num_res_blocks=4, noise_schedule="cosine"), classifier=True
            ),
            **{
                f"imagenet-classifier-{size}": Published(replace(_CLASSIFIER, image_size=size), classifier=True)
                for size in (128, 256, 512)
            },
        },
        "improved-diffusion": {
            "imagenet-64-unconditional": Published(_IDDPM),
            "imagenet-64-conditional": Published(
                replace(_IDDPM, num_channels=192, class_cond=True, rescale_timesteps=False)
            ),
            "cifar10": Published(replace(_IDDPM, image_size=32, dropout=0.3), sampling="4000"),
            "upsampler-64-256": Published(
                Flags(
                    large_size=256,
                    small_size=64,
                    num_channels=192,
                    class_cond=True,
                    learn_sigma=True,
                    diffusion_steps=4000,
                )
            ),
            "lsun-bedroom-256": Published(
                Flags(
                    image_size=256,
                    num_heads=1,
                    learn_sigma=True,
                    use_scale_shift_norm=False,
                    attention_resolutions="16",
                ),
                sampling="1000",
            ),
        },
    }
)


def read_flags(origin: str, config: str | None, words: Mapping[str, str], *, classifier: bool) -> Flags:
    """Return the flags of a published configuration, or the defaults of the scripts, with those that were given.

    Args:
        origin: The repository that the file comes from.
        config: The name of a published configuration; None for the defaults.
        words: The given flags as they were typed; those of `IGNORED` have no effect.
        classifier: Whether the weights are those of a classifier.

    Raises:
        UserError: If the configuration is unknown, or a value has the wrong type or is out of range.
    """
    published = PUBLISHED[origin]
    if config is None:
        rescales = origin == "improved-diffusion" and not classifier
        flags = replace(_CLASSIFIER if classifier else Flags(), rescale_timesteps=rescales)
    elif config in published:
        flags = published[config].flags
    else:
        raise UserError(
            f"--config {config!r} is unknown: it must be one of {', '.join(published)}{did_you_mean(config, published)}"
        )
    counts = {*OF_CLASSIFIERS, *ALSO_OF_CLASSIFIERS} if classifier else {field.name for field in fields(Flags)}
    given = {name: word for name, word in words.items() if name in counts}
    flags = replace(flags, **{OF_CLASSIFIERS.get(name, name): _typed(name, word) for name, word in given.items()})
    _check_ranges(flags)
    return flags


def _check_ranges(flags: Flags) -> None:
    """Reject numbers that no network has."""
    least_1 = ("image_size", "large_size", "small_size", "num_channels", "num_res_blocks", "num_heads")
    for name in (*least_1, "diffusion_steps"):
        if (value := getattr(flags, name)) is not None and value < 1:
            raise UserError(f"--{name} {value} must be at least 1")
    if flags.num_head_channels != -1 and flags.num_head_channels < 1:
        raise UserError(f"--num_head_channels {flags.num_head_channels} must be at least 1, or -1 for --num_heads")
    if not 0 <= flags.dropout < 1:
        raise UserError(f"--dropout {flags.dropout} must be a probability in [0, 1)")


def imagenet_names() -> dict[int, str]:
    """Return the names of ImageNet's 1,000 classes by number; "crane" and "maillot" are the names of two classes each.

    The numbers are those of the classification challenge of 2012, in which the WordNet synsets are sorted by their
    identifiers; the scripts of both repositories number classes in the same way. The list of names is that of the
    repository of transformers (Apache 2.0); they are the first names of the synsets of WordNet, whose licence allows
    their use.
    """
    return dict(enumerate(IMAGENET_CLASSES.read_text().splitlines()))


def flag_names() -> list[str]:
    """Return the names of all flags that may be given."""
    return [*(field.name for field in fields(Flags)), *OF_CLASSIFIERS, *IGNORED]


def _typed(name: str, word: str) -> Any:
    """Read the value of a flag, as the scripts do."""
    ours = OF_CLASSIFIERS.get(name, name)
    kind = str(next(field.type for field in fields(Flags) if field.name == ours))
    if "bool" in kind:
        values = dict.fromkeys(("true", "t", "yes", "y", "1"), True)
        values |= dict.fromkeys(("false", "f", "no", "n", "0"), False)
        if word.lower() not in values:
            raise UserError(f"--{name} {word} must be True or False")
        return values[word.lower()]
    if "str" in kind:
        return word
    try:
        return float(word) if "float" in kind else int(word)
    except ValueError:
        raise UserError(f"--{name} {word} must be a number") from None


def _numbers(name: str, word: str) -> tuple[float, ...]:
    try:
        numbers = tuple(map(float, word.split(",")))
    except ValueError:
        numbers = ()
    if not numbers or not all(0 < number < math.inf for number in numbers):
        raise UserError(f"--{name} {word} must be a list of positive numbers, such as 32,16,8")
    return numbers
