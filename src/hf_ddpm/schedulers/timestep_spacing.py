"""Which timesteps a sampler visits: strictly descending lists of integers in [0, T-1]."""

import operator
from collections.abc import Sequence
from itertools import accumulate, pairwise, repeat
from numbers import Integral
from typing import Literal, get_args

TimestepSpacing = Literal["leading", "trailing", "linspace"]  # what a saved config may name: diffusers knows these
EvenSpacing = Literal["leading", "trailing", "linspace", "quadratic"]
EVEN_SPACINGS: tuple[str, ...] = get_args(EvenSpacing)


def select_timesteps(num_steps: int | None, spacing: str, num_train: int, offset: int = 0) -> list[int]:
    """The timesteps of S steps in an `EvenSpacing`, or of a respacing that says S itself, "10,15,20" or "ddim25".

    Raises:
        ValueError: an unknown spacing, S missing, or S beside a respacing.
    """
    if not isinstance(spacing, str):
        raise ValueError(f"timestep_spacing={spacing!r} must be a name such as 'trailing', or sections '10,15,20'")
    if spacing in EVEN_SPACINGS:
        if num_steps is None:
            raise ValueError(f"timestep_spacing={spacing!r} needs num_inference_steps")
        return spaced_timesteps(spacing, num_steps, num_train, offset)  # type: ignore[arg-type]  # just checked
    respaced = ddim_timesteps if spacing.startswith("ddim") else sectioned_timesteps
    steps = respaced(spacing, num_train)
    if num_steps is not None:
        raise ValueError(
            f"timestep_spacing={spacing!r} chooses its {len(steps)} steps itself: leave "
            f"num_inference_steps={num_steps} out, or take one of {', '.join(EVEN_SPACINGS)}"
        )
    return steps


def spaced_timesteps(spacing: EvenSpacing, num_steps: int, num_train: int, offset: int = 0) -> list[int]:
    """S timesteps out of T, the highest first.

    The first three are those of arXiv 2305.08891, Table 2: `leading` takes every (T // S)-th step from 0 (shifted by
    `offset`) and never reaches T-1 unless S = T; `trailing` counts down from T-1; `linspace` contains both 0 and T-1.
    Ties are rounded as diffusers rounds them. `quadratic` is DDIM's for CIFAR-10 (appendix D.2), dense at low noise:
    the integer parts of S squares from 0 to 0.8 T. Squares that fall on the same step are one step, so there the list
    may be shorter than S.

    Raises:
        ValueError: S outside [1, T] (from 2 for `quadratic`), or an offset that leaves [0, T-1].
    """
    lowest = 2 if spacing == "quadratic" else 1
    if isinstance(num_steps, bool) or not isinstance(num_steps, Integral) or not lowest <= num_steps <= num_train:
        raise ValueError(
            f"num_inference_steps={num_steps!r} must be a whole number from {lowest} to {num_train}, "
            "the number of steps the model was trained with"
        )
    num_steps = int(num_steps)
    if spacing == "leading":
        ascending = [i * (num_train // num_steps) + offset for i in range(num_steps)]
        return check_timesteps(ascending[::-1], num_train)
    if spacing == "trailing":
        stride = num_train - (num_train - num_train / num_steps)  # with the rounding error of numpy.arange
        return [round(num_train - i * stride) - 1 for i in range(num_steps)]
    if spacing == "linspace":
        stride = (num_train - 1) / max(num_steps - 1, 1)
        return [round(i * stride) for i in range(num_steps)][::-1]
    squares = [0.8 * num_train * (i / (num_steps - 1)) ** 2 for i in range(num_steps)]
    return sorted({int(square + 1e-9) for square in squares}, reverse=True)  # 0.8 T itself may come out a hair smaller


def sectioned_timesteps(sections: str, num_train: int) -> list[int]:
    """ "10,15,20": T cut into as many equal sections, lowest noise first, with 10, 15 and 20 steps spread evenly.

    The first and the last step of each section are among them. Strides are added up, not multiplied, because Improved
    DDPM's code does so and the last bit decides ties.

    Raises:
        ValueError: not a list of whole numbers, or a section with fewer steps than it should give.
    """
    try:
        counts = [int(count) for count in sections.split(",")]
    except ValueError as error:
        raise ValueError(
            f"timestep_spacing={sections!r} is not known: allowed are {', '.join(EVEN_SPACINGS)} with "
            "num_inference_steps, counts of sections such as '10,15,20', and 'ddim25'"
        ) from error
    size, extra = divmod(num_train, len(counts))
    steps: list[int] = []
    start = 0
    for i, count in enumerate(counts):
        width = size + (i < extra)
        if not 1 <= count <= width:
            raise ValueError(
                f"timestep_spacing={sections!r}: {count} of the {width} timesteps of section {i + 1}: take 1 to {width}"
            )
        stride = (width - 1) / max(count - 1, 1)
        steps += [start + round(step) for step in accumulate(repeat(stride, count - 1), initial=0.0)]
        start += width
    return steps[::-1]


def ddim_timesteps(name: str, num_train: int) -> list[int]:
    """ "ddim25": every k-th step from 0, with the whole number k that gives exactly 25 of them.

    Raises:
        ValueError: there is no such k; the nearest counts that have one are named.
    """
    digits = name.removeprefix("ddim")
    wanted = int(digits) if digits.isdecimal() else 0
    possible = {len(range(0, num_train, k)): k for k in range(num_train, 0, -1)}
    if wanted not in possible:
        nearest = sorted(sorted(possible, key=lambda count: abs(count - wanted))[:2])
        raise ValueError(
            f"timestep_spacing={name!r}: no whole stride through {num_train} steps gives that number, "
            f"the nearest that exist are {' and '.join(f'ddim{count}' for count in nearest)}"
        )
    return list(range(0, num_train, possible[wanted]))[::-1]


def check_timesteps(timesteps: Sequence[int], num_train: int) -> list[int]:
    """`timesteps` as a list, or a `ValueError` unless it descends strictly within [0, T-1]."""
    try:
        steps = [operator.index(t) for t in timesteps]
    except TypeError as error:
        raise ValueError(f"timesteps {timesteps} must be a list of whole numbers") from error
    descends = all(later < earlier for earlier, later in pairwise(steps))
    if not steps or not descends or steps[0] >= num_train or steps[-1] < 0:
        shown = f"{steps[:3]}...{steps[-1:]}" if len(steps) > 4 else steps
        raise ValueError(f"timesteps {shown} must be a non-empty, strictly descending list within 0..{num_train - 1}")
    return steps
