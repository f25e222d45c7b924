"""Checkpoints to the Hub while training goes on. A push that fails costs the run nothing but a line."""

import shlex
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from huggingface_hub import get_token
from tqdm.auto import tqdm

from hf_ddpm.errors import UserError
from hf_ddpm.hub import check_name, push_checkpoint
from hf_ddpm.training.settings import Hub


class Pusher:
    """One upload at a time, in a thread of the main process.

    Args:
        settings: where to.
        name: of the repository, if the settings leave it to the run.

    Raises:
        UserError: a name that the Hub cannot take, or no token: no push of this run could arrive.
    """

    def __init__(self, settings: Hub, name: str) -> None:
        self._settings, self._repo_id = settings, settings.hub_model_id or name
        try:
            check_name(self._repo_id)
        except UserError as error:
            raise UserError(f"--push_to_hub: {error}; --hub_model_id names it") from error
        if get_token() is None:
            raise UserError("--push_to_hub finds no token: `hf auth login`, or set HF_TOKEN to one that may write")
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="push")
        self._last: Future[str] | None = None

    @property
    def busy(self) -> bool:
        """Whether an upload is under way."""
        return self._last is not None and not self._last.done()

    def start(self, checkpoint: Path, tag: str | None) -> None:
        """Upload a folder that nobody changes until `busy` is over."""
        how: dict[str, Any] = {"private": self._settings.hub_private_repo, "tag": tag, "move_tag": True}
        self._last = self._thread.submit(push_checkpoint, str(checkpoint), self._repo_id, **how)
        self._last.add_done_callback(lambda done: self._say(done, checkpoint, tag))

    def wait(self) -> None:
        """Return when everything has arrived or has failed."""
        self._thread.shutdown()

    def _say(self, done: "Future[str]", checkpoint: Path, tag: str | None) -> None:
        error = done.exception()
        if error is None:
            tqdm.write(f"pushed:     {done.result()}" + ("" if tag is None else f", tag {tag}"))
            return
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        later = f"the run goes on, {tag} is left out"
        if tag is None:
            command = shlex.join(["hf-ddpm", "push", str(checkpoint), self._repo_id])
            later = f"the checkpoint is kept, `{command}` does it later"
        tqdm.write(f"not pushed: {reason}; {later}", file=sys.stderr)


def make_pusher(settings: Hub, name: str, accelerator: Accelerator) -> Pusher | None:
    """The main process's; None in the others.

    Raises:
        UserError: as `Pusher` does, in every process, so that none waits for another that has ended.
    """
    pusher, complaint = None, None
    if accelerator.is_main_process:
        try:
            pusher = Pusher(settings, name)
        except UserError as error:
            complaint = str(error)
    (complaint,) = broadcast_object_list([complaint])
    if complaint is not None:
        raise UserError(complaint)
    return pusher
