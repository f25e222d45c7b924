"""A small Hugging Face Hub on this machine, over real sockets, for the unmodified client.

    with hub_server({"hf_ada": "ada"}) as hub:
        subprocess.run(command, env=os.environ | hub.environment(tmp_path, "hf_ada"))
        assert hub.files("ada/digits")["README.md"].startswith(b"---")

It speaks the HTTP API as huggingface_hub 2.4 and what stands on it (diffusers 0.42, datasets 5.2) use it, large files
by LFS (`HF_HUB_DISABLE_XET=1`), and checks what it receives: hashes, sizes, names, rights, parents. The store is in
hub_repos.py, the answers in hub_api.py, hub_reads.py and hub_lfs.py, the connections, faults and log in hub_sockets.py;
here is what a test uses.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from hub_api import answer
from hub_calls import Account, State
from hub_repos import Commit, File, Repo, wants_lfs
from hub_sockets import Fault, Logged, Sockets


class HubServer:
    """The Hub's address (`url`), its requests so far (`log`), its contents, and the faults a test asks for."""

    def __init__(
        self, tokens: Mapping[str, str], read_only: Mapping[str, str] | None, chunk_size: int, page_size: int
    ) -> None:
        accounts = {token: Account(user, writes=True) for token, user in tokens.items()}
        accounts |= {token: Account(user, writes=False) for token, user in (read_only or {}).items()}
        self.state = State(accounts, chunk_size, page_size)
        self._sockets = Sockets(partial(answer, self.state))
        self.log: list[Logged] = self._sockets.log
        self.faults: list[Fault] = self._sockets.faults
        self.bugs: list[str] = self._sockets.bugs  # the server's own errors; `hub_server` raises them at the end
        self.received: list[bytes] = self._sockets.received  # every request: its line, headers and body
        self.url = self.state.url = f"http://127.0.0.1:{self._sockets.server_port}"
        self._thread = threading.Thread(target=self._sockets.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End every connection, the idle ones too: from now on the Hub cannot be reached."""
        self._sockets.shutdown()
        self._sockets.server_close()
        self._sockets.end_connections()
        self._thread.join()

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """Variables of a new process: this Hub, caches and login in the folder `home`, no other server."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(Path(home) / "hub"),
            "HF_DATASETS_CACHE": str(Path(home) / "datasets"),
            "HF_TOKEN": token or "",
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # a request to a storage outside
            "NO_PROXY": "127.0.0.1",
        }

    # The contents.

    def add_repo(
        self,
        repo_id: str,
        files: Mapping[str, bytes] | None = None,
        private: bool = False,
        repo_type: str = "model",
        user: str | None = None,
    ) -> str:
        """Put a repository there with exactly these files, whatever their names are. Returns its first commit's id.

        `repo_id` is user/name, or a name and the `user`.
        """
        repo_id = f"{user}/{repo_id}" if user else repo_id
        kept = {path: File(data, wants_lfs(path, len(data), data[:512])) for path, data in (files or {}).items()}
        repo = Repo(repo_id, repo_type, private, kept, "seed")
        self.state.repos[repo_type, repo_id] = repo
        return repo.at("main").sha

    def repo(self, repo_id: str, repo_type: str = "model") -> Repo:
        """The repository: `private`, `refs`, `lfs` (uploaded objects by sha256). KeyError where there is none."""
        return self.state.repos[repo_type, repo_id]

    def repos(self) -> list[tuple[str, str]]:
        """(type, id) of every repository."""
        return sorted(self.state.repos)

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> dict[str, bytes]:
        """Path -> bytes, the large files too. A repository that a client created begins with .gitattributes."""
        return {path: file.data for path, file in self.repo(repo_id, repo_type).at(revision).files.items()}

    def commits(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> list[Commit]:
        """The newest first: `sha`, `title`, `message`, `author`, `date`, `files`."""
        return list(self.repo(repo_id, repo_type).at(revision).history())

    def requests(self, method: str = ".*", path: str = "") -> list[Logged]:
        """Those whose whole method and any part of whose path match, the oldest first."""
        return [r for r in list(self.log) if re.fullmatch(method, r.method) and re.search(path, r.path)]

    # The faults. The path is a regular expression, found anywhere in the unquoted path.

    def fail(
        self, method: str, path: str, times: int = 1, status: int = 500, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer with that status; nothing of the request is done."""
        self.faults.append(Fault(method, path, times, status=status, headers=headers or {}))

    def cut(self, path: str, after_bytes: int, times: int = 1) -> None:
        """End the connection after so many bytes: of the file for GET, of what is sent for PUT and POST.

        A body that is not longer than that passes whole, and is counted.
        """
        self.faults.append(Fault("GET|PUT|POST", path, times, cut=after_bytes))

    def lose(self, method: str, path: str, times: int = 1) -> None:
        """Do what is asked and end the connection without an answer: the client cannot know."""
        self.faults.append(Fault(method, path, times, lose=True))

    def delay(self, path: str, seconds: float, times: int = 1) -> None:
        self.faults.append(Fault(".*", path, times, seconds=seconds))

    @contextmanager
    def held(self, path: str) -> Iterator[Callable[[], None]]:
        """Hold the next request of that path until the block ends; what is given waits until it has arrived."""
        fault = Fault(".*", path, 1, gate=threading.Event())
        self.faults.append(fault)
        try:
            yield lambda: until(lambda: fault.times == 0)
        finally:
            fault.gate.set()


def until(true: Callable[[], Any], seconds: float = 60) -> None:
    """Wait for it."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"in vain for {seconds} seconds"
        time.sleep(0.01)


@contextmanager
def hub_server(
    tokens: Mapping[str, str] | None = None,
    read_only: Mapping[str, str] | None = None,
    chunk_size: int = 2**24,
    page_size: int = 1000,
) -> Iterator[HubServer]:
    """A Hub as long as the `with` lasts. Raises AssertionError at the end if the server itself failed.

    `tokens` maps token to user (default: hf_ada is ada, hf_bob is bob), `read_only` the fine-grained tokens that only
    read (default: hf_ada_reads is ada's). Large files of more than `chunk_size` bytes are uploaded in parts of that
    size; trees and lists of commits come in pages of `page_size` entries.
    """
    tokens = {"hf_ada": "ada", "hf_bob": "bob"} if tokens is None else tokens
    hub = HubServer(tokens, {"hf_ada_reads": "ada"} if read_only is None else read_only, chunk_size, page_size)
    try:
        yield hub
    finally:
        hub.close()
    assert not hub.bugs, "\n".join(hub.bugs)
