"""Errors that the user can fix, and the sentences of their messages."""

import difflib
import os
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

FIRST_WAITS, LAST_WAITS = 2.0, 5.0  # seconds that processes wait for those of a smaller rank
LOST_PEER = ("Connection closed by peer", "Connection reset by peer")  # in messages of gloo
FULL_MEMORY = ("out of memory", "can't allocate memory")  # in messages of torch, for a GPU and for the CPU


class UserError(ValueError):
    """An error that the user can fix. The message is one sentence: the value, what is allowed, what to do.

    The command line prints the message without a traceback and exits with 1.
    """


@contextmanager
def as_user_error(about: str = "") -> Iterator[None]:
    """Turn a `ValueError` of the block, whose message must be one sentence, into a `UserError`.

    Args:
        about: The beginning of the message, such as a block of the recipe.
    """
    try:
        yield
    except ValueError as error:
        raise UserError(f"{about}: {error}" if about else str(error)) from error


def require_at_least(least: int, **values: int | None) -> None:
    """Reject arguments below `least`; None means that an argument is not given."""
    for name, value in values.items():
        if value is not None and value < least:
            raise UserError(f"{name}={value} must be at least {least}")


def did_you_mean(word: object, known: Iterable[object], folder: Path | None = None) -> str:
    """Return the end of a message: the known word that was probably meant, or "" if no word is similar.

    Args:
        word: The unknown word.
        known: The known words.
        folder: The folder of the known words, if they are names of files.
    """
    close = difflib.get_close_matches(str(word), list(map(str, known)), n=1, cutoff=0.5)
    return f"; did you mean {close[0] if folder is None else folder / close[0]}?" if close else ""


def quoted(text: object) -> str:
    """Return the message of a library on one line of at most 300 characters, cut between words if possible."""
    first, *more = textwrap.wrap(" ".join(str(text).split()), 296, break_on_hyphens=False) or [""]
    return f"{first} ..." if more else first


def import_error(error: BaseException) -> BaseException:
    """Return the error for a failed import of the package: a hint about an incompatible torchvision, or `error` itself.

    hf_ddpm does not need torchvision, but transformers imports an installed one, which fails with another torch.
    """
    cause: BaseException | None = error
    while cause is not None:
        if "torchvision" in str(cause):
            return ImportError(
                f"the installed torchvision does not fit the installed torch ({quoted(cause)}): install the matching "
                "version, or run pip uninstall torchvision, because hf_ddpm does not need it"
            )
        cause = cause.__cause__ or cause.__context__
    return error


@contextmanager
def exit_with_a_sentence(memory_remedy: str = "use a smaller batch or fewer images") -> Iterator[None]:
    """Turn a `UserError`, Ctrl-C or full memory in a command into one sentence on stderr and exit code 1.

    If several processes have the same error, the first one prints it: the others wait, until the launcher terminates
    them. An error of only one process is printed by that process.

    Args:
        memory_remedy: What to do if the memory is full.
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
            sys.exit("error: another process of this run has ended, and this one cannot continue alone")
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in FULL_MEMORY):
            raise
        wait_for_the_first()
        sys.exit(f"error: there is not enough memory, {memory_remedy}: {quoted(error)}")


def wait_for_the_first() -> None:
    """Wait, so that an earlier process of the run can print an error that all of them have."""
    if rank := int(os.environ.get("RANK", "0")):
        _wait_for_the_end(min(FIRST_WAITS + 0.3 * rank, LAST_WAITS))


def _wait_for_the_end(seconds: float) -> None:
    """Wait for the launcher's SIGTERM, which now terminates the process instead of requesting a stop."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(seconds)
