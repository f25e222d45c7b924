"""Push checkpoints to the Hub during training. If a push fails, the run prints a line and continues."""

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
    """Uploads one checkpoint at a time, in a thread of the main process.

    Args:
        settings: The block `hub`.
        name: The name of the repository, if the settings do not contain one.

    Raises:
        UserError: If the Hub does not accept the name, or if there is no token, because then no push could succeed.
    """

    def __init__(self, settings: Hub, name: str) -> None:
        self._settings, self._repo_id = settings, settings.hub_model_id or name
        try:
            check_name(self._repo_id)
        except UserError as error:
            raise UserError(f"--push_to_hub: {error}; set the name with --hub_model_id") from error
        if get_token() is None:
            raise UserError("--push_to_hub needs a token: run `hf auth login` or set HF_TOKEN to one with write access")
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="push")
        self._last: Future[str] | None = None

    @property
    def busy(self) -> bool:
        """Whether an upload is in progress."""
        return self._last is not None and not self._last.done()

    def start(self, checkpoint: Path, tag: str | None) -> None:
        """Start the upload of a folder, which must not be changed while `busy` is true."""
        how: dict[str, Any] = {"private": self._settings.hub_private_repo, "tag": tag, "move_tag": True}
        self._last = self._thread.submit(push_checkpoint, str(checkpoint), self._repo_id, **how)
        self._last.add_done_callback(lambda done: self._say(done, checkpoint, tag))

    def wait(self) -> None:
        """Wait until all uploads have succeeded or failed."""
        self._thread.shutdown()

    def _say(self, done: "Future[str]", checkpoint: Path, tag: str | None) -> None:
        error = done.exception()
        if error is None:
            tqdm.write(f"pushed:     {done.result()}" + ("" if tag is None else f", tag {tag}"))
            return
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        later = f"the run continues without {tag}"
        if tag is None:
            private = ["--private"] if self._settings.hub_private_repo else []
            command = shlex.join(["hf-ddpm", "push", str(checkpoint), self._repo_id, *private])
            later = f"the checkpoint is kept, push it later with `{command}`"
        tqdm.write(f"not pushed: {reason}; {later}", file=sys.stderr)


def make_pusher(settings: Hub, name: str, accelerator: Accelerator) -> Pusher | None:
    """Return the pusher in the main process, and None in the others.

    Raises:
        UserError: As in `Pusher`, in every process, so that none waits for another that has ended.
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
