"""Checkpoints to the Hub while training goes on. A push that fails costs the run nothing but a line."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from tqdm.auto import tqdm

from hf_ddpm.errors import UserError
from hf_ddpm.hub import push_checkpoint
from hf_ddpm.training.settings import Hub


class Pusher:
    """One upload at a time, in a thread of the main process.

    Args:
        settings: where to.
        name: of the repository, if the settings leave it to the run.
    """

    def __init__(self, settings: Hub, name: str) -> None:
        self._settings, self._repo_id = settings, settings.hub_model_id or name
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="push")
        self._last: Future[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether an upload is under way."""
        return self._last is not None and not self._last.done()

    def start(self, checkpoint: Path, tag: str | None) -> None:
        """Upload a folder that nobody changes until `busy` is over."""
        self._last = self._thread.submit(self._push, checkpoint, tag)

    def wait(self) -> None:
        """Return when everything has arrived or has failed."""
        self._thread.shutdown()

    def _push(self, checkpoint: Path, tag: str | None) -> None:
        try:
            url = push_checkpoint(str(checkpoint), self._repo_id, private=self._settings.hub_private_repo, tag=tag)
            tqdm.write(f"pushed:     {url}" + ("" if tag is None else f", tag {tag}"))
        except UserError as error:
            tqdm.write(
                f"not pushed: {error}; the run goes on, `hf-ddpm push {checkpoint} {self._repo_id}` does it later"
            )
