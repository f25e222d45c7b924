"""The test Hub's answers: one function for each thing that huggingface_hub 2.4 asks, from `Call` to `Response`."""

import base64
import json
import re
from collections.abc import Callable

import hub_cards
import hub_lfs
import hub_reads
from hub_calls import Account, Call, Request, Response, State, account_of, find, refusal, reply
from hub_repos import CHANGES, GITATTRIBUTES, File, HubError, Repo, git_ignores, wants_lfs

TYPES = {"models": "model", "datasets": "dataset", "spaces": "space"}


def answer(state: State, request: Request) -> Response:
    try:
        return route(state, request)
    except HubError as error:
        return refusal(error)


def route(state: State, request: Request) -> Response:
    if request.path[:1] == ("storage",):
        return hub_lfs.storage(state, request)  # its address is the permission, as a signed one is
    account = account_of(state, request)
    method = "GET" if request.method == "HEAD" else request.method

    def call(kind: str, user: str, name: str) -> Call:
        return Call(state, request, account, find(state, account, TYPES[kind], f"{user}/{name}"))

    match (method, *request.path):
        case ("GET", "api", "whoami-v2"):
            return whoami(account)
        case ("POST", "api", "validate-yaml"):
            return validate_yaml(request)
        case ("POST", "api", "repos", "create"):
            return create_repo(state, request, account)
        case ("DELETE", "api", "repos", "delete"):
            return delete_repo(state, request, account)
        case (_, "api", ("models" | "datasets" | "spaces") as kind, user, name, *rest):
            asked, key = call(kind, user, name), (method, rest[0] if rest else "")
            if key in API:
                return API[key](asked, *rest[1:])
        case (_, "api", ("models" | "datasets" | "spaces") as kind, name):
            find(state, account, TYPES[kind], name)  # repositories without a user: there are none here
        case (_, ("datasets" | "spaces") as kind, user, name, *rest):
            return page(call(kind, user, name.removesuffix(".git")), method, rest)
        case (_, user, name, *rest):
            return page(call("models", user, name.removesuffix(".git")), method, rest)
    raise HubError(404, "Sorry, we can't find the page you are looking for.")


def page(call: Call, method: str, rest: list[str]) -> Response:
    """Addresses outside the API: files, and the LFS protocol under <repository>.git."""
    match (method, *rest):
        case ("GET", "resolve", "refs", "pr" | "convert" as kind, number, *path):
            return hub_reads.resolve(call, f"refs/{kind}/{number}", "/".join(path))
        case ("GET", "resolve", revision, *path):
            return hub_reads.resolve(call, revision, "/".join(path))
        case ("POST", "info", "lfs", "objects", "batch"):
            return hub_lfs.batch(call)
        case ("POST", "info", "lfs", "objects", "verify"):
            return hub_lfs.verify(call)
    raise HubError(404, "Sorry, we can't find the page you are looking for.")


# Accounts and repositories.


def whoami(account: Account | None) -> Response:
    if account is None:
        raise HubError(401, "Invalid username or password.")
    scope = [{"entity": {"type": "user", "name": account.name}, "permissions": ["repo.content.read"]}]
    token = {"displayName": "test", "role": "write"}
    if not account.writes:
        token |= {"role": "fineGrained", "fineGrained": {"canReadGatedRepos": False, "global": [], "scoped": scope}}
    auth = {"type": "access_token", "accessToken": token}
    return reply({"type": "user", "name": account.name, "fullname": account.name, "orgs": [], "auth": auth})


def named_repo(request: Request, account: Account | None, verb: str) -> tuple[str, str]:
    """(type, id) in the body of create and delete, where the account may write there."""
    data = request.json()
    repo_type, name = data.get("type") or "model", data.get("name")
    if account is None:
        raise HubError(401, "Invalid username or password.")
    if (
        repo_type not in TYPES.values()
        or not isinstance(name, str)
        or not re.fullmatch(r"(?!.*(--|\.\.))\w[\w.-]{0,95}", name)
    ):
        raise HubError(400, f"Invalid repository: type {repo_type!r}, name {name!r}.")
    owner = data.get("organization") or account.name
    if not account.writes or owner != account.name:
        raise HubError(403, f'You don\'t have the rights to {verb} a {repo_type} under the namespace "{owner}"')
    return repo_type, f"{owner}/{name}"


def create_repo(state: State, request: Request, account: Account | None) -> Response:
    key = named_repo(request, account, "create")
    private = request.json().get("visibility") == "private" or bool(request.json().get("private"))
    repo = Repo(key[1], key[0], private, {".gitattributes": File(GITATTRIBUTES, lfs=False)}, "initial commit")
    made = {"url": f"{state.url}/{repo.prefix}{repo.id}", "name": repo.id, "id": repo.id, "private": private}
    if state.repos.setdefault(key, repo) is not repo:  # the client reads the address here too
        return reply({"error": f"You already created this {key[0]} repo", **made}, 409)
    return reply(made)


def delete_repo(state: State, request: Request, account: Account | None) -> Response:
    if state.repos.pop(named_repo(request, account, "delete"), None) is None:
        raise HubError(404, "Repository not found", "RepoNotFound")
    return Response()


def validate_yaml(request: Request) -> Response:
    content = request.json().get("content", "")
    wrong = [{"message": sentence} for sentence in hub_cards.errors(content)]
    empty = [] if hub_cards.front_matter(content) else [{"message": "empty or missing yaml metadata in repo card"}]
    return reply({"errors": wrong, "warnings": empty}, 400 if wrong else 200)


def auth_check(call: Call, *write: str) -> Response:
    if write:
        call.needs_write()
    return Response()


# Writing.


def preupload(call: Call, revision: str) -> Response:
    """For each file: regular or LFS, ignored or not, and the id of what the branch has under that name already."""
    if call.request.flag("create_pr"):
        call.needs_account()
    else:
        call.needs_write(revision)
    files, asked = call.repo.at(revision).files, call.request.json()
    hosted = files[".gitignore"].data.decode(errors="replace") if ".gitignore" in files else ""
    gitignore = asked.get("gitIgnore", hosted)

    def mode(item: dict) -> dict:
        path, there = item["path"], files.get(item["path"])
        lfs = wants_lfs(path, item["size"], base64.b64decode(item["sample"]))
        known = {"oid": there.etag} if there else {}
        return {
            "path": path,
            "uploadMode": "lfs" if lfs else "regular",
            "shouldIgnore": git_ignores(path, gitignore),
            **known,
        }

    return reply({"files": [mode(item) for item in asked.get("files", [])]})


def commit(call: Call, revision: str) -> Response:
    create_pr = call.request.flag("create_pr")
    author = call.needs_account() if create_pr else call.needs_write(revision)
    try:
        lines = [json.loads(line) for line in call.request.body.splitlines() if line.strip()]
        keyed = [(line["key"], line["value"]) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise HubError(400, f"The body is not lines of {{key, value}}: {error!r}") from error
    if not keyed or keyed[0][0] != "header" or not keyed[0][1].get("summary"):
        raise HubError(400, "The first line has to be a header with a summary.")
    for key, value in keyed[1:]:
        if key not in CHANGES or not isinstance(value, dict):
            raise HubError(400, f"Invalid operation {key!r}; allowed are {', '.join(CHANGES)}.")
    new, ref = call.repo.commit(revision, keyed[0][1], keyed[1:], author.name, create_pr)
    done = {"success": True, "commitOid": new.sha, "commitUrl": f"{call.page}/commit/{new.sha}", "hookOutput": ""}
    return reply(done | ({"pullRequestUrl": f"{call.page}/discussions/{ref.rpartition('/')[2]}"} if create_pr else {}))


def make_ref(call: Call, name: str, revision: str) -> Response:
    call.needs_write()
    with call.repo.lock:
        target = call.repo.at(revision)
        if name in call.repo.refs:
            raise HubError(409, f"Reference already exists: {name}")
        call.repo.refs[name] = target
    return Response()


def drop_ref(call: Call, name: str) -> Response:
    call.needs_write()
    if name == "refs/heads/main":
        raise HubError(403, "The branch main cannot be deleted.")
    with call.repo.lock:
        if call.repo.refs.pop(name, None) is None:
            raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
    return Response()


def create_branch(call: Call, name: str) -> Response:
    return make_ref(call, f"refs/heads/{name}", call.request.json().get("startingPoint", "main"))


def create_tag(call: Call, revision: str) -> Response:
    return make_ref(call, f"refs/tags/{call.request.json().get('tag')}", revision)


def delete_branch(call: Call, name: str) -> Response:
    return drop_ref(call, f"refs/heads/{name}")


def delete_tag(call: Call, name: str) -> Response:
    return drop_ref(call, f"refs/tags/{name}")


API: dict[tuple[str, str], Callable[..., Response]] = {
    ("GET", ""): hub_reads.info,
    ("GET", "revision"): hub_reads.info,
    ("GET", "tree"): hub_reads.tree,
    ("GET", "commits"): hub_reads.commits,
    ("GET", "refs"): hub_reads.refs,
    ("GET", "auth-check"): auth_check,
    ("POST", "paths-info"): hub_reads.paths_info,
    ("POST", "preupload"): preupload,
    ("POST", "commit"): commit,
    ("POST", "branch"): create_branch,
    ("POST", "tag"): create_tag,
    ("DELETE", "branch"): delete_branch,
    ("DELETE", "tag"): delete_tag,
}
