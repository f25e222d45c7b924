"""A question to the test Hub and its answer, and what answering needs: the accounts, the state, who may do what."""

import hashlib
import json
from dataclasses import dataclass, field

from hub_repos import HubError, Repo


@dataclass(frozen=True)
class Account:
    name: str
    writes: bool


@dataclass
class Request:
    method: str
    path: tuple[str, ...]  # unquoted segments
    query: dict[str, list[str]]
    headers: dict[str, str]  # names in lower case
    body: bytes

    def json(self) -> dict:
        try:
            data = json.loads(self.body or b"{}")
        except ValueError as error:
            raise HubError(400, f"The body is not JSON: {error}") from error
        if not isinstance(data, dict):
            raise HubError(400, "The body has to be a JSON object.")
        return data

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["false"])[0].lower() in ("1", "true")


@dataclass
class Response:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def reply(data: object, status: int = 200, **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(status, json.dumps(data).encode(), {"Content-Type": "application/json; charset=utf-8", **named})


def refusal(error: HubError) -> Response:
    named = {"X-Error-Message": error.message.encode("ascii", "replace").decode().replace("\n", " ")}
    if error.code:
        named["X-Error-Code"] = error.code
    return reply({"error": error.message}, error.status, **{**named, **error.headers})


@dataclass
class Upload:
    """An address that one large file may be sent to, whole or in parts: what a signed storage address is to the Hub."""

    repo: Repo
    oid: str
    size: int
    parts: dict[int, bytes] = field(default_factory=dict)

    def keep(self, data: bytes) -> None:
        if len(data) != self.size or hashlib.sha256(data).hexdigest() != self.oid:
            raise HubError(400, f"The {len(data)} bytes are not the {self.size} bytes with sha256 {self.oid}.")
        self.repo.lfs[self.oid] = data


@dataclass
class State:
    """All that the Hub knows. `url` is set when the socket is open."""

    accounts: dict[str, Account]
    chunk_size: int  # bytes: a larger file is uploaded in parts of that size
    page_size: int  # entries of a page of a tree and of the commits
    url: str = ""
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)  # (type, id)
    uploads: dict[str, Upload] = field(default_factory=dict)


@dataclass
class Call:
    state: State
    request: Request
    account: Account | None
    repo: Repo

    def needs_account(self) -> Account:
        if self.account is None:
            raise unauthorized()
        if not self.account.writes:
            raise HubError(403, "Forbidden: you must use a write token to upload to a repository.")
        return self.account

    def needs_write(self, ref: str = "") -> Account:
        account = self.needs_account()
        if account.name not in (self.repo.owner, self.repo.proposers.get(ref)):
            raise HubError(403, f"Forbidden: {account.name} may not write to {self.repo.id}.")
        return account

    @property
    def page(self) -> str:
        return f"{self.state.url}/{self.repo.prefix}{self.repo.id}"


def unauthorized() -> HubError:
    """What anybody without a token gets for what is private, absent or to be written.

    The client takes a 401 for RepositoryNotFoundError where the address begins with https; the code says it over http.
    """
    return HubError(401, "Invalid username or password.", "RepoNotFound")


def account_of(state: State, request: Request) -> Account | None:
    """Whose request it is; None without a token. A wrong token is refused even for what is public."""
    header = request.headers.get("authorization")
    if header is None:
        return None
    account = state.accounts.get(header.removeprefix("Bearer "))
    if account is None:
        raise HubError(401, "Invalid credentials in Authorization header")
    return account


def find(state: State, account: Account | None, repo_type: str, repo_id: str) -> Repo:
    repo = state.repos.get((repo_type, repo_id))
    if repo is None or (repo.private and (account is None or account.name != repo.owner)):
        raise HubError(404, "Repository not found", "RepoNotFound") if account else unauthorized()
    return repo
