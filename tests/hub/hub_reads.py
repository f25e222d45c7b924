"""The test Hub's answers to readers: what a repository is, its trees, commits and references, and its files."""

import base64
import hashlib
import re
from collections.abc import Callable
from email.utils import format_datetime
from urllib.parse import parse_qs, quote, urlencode

import hub_cards
from hub_calls import Call, Response, reply
from hub_repos import Commit, File, HubError


def blob(file: File) -> dict:
    lfs = {"oid": file.sha256, "sha256": file.sha256, "size": len(file.data), "pointerSize": len(file.pointer)}
    return {"size": len(file.data), "oid": file.blob_id, "blobId": file.blob_id} | ({"lfs": lfs} if file.lfs else {})


def info(call: Call, revision: str = "main") -> Response:
    repo, commit = call.repo, call.repo.at(revision)
    readme = commit.files.get("README.md")
    card = hub_cards.metadata(readme.data.decode(errors="replace")) if readme else {}
    blobs = call.request.flag("blobs")
    siblings = [{"rfilename": path} | (blob(file) if blobs else {}) for path, file in sorted(commit.files.items())]
    data = {
        **{"_id": commit.sha[:24], "id": repo.id, "author": repo.owner, "sha": commit.sha, "private": repo.private},
        **{"lastModified": iso(commit), "createdAt": iso(list(commit.history())[-1]), "siblings": siblings},
        **{
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": hub_cards.tags(card),
            "cardData": card,
        },
        "usedStorage": sum(len(file.data) for file in commit.files.values()),
    }
    if repo.type == "model":
        data |= {"modelId": repo.id, "spaces": [], "config": {}}
        data |= {key: card[key] for key in ("library_name", "pipeline_tag", "model-index") if key in card}
    if wanted := call.request.query.get("expand"):
        data = {key: value for key, value in data.items() if key in ("_id", "id", *wanted)}
    return reply(data)


def iso(commit: Commit) -> str:
    return commit.date.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def entry(commit: Commit, path: str, expand: bool) -> dict | None:
    """A file or a folder as trees list them; None where there is neither."""
    last = commit.last_change(path) if expand else None
    more = {"lastCommit": {"id": last.sha, "title": last.title, "date": iso(last)}} if last else {}
    if path in commit.files:
        return {"type": "file", "path": path, **blob(commit.files[path]), **more}
    inside = sorted(f"{p}\0{f.blob_id}" for p, f in commit.files.items() if p.startswith(f"{path}/"))
    oid = hashlib.sha1("\n".join(inside).encode(errors="surrogateescape")).hexdigest()
    return {"type": "directory", "path": path, "oid": oid, "size": 0, **more} if inside else None


def tree(call: Call, revision: str, *path: str) -> Response:
    commit, folder = call.repo.at(revision), "/".join(path).strip("/")
    recursive, expand = call.request.flag("recursive"), call.request.flag("expand")
    start = f"{folder}/" if folder else ""
    names = {p for p in commit.files if p.startswith(start)}
    if folder and not names:
        raise HubError(404, f'"{folder}" does not exist on "{revision}"', "EntryNotFound", X_Repo_Commit=commit.sha)
    folders = {p[:at] for p in names for at in range(len(start), len(p)) if p[at] == "/"}
    shown = sorted(p for p in names | folders if recursive or "/" not in p[len(start) :])
    return pages(call, shown, lambda name: entry(commit, name, expand))


def pages(call: Call, items: list, show: Callable) -> Response:
    """The page that `cursor` asks for, and in the header Link the address of the next one."""
    start = int(base64.b64decode(call.request.query.get("cursor", ["MA=="])[0]))
    end = start + call.state.page_size
    headers = {}
    if end < len(items):
        query = {**call.request.query, "cursor": base64.b64encode(b"%d" % end).decode()}
        path = "/".join(quote(part, safe="") for part in call.request.path)
        headers["Link"] = f'<{call.state.url}/{path}?{urlencode(query, doseq=True)}>; rel="next"'
    return reply([show(item) for item in items[start:end]], **headers)


def paths_info(call: Call, revision: str) -> Response:
    if call.request.headers.get("content-type", "").startswith("application/json"):
        asked = call.request.json()
    else:
        form = parse_qs(call.request.body.decode())
        asked = {"paths": form.get("paths", []), "expand": form.get("expand", ["false"])[0] == "true"}
    commit = call.repo.at(revision)
    entries = [entry(commit, path.strip("/"), bool(asked.get("expand"))) for path in asked["paths"]]
    return reply([found for found in entries if found is not None])


def commits(call: Call, revision: str) -> Response:
    def show(commit: Commit) -> dict:
        heading = {"id": commit.sha, "title": commit.title, "message": commit.message, "date": iso(commit)}
        return heading | {"authors": [{"user": commit.author}]}

    return pages(call, list(call.repo.at(revision).history()), show)


def refs(call: Call) -> Response:
    def listed(folder: str, short: bool = True) -> list[dict]:
        found = sorted((ref, commit) for ref, commit in list(call.repo.refs.items()) if ref.startswith(folder))
        return [{"name": r.removeprefix(folder) if short else r, "ref": r, "targetCommit": c.sha} for r, c in found]

    data = {"branches": listed("refs/heads/"), "tags": listed("refs/tags/"), "converts": []}
    return reply(data | ({"pullRequests": listed("refs/pr/", False)} if call.request.flag("include_prs") else {}))


def resolve(call: Call, revision: str, path: str) -> Response:
    """A file, or the part of it that the header Range asks for. The Hub redirects to its storage; this one does not."""
    commit = call.repo.at(revision)
    file = commit.files.get(path)
    if file is None:
        raise HubError(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit.sha)
    size, etag = len(file.data), f'"{file.etag}"'
    headers = {"Content-Type": "application/octet-stream", "ETag": etag, "X-Repo-Commit": commit.sha}
    headers |= {"Accept-Ranges": "bytes", "Last-Modified": format_datetime(commit.date, usegmt=True)}
    headers["Content-Disposition"] = f"inline; filename*=UTF-8''{quote(path.rpartition('/')[2], safe='')};"
    if file.lfs:
        headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(size)}
    if call.request.headers.get("if-none-match") == etag:
        return Response(304, b"", headers)
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", call.request.headers.get("range", "").replace(" ", ""))
    if asked is None or asked[0] == "bytes=-":
        return Response(200, file.data, headers)
    start = int(asked[1]) if asked[1] else max(0, size - int(asked[2]))
    end = min(int(asked[2]), size - 1) if asked[1] and asked[2] else size - 1
    if start > end:
        raise HubError(416, "Range not satisfiable", Content_Range=f"bytes */{size}")
    headers["Content-Range"] = f"bytes {start}-{end}/{size}"
    return Response(206, file.data[start : end + 1], headers)
