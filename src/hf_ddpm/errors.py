"""A mistake that the user can mend, and the sentence that says how."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A user's mistake, told in one sentence: the value, what is allowed, what to do.

    The command line prints the sentence without a traceback and exits with 1.
    """


def did_you_mean(word: object, known: Iterable[object]) -> str:
    """The end of such a sentence: the known word that was probably meant, or nothing if none resembles it."""
    close = difflib.get_close_matches(str(word), list(map(str, known)), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
