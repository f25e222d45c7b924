"""Files of the Hub, asked for until they come, and one sentence where they do not."""

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
    """`snapshot_download` of these files, tried again while the Hub is busy.

    Raises:
        OSError: one sentence.
    """
    try:
        return patient(lambda: snapshot_download(repo_id, allow_patterns=[*names], **hub))
    except (OSError, HTTPError, HFValidationError) as error:
        raise OSError(f"{repo_id}: {_reason(error, hub)}") from error


def patient(call: Callable[[], T]) -> T:
    """The result of a call to the Hub, which is made again, later and later, while the Hub is busy or out of reach."""
    for wait in WAITS:
        try:
            return call()
        except (OSError, HTTPError) as error:
            answer = error if isinstance(error, HTTPError) else error.__cause__
            refused = isinstance(answer, HfHubHTTPError) and answer.response.status_code not in TRANSIENT
            if refused or not isinstance(answer, HTTPError):
                raise
            what = f"status {answer.response.status_code}" if isinstance(answer, HfHubHTTPError) else "no connection"
            logger.warning(f"The Hub does not answer ({what}): trying again in {wait:g} s.")
            time.sleep(wait)
    return call()


def _reason(error: Exception, hub: Mapping[str, Any]) -> str:
    """What the Hub's refusal means, and what to do."""
    if isinstance(error, HFValidationError):
        return f"this is no name of a repository, give user/name ({error})"
    if isinstance(error, RevisionNotFoundError):
        return f"there is no revision {hub.get('revision', 'main')!r}: see the branches and tags on its page"
    if isinstance(error, GatedRepoError):
        return "its owner admits readers one by one: ask on its page, then give a token of yours"
    answer = error if isinstance(error, HfHubHTTPError) else error.__cause__
    status = answer.response.status_code if isinstance(answer, HfHubHTTPError) else None
    if status == 401 and not isinstance(error, RepositoryNotFoundError):
        return "the Hub does not know this token: `hf auth login`, set HF_TOKEN to another, or give none"
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403, 404):
        return "there is no such repository, or it is private and this token may not read it: check name and HF_TOKEN"
    if status is not None:
        return f"the Hub is busy or broken (status {status}): try again later, what has arrived is kept"
    if hub.get("local_files_only") or constants.is_offline_mode():
        kept = "local_files_only=True" if hub.get("local_files_only") else "HF_HUB_OFFLINE"
        return (
            f"it is not whole in the cache of this machine, and {kept} keeps the Hub from being asked: go online once"
        )
    return (  # the remedy first: what is said may be long
        f"it is not whole in the cache of this machine, and the Hub gives nothing: go online, or try again "
        f"({quoted(error)})"
    )
