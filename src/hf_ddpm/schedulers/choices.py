"""Words that a constructor takes, and one sentence where it gets another."""

import difflib
from collections.abc import Sequence


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise `ValueError`, naming the allowed values and the nearest, unless `value` is one of `choices`."""
    if value in choices:
        return
    # errors.did_you_mean in other words: this file travels with checkpoints and imports nothing of hf_ddpm
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{name}={value!r} is not known, allowed are {', '.join(map(repr, choices))}{hint}")
