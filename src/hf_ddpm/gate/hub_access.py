"""Downloads from the Hub, which are retried, and fail with one sentence."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_ddpm.errors import quoted

T = TypeVar("T")
logger = logging.getLogger(__name__)

TRANSIENT = (408, 429, 500, 502, 503, 504)
WAITS = (0.5, 1.0, 2.0, 4.0)  # seconds between five attempts


def from_hub(repo_id: str, hub: Mapping[str, Any], names: Sequence[str]) -> str:
    """Call `snapshot_download` for these files, and retry while the Hub is busy.

    Raises:
        OSError: If the download fails, in one sentence.
    """
    try:
        return patient(lambda: snapshot_download(repo_id, allow_patterns=[*names], **hub))
    except (OSError, HTTPError, HFValidationError) as error:
        raise OSError(f"{repo_id}: {_reason(error, hub)}") from error


def patient(call: Callable[[], T]) -> T:
    """Return the result of a call to the Hub, which is retried, with longer and longer waits, while the Hub is busy."""
    for wait in WAITS:
        try:
            return call()
        except (OSError, HTTPError) as error:
            answer = error if isinstance(error, HTTPError) else error.__cause__
            refused = isinstance(answer, HfHubHTTPError) and answer.response.status_code not in TRANSIENT
            if refused or not isinstance(answer, HTTPError):
                raise
            what = f"status {answer.response.status_code}" if isinstance(answer, HfHubHTTPError) else "no connection"
            logger.warning(f"The Hub does not respond ({what}): retrying in {wait:g} s.")
            time.sleep(wait)
    return call()


def _reason(error: Exception, hub: Mapping[str, Any]) -> str:
    """Return what an error of the Hub means, and what to do."""
    if isinstance(error, HFValidationError):
        return f"this is not a repository name, which must be user/name ({error})"
    if isinstance(error, RevisionNotFoundError):
        return f"there is no revision {hub.get('revision', 'main')!r}: see the branches and tags on its page"
    if isinstance(error, GatedRepoError):
        return "the repository is gated: request access on its page, then set HF_TOKEN to your token"
    answer = error if isinstance(error, HfHubHTTPError) else error.__cause__
    status = answer.response.status_code if isinstance(answer, HfHubHTTPError) else None
    if status == 401 and not isinstance(error, RepositoryNotFoundError):
        return "the Hub rejects this token: run `hf auth login`, set HF_TOKEN to another one, or use no token"
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403, 404):
        return (
            "the repository does not exist, or it is private and this token cannot read it: check its name and HF_TOKEN"
        )
    if status is not None:
        return f"the Hub is not available (status {status}): try again later; files that were downloaded are kept"
    if hub.get("local_files_only") or constants.is_offline_mode():
        kept = "local_files_only=True" if hub.get("local_files_only") else "HF_HUB_OFFLINE"
        return f"the repository is not completely cached on this machine, and {kept} forbids a download: go online once"
    return (  # the remedy comes first, because the message of the library may be long
        f"the repository is not completely cached on this machine, and cannot be downloaded: go online, or try again "
        f"({quoted(error)})"
    )
