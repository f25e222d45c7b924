"""The timesteps that a sampler visits: strictly descending lists of integers in [0, T-1]."""

import operator
from collections.abc import Sequence
from itertools import accumulate, pairwise, repeat
from numbers import Integral
from typing import Literal, get_args

TimestepSpacing = Literal["leading", "trailing", "linspace"]  # for saved configs: diffusers knows these
EvenSpacing = Literal["leading", "trailing", "linspace", "quadratic"]
EVEN_SPACINGS: tuple[str, ...] = get_args(EvenSpacing)


def select_timesteps(num_steps: int | None, spacing: str, num_train: int, offset: int = 0) -> list[int]:
    """Select S timesteps with an `EvenSpacing`, or with a respacing that determines S, such as "10,15,20" or "ddim25".

    Raises:
        ValueError: If the spacing is unknown, S is missing, or S is passed together with a respacing.
    """
    if not isinstance(spacing, str):
        raise ValueError(
            f"timestep_spacing={spacing!r} must be a name such as 'trailing', or sections such as '10,15,20'"
        )
    if spacing in EVEN_SPACINGS:
        if num_steps is None:
            raise ValueError(f"timestep_spacing={spacing!r} requires num_inference_steps")
        return spaced_timesteps(spacing, num_steps, num_train, offset)  # type: ignore[arg-type]  # just checked
    respaced = ddim_timesteps if spacing.startswith("ddim") else sectioned_timesteps
    steps = respaced(spacing, num_train)
    if num_steps is not None:
        raise ValueError(
            f"timestep_spacing={spacing!r} determines the number of steps, {len(steps)}: omit "
            f"num_inference_steps={num_steps}, or use one of {', '.join(EVEN_SPACINGS)}"
        )
    return steps


def spaced_timesteps(spacing: EvenSpacing, num_steps: int, num_train: int, offset: int = 0) -> list[int]:
    """Return S timesteps out of T, the highest first.

    Three spacings are those of arXiv 2305.08891, Table 2: `leading` takes every (T // S)-th step from 0 (shifted by
    `offset`) and never reaches T-1 unless S = T; `trailing` counts down from T-1; `linspace` contains both 0 and T-1.
    Ties are rounded as in diffusers. `quadratic` is DDIM's spacing for CIFAR-10 (appendix D.2), which is dense at low
    noise: the integer parts of S squares from 0 to 0.8 T. Squares that fall on the same step count once, so this list
    may be shorter than S.

    Raises:
        ValueError: If S is outside [1, T] ([2, T] for `quadratic`), or the offset leads out of [0, T-1].
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
        if not 0 <= ascending[0] <= ascending[-1] < num_train:
            raise ValueError(
                f"steps_offset={offset} shifts {num_steps} leading timesteps out of 0 .. {num_train - 1}: use fewer "
                "steps, or timestep_spacing='trailing'"
            )
        return ascending[::-1]
    if spacing == "trailing":
        stride = num_train - (num_train - num_train / num_steps)  # with the rounding error of numpy.arange
        return [round(num_train - i * stride) - 1 for i in range(num_steps)]
    if spacing == "linspace":
        stride = (num_train - 1) / max(num_steps - 1, 1)
        return [round(i * stride) for i in range(num_steps)][::-1]
    squares = [0.8 * num_train * (i / (num_steps - 1)) ** 2 for i in range(num_steps)]
    return sorted({int(square + 1e-9) for square in squares}, reverse=True)  # 0.8 T itself may be rounded down slightly


def sectioned_timesteps(sections: str, num_train: int) -> list[int]:
    """Return evenly spaced timesteps in equal sections of T: "10,15,20" takes 10, 15 and 20 of three sections.

    The first count is for the least noise. The first and the last step of each section are included. Strides are added
    up, not multiplied, because Improved DDPM's code does so and the last bit decides ties.

    Raises:
        ValueError: If the sections are not a list of whole numbers, or a section has fewer steps than its count.
    """
    try:
        counts = [int(count) for count in sections.split(",")]
    except ValueError as error:
        raise ValueError(
            f"timestep_spacing={sections!r} is not supported: use one of {', '.join(EVEN_SPACINGS)} with "
            "num_inference_steps, counts of sections such as '10,15,20', or a name such as 'ddim25'"
        ) from error
    if len(counts) > num_train:
        raise ValueError(
            f"timestep_spacing={sections!r} has {len(counts)} sections, which must be at most T={num_train}"
        )
    size, extra = divmod(num_train, len(counts))
    steps: list[int] = []
    start = 0
    for i, count in enumerate(counts):
        width = size + (i < extra)
        if not 1 <= count <= width:
            raise ValueError(
                f"timestep_spacing={sections!r} has {count} in section {i + 1}, which must be from 1 to {width}, its "
                "number of timesteps"
            )
        stride = (width - 1) / max(count - 1, 1)
        steps += [start + round(step) for step in accumulate(repeat(stride, count - 1), initial=0.0)]
        start += width
    return steps[::-1]


def ddim_timesteps(name: str, num_train: int) -> list[int]:
    """Return the timesteps of "ddim25": every k-th step from 0, with the integer k that gives exactly 25 timesteps.

    Raises:
        ValueError: If there is no such k; the message names the closest numbers of timesteps for which there is one.
    """
    digits = name.removeprefix("ddim")
    wanted = int(digits) if digits.isdecimal() else 0
    possible = {len(range(0, num_train, k)): k for k in range(num_train, 0, -1)}
    if wanted not in possible:
        nearest = sorted(sorted(possible, key=lambda count: abs(count - wanted))[:2])
        raise ValueError(
            f"timestep_spacing={name!r} is not possible: no integer stride through T={num_train} gives this number of "
            f"timesteps; the closest choice is {' or '.join(f'ddim{count}' for count in nearest)}"
        )
    return list(range(0, num_train, possible[wanted]))[::-1]


def check_timesteps(timesteps: Sequence[int], num_train: int) -> list[int]:
    """Return `timesteps` as a list, or raise a `ValueError` unless it is strictly descending within [0, T-1]."""
    try:
        steps = [operator.index(t) for t in timesteps]
    except TypeError as error:
        raise ValueError(f"timesteps {timesteps} must be a list of whole numbers") from error
    descends = all(later < earlier for earlier, later in pairwise(steps))
    if not steps or not descends or steps[0] >= num_train or steps[-1] < 0:
        shown = f"{steps[:3]}...{steps[-1:]}" if len(steps) > 4 else steps
        raise ValueError(f"timesteps {shown} must be a non-empty, strictly descending list within 0..{num_train - 1}")
    return steps
