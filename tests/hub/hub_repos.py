"""What the test Hub keeps: repositories with commits, branches, tags and large files, and the rules they obey.

A commit is immutable and a branch points to one, so a reader that asked for `main` once sees one whole tree, whatever
is committed meanwhile. Writers take the repository's lock.
"""

import base64
import binascii
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from fnmatch import fnmatch
from functools import cached_property
from hashlib import sha1, sha256

import hub_cards

LARGE = 10 * 2**20  # bytes: larger files are never regular
LFS_ENDINGS = {
    *("7z", "arrow", "bin", "bz2", "ckpt", "ftz", "gz", "h5", "joblib", "mlmodel", "model", "msgpack", "npy", "npz"),
    *(
        "onnx",
        "ot",
        "parquet",
        "pb",
        "pickle",
        "pkl",
        "pt",
        "pth",
        "rar",
        "safetensors",
        "tar",
        "tflite",
        "tgz",
        "wasm",
    ),
    *("xz", "zip", "zst", "gif", "jpg", "jpeg", "png", "webp", "flac", "mp3", "ogg", "wav", "mp4"),
}
GITATTRIBUTES = "".join(f"*.{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in sorted(LFS_ENDINGS)).encode()


class HubError(Exception):
    """An answer that is not success: status, the sentence of `X-Error-Message` and the word of `X-Error-Code`."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers


def wants_lfs(path: str, size: int, sample: bytes) -> bool:
    """Whether a file of that name, size and beginning has to be uploaded as a large file."""
    return size > 0 and (path.rpartition(".")[2].lower() in LFS_ENDINGS or size > LARGE or b"\0" in sample)


def git_blob_id(data: bytes) -> str:
    return sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class File:
    """A file of a commit. Git holds a large one as a pointer; its bytes lie beside."""

    data: bytes
    lfs: bool

    @cached_property
    def sha256(self) -> str:
        return sha256(self.data).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{self.sha256}", f"size {len(self.data)}")
        return "".join(f"{line}\n" for line in lines).encode()

    @cached_property
    def blob_id(self) -> str:
        return git_blob_id(self.pointer if self.lfs else self.data)

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.blob_id


@dataclass(frozen=True)
class Commit:
    files: Mapping[str, File]
    parent: "Commit | None"
    title: str
    message: str
    author: str
    date: datetime = field(default_factory=lambda: datetime.now(timezone.utc))

    @cached_property
    def sha(self) -> str:
        heading = [self.parent.sha if self.parent else "", self.title, self.message, self.author, str(self.date)]
        tree = [f"{path}\0{file.blob_id}" for path, file in sorted(self.files.items())]
        return sha1("\0\0".join(heading + tree).encode(errors="surrogateescape")).hexdigest()

    def history(self) -> Iterable["Commit"]:
        """This commit and its parents, the newest first."""
        commit: Commit | None = self
        while commit is not None:
            yield commit
            commit = commit.parent

    def last_change(self, path: str) -> "Commit":
        """The newest commit that changed the file or anything in the folder."""
        state = {p: f for p, f in self.files.items() if p == path or p.startswith(f"{path}/")}
        found = self
        for commit in self.history():
            if {p: f for p, f in commit.files.items() if p == path or p.startswith(f"{path}/")} != state:
                break
            found = commit
        return found


class Repo:
    """A repository. `refs` maps full names (refs/heads/main, refs/tags/v1, refs/pr/1) to commits."""

    def __init__(self, repo_id: str, repo_type: str, private: bool, files: Mapping[str, File], title: str):
        self.id, self.type, self.private = repo_id, repo_type, private
        self.owner = repo_id.split("/")[0]
        self.lfs = {file.sha256: file.data for file in files.values() if file.lfs}  # uploads, committed or not yet
        first = Commit(files, None, title, "", "system")
        self.refs: dict[str, Commit] = {"refs/heads/main": first}
        self.known: dict[str, Commit] = {first.sha: first}
        self.proposers: dict[str, str] = {}  # refs/pr/N -> the user that opened it
        self.lock = threading.RLock()

    @property
    def prefix(self) -> str:
        """Of the repository's pages: models have none."""
        return {"model": "", "dataset": "datasets/", "space": "spaces/"}[self.type]

    def at(self, revision: str) -> Commit:
        """The commit of a branch, a tag, a full reference or (the beginning of) a commit's id."""
        for name in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if name in self.refs:
                return self.refs[name]
        if re.fullmatch("[0-9a-f]{7,40}", revision):
            matches = [commit for sha, commit in list(self.known.items()) if sha.startswith(revision)]
            if len(matches) == 1:
                return matches[0]
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def branch(self, revision: str) -> str:
        """The full name of a reference that can be committed to: a branch or a pull request."""
        name = revision if revision.startswith("refs/pr/") else f"refs/heads/{revision.removeprefix('refs/heads/')}"
        if name not in self.refs:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return name

    def commit(self, revision: str, header: dict, changes: list[tuple[str, dict]], author: str, create_pr: bool):
        """Apply the changes in their order, all or none. Returns (commit, reference that now points to it).

        A commit that changes nothing is made as well: the client's "Skipping to prevent empty commit" says that the Hub
        makes one.
        """
        with self.lock:
            ref = self.branch(revision)
            head, expected = self.refs[ref], header.get("parentCommit")
            if create_pr and expected:
                head = self.at(expected)  # a pull request starts where it says
            elif expected and not head.sha.startswith(expected):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            files = dict(head.files)
            for key, value in changes:
                CHANGES[key](self, files, value)
            refuse_files_that_are_folders(files)
            if create_pr:
                ref = f"refs/pr/{len(self.proposers) + 1}"
                self.proposers[ref] = author
            new = Commit(files, head, header["summary"], header.get("description") or "", author)
            self.known[new.sha] = self.refs[ref] = new
            return new, ref


def checked_path(value: dict) -> str:
    path = value.get("path")
    parts = path.split("/") if isinstance(path, str) else [""]
    if any(part in ("", ".", "..", ".git") or "\0" in part or "\\" in part for part in parts):
        raise HubError(400, f"Invalid path {path!r}: a file's path is relative, without '..', '.' and '.git'.")
    return path


def refuse_files_that_are_folders(files: Mapping[str, File]) -> None:
    folders = {path[:at] for path in files for at, letter in enumerate(path) if letter == "/"}
    if both := folders & files.keys():
        raise HubError(400, f"{min(both)!r} cannot be a file and a folder.")


def add_regular(repo: Repo, files: dict[str, File], value: dict) -> None:
    path = checked_path(value)
    if value.get("encoding") != "base64":
        raise HubError(400, f"{path}: the encoding has to be base64, not {value.get('encoding')!r}.")
    try:
        data = base64.b64decode(value.get("content", ""), validate=True)
    except binascii.Error as error:
        raise HubError(400, f"{path}: its content is not base64 ({error}).") from error
    if len(data) > LARGE or b"\0" in data[:512]:  # the same rule as before the upload, but for names: copies keep none
        raise HubError(400, f"Your push was rejected because it contains binary or large files. Offending file: {path}")
    if path == "README.md" and (wrong := hub_cards.errors(data.decode(errors="replace"))):
        raise HubError(400, f"Invalid metadata in README.md: {'; '.join(wrong)}")
    files[path] = File(data, lfs=False)


def add_large(repo: Repo, files: dict[str, File], value: dict) -> None:
    path, oid = checked_path(value), value.get("oid")
    data = repo.lfs.get(oid) if value.get("algo") == "sha256" else None
    if data is None or value.get("size", len(data)) != len(data):
        refused = "Your push was rejected because an LFS pointer pointed to a file that does not exist."
        raise HubError(400, f"{refused} Offending file: - {path}")
    files[path] = File(data, lfs=True)


def delete_file(repo: Repo, files: dict[str, File], value: dict) -> None:
    if files.pop(value.get("path", ""), None) is None:
        raise HubError(404, f"A file with this name doesn't exist: {value.get('path')}", "EntryNotFound")


def delete_folder(repo: Repo, files: dict[str, File], value: dict) -> None:
    folder = value.get("path", "").rstrip("/") + "/"
    inside = [path for path in files if path.startswith(folder)]
    if not inside:
        raise HubError(404, f"A file with this name doesn't exist: {folder}", "EntryNotFound")
    for path in inside:
        del files[path]


CHANGES: dict[str, Callable[[Repo, dict[str, File], dict], None]] = {
    "file": add_regular,
    "lfsFile": add_large,
    "deletedFile": delete_file,
    "deletedFolder": delete_folder,
}


def git_ignores(path: str, gitignore: str) -> bool:
    """Names, folders and wildcards of a .gitignore; no negations."""
    lines = [line.strip().strip("/") for line in gitignore.splitlines()]
    parts = path.split("/")
    return any(
        fnmatch(path, line) or any(fnmatch(part, line) for part in parts)
        for line in lines
        if line and not line.startswith("#")
    )
