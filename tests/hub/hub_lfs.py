"""The test Hub's large files, by LFS over HTTP and not by Xet: batch, upload (whole or in parts), verify.

An object belongs to the repository it was uploaded to; a commit may name no other.
"""

import hashlib
import re
import secrets

from hub_calls import Call, Request, Response, State, Upload, reply
from hub_repos import HubError


def batch(call: Call) -> Response:
    """Where to send each object; nowhere for what the repository has. A pull request's objects come without a ref."""
    asked = call.request.json()
    call.needs_write(asked["ref"]["name"]) if "ref" in asked else call.needs_account()
    objects = [lfs_object(call, item["oid"], item["size"]) for item in asked.get("objects", [])]
    multipart = any("chunk_size" in thing.get("actions", {}).get("upload", {}).get("header", {}) for thing in objects)
    return reply({"transfer": "multipart" if multipart else "basic", "objects": objects, "hash_algo": "sha256"})


def lfs_object(call: Call, oid: str, size: int) -> dict:
    if not re.fullmatch("[0-9a-f]{64}", oid) or size <= 0:
        return {"oid": oid, "size": size, "error": {"code": 422, "message": f"Not a sha256 and a size: {oid}, {size}"}}
    if len(call.repo.lfs.get(oid, b"")) == size:
        return {"oid": oid, "size": size}
    ticket, state = secrets.token_hex(16), call.state
    state.uploads[ticket] = Upload(call.repo, oid, size)
    send = {"href": f"{state.url}/storage/{ticket}"}
    if size > state.chunk_size:
        numbers = range(1, -(-size // state.chunk_size) + 1)
        send["header"] = {f"{n:05d}": f"{send['href']}/{n}" for n in numbers} | {"chunk_size": str(state.chunk_size)}
    verify = {"href": f"{call.page}.git/info/lfs/objects/verify"}
    return {"oid": oid, "size": size, "authenticated": True, "actions": {"upload": send, "verify": verify}}


def storage(state: State, request: Request) -> Response:
    """PUT of a whole object or of a part, POST when all parts are there. Only the announced bytes are kept."""
    upload = state.uploads.get(request.path[1]) if len(request.path) > 1 else None
    if upload is None:
        raise HubError(403, "Request has expired")
    match (request.method, *request.path[2:]):
        case ("PUT",) if upload.size <= state.chunk_size:
            upload.keep(request.body)
        case ("PUT", number) if number.isdecimal() and upload.size > state.chunk_size:
            upload.parts[int(number)] = request.body
        case ("POST",):
            sent = [(part["partNumber"], part["etag"]) for part in request.json().get("parts", [])]
            if sent != [(number, md5(data)) for number, data in sorted(upload.parts.items())]:
                raise HubError(400, "The parts are not those that were sent.")
            upload.keep(b"".join(data for _, data in sorted(upload.parts.items())))
        case _:
            raise HubError(400, f"{request.method} is not how this object is sent.")
    return Response(headers={"ETag": md5(request.body)})


def md5(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


def verify(call: Call) -> Response:
    call.needs_account()
    asked = call.request.json()
    if len(call.repo.lfs.get(asked.get("oid"), b"")) != asked.get("size"):
        raise HubError(404, f"Object {asked.get('oid')} of {asked.get('size')} bytes is not here.")
    return Response()
