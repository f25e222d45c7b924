"""A mistake that the user can mend, and the sentence that says how."""

import difflib
import os
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

FIRST_WAITS, LAST_WAITS = 2.0, 5.0  # seconds that processes leave to those of a smaller rank
LOST_PEER = ("Connection closed by peer", "Connection reset by peer")  # as gloo says it
FULL_MEMORY = ("out of memory", "can't allocate memory")  # of a GPU, of the CPU, as torch says it


class UserError(ValueError):
    """A user's mistake, told in one sentence: the value, what is allowed, what to do.

    The command line prints the sentence without a traceback and exits with 1.
    """


@contextmanager
def as_user_error(about: str = "") -> Iterator[None]:
    """Within the block a `ValueError`, which says in one sentence what does not fit, is the user's mistake.

    Args:
        about: what the sentence begins with, such as a block of the recipe.
    """
    try:
        yield
    except ValueError as error:
        raise UserError(f"{about}: {error}" if about else str(error)) from error


def require_at_least(least: int, **values: int | None) -> None:
    """Refuse arguments below `least`; None is one that is not given."""
    for name, value in values.items():
        if value is not None and value < least:
            raise UserError(f"{name}={value} must be at least {least}")


def did_you_mean(word: object, known: Iterable[object]) -> str:
    """The end of such a sentence: the known word that was probably meant, or nothing if none resembles it."""
    close = difflib.get_close_matches(str(word), list(map(str, known)), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def quoted(text: object) -> str:
    """What a library says, on one line of at most 300 characters, cut between words unless a word is as long."""
    first, *more = textwrap.wrap(" ".join(str(text).split()), 296, break_on_hyphens=False) or [""]
    return f"{first} ..." if more else first


def import_error(error: BaseException) -> BaseException:
    """What to say when the package cannot be imported: a sentence about a torchvision that does not fit, or the error.

    hf_ddpm needs no torchvision, but transformers imports one that is installed, and that of another torch fails.
    """
    cause: BaseException | None = error
    while cause is not None:
        if "torchvision" in str(cause):
            return ImportError(
                f"the installed torchvision does not fit the installed torch ({quoted(cause)}): install the one that "
                "belongs to it, or pip uninstall torchvision, which hf_ddpm does not need"
            )
        cause = cause.__cause__ or cause.__context__
    return error


@contextmanager
def exit_with_a_sentence() -> Iterator[None]:
    """Around a command: a user's mistake, Ctrl-C and full memory are one sentence on stderr and exit code 1.

    Of several processes that make the same mistake the first says it: the others wait a moment, in which the launcher
    ends them. A mistake that another process makes alone is said by that one.
    """
    try:
        yield
    except UserError as error:
        wait_for_the_first()
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped")
    except (MemoryError, RuntimeError) as error:
        if any(words in str(error) for words in LOST_PEER):
            _wait_for_the_end(LAST_WAITS)
            sys.exit("error: another process of this run has ended, and this one cannot go on alone")
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in FULL_MEMORY):
            raise
        wait_for_the_first()
        sys.exit(f"error: it does not fit into memory, take a smaller batch: {quoted(error)}")


def wait_for_the_first() -> None:
    """Leave it to an earlier process of the run to say what all of them would say."""
    if rank := int(os.environ.get("RANK", "0")):
        _wait_for_the_end(min(FIRST_WAITS + 0.3 * rank, LAST_WAITS))


def _wait_for_the_end(seconds: float) -> None:
    """Wait for the launcher's SIGTERM, which is no request any more."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(seconds)
