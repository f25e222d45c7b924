"""The test Hub, asked by unmodified clients: huggingface_hub here, diffusers and datasets in processes of their own."""

import hashlib
import io
import json
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import hub_server
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    constants,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx
from PIL import Image

CARD = b"---\nlicense: mit\ntags:\n- ddpm\nlibrary_name: diffusers\ndatasets:\n- mnist\n---\n# Digits\n"
WEIGHTS = bytes(range(256)) * 20


@pytest.fixture
def hub():
    with hub_server() as hub:
        yield hub


@pytest.fixture
def login(hub, monkeypatch):
    """token -> the client, which this process may have been told to keep offline; None is nobody."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    return lambda token="hf_ada", url=None: HfApi(endpoint=url or hub.url, token=token or False)


@pytest.fixture
def ada(login):
    return login()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "README.md").write_bytes(CARD)
    (folder / "unet" / "config.json").write_text("{}")
    (folder / "unet" / "weights.safetensors").write_bytes(WEIGHTS)
    (folder / "unet" / "empty.bin").write_bytes(b"")
    return folder


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".cache" not in path.parts
    }


def add(path, data):
    return CommitOperationAdd(path, data)


def send_commit(hub, repo_id, *lines, token="hf_ada", **query):
    """A commit that the client would not write."""
    header = {"key": "header", "value": {"summary": "by hand"}}
    body = b"".join(json.dumps(line).encode() + b"\n" for line in (header, *lines))
    address = f"{hub.url}/api/models/{repo_id}/commit/main"
    return httpx.post(address, content=body, params=query, headers={"Authorization": f"Bearer {token}"})


def refused(status):
    """`raises` for an answer with that status."""
    return pytest.raises(HfHubHTTPError, check=lambda error: error.response.status_code == status)


# Accounts and repositories.


def test_who_a_token_belongs_to(login):
    assert login().whoami()["name"] == login("hf_ada_reads").whoami()["name"] == "ada"
    assert login("hf_ada_reads").whoami()["auth"]["accessToken"]["role"] == "fineGrained"
    with refused(401):
        login("hf_wrong").whoami()


def test_create_and_delete(hub, ada, login):
    assert ada.create_repo("ada/digits", private=True).url == f"{hub.url}/ada/digits"
    assert ada.create_repo("digits", repo_type="dataset").repo_id == "ada/digits"
    assert hub.repos() == [("dataset", "ada/digits"), ("model", "ada/digits")]
    assert hub.repo("ada/digits").private and not hub.repo("ada/digits", "dataset").private
    assert list(hub.files("ada/digits")) == [".gitattributes"]
    with refused(409):
        ada.create_repo("ada/digits")
    assert ada.create_repo("ada/digits", exist_ok=True).repo_id == "ada/digits"
    for token, repo_id, status in (("hf_ada", "bob/x", 403), ("hf_ada_reads", "ada/x", 403), (None, "ada/x", 401)):
        with refused(status):
            login(token).create_repo(repo_id)
    ada.delete_repo("ada/digits")
    assert hub.repos() == [("dataset", "ada/digits")]
    with pytest.raises(RepositoryNotFoundError):
        ada.delete_repo("ada/digits")


def test_a_private_repository_is_absent_for_others(hub, login):
    hub.add_repo("digits", {"a.txt": b"a"}, private=True, user="ada")
    assert login().repo_exists("ada/digits") and login("hf_ada_reads").repo_exists("ada/digits")
    for token, status in (("hf_bob", 404), (None, 401)):
        with pytest.raises(RepositoryNotFoundError, match=str(status)):
            login(token).model_info("ada/digits")
        with pytest.raises(RepositoryNotFoundError):
            login(token).auth_check("ada/digits")
        assert not login(token).file_exists("ada/digits", "a.txt")
    with pytest.raises(RepositoryNotFoundError, match="404"):
        login().model_info("ada/absent")


def test_who_may_write(hub, login):
    hub.add_repo("ada/digits", {"a.txt": b"a"})
    login().auth_check("ada/digits", write=True)
    for token, status in (("hf_bob", 403), ("hf_ada_reads", 403), (None, 401), ("hf_wrong", 401)):
        client = login(token)
        if token != "hf_wrong":
            client.auth_check("ada/digits")
        with refused(status):
            client.auth_check("ada/digits", write=True)
        with refused(status):
            client.create_commit("ada/digits", [add("b.txt", b"b")], commit_message="b")
        with refused(status):
            client.create_tag("ada/digits", tag="v1")
    assert hub.files("ada/digits") == {"a.txt": b"a"}


def test_what_is_not_there(hub, ada):
    hub.add_repo("ada/digits", {"a.txt": b"a"})
    with pytest.raises(RevisionNotFoundError):
        ada.model_info("ada/digits", revision="v9")
    with pytest.raises(EntryNotFoundError) as absent:
        ada.hf_hub_download("ada/digits", "b.txt")
    assert absent.value.response.headers["X-Repo-Commit"] == hub.commits("ada/digits")[0].sha
    with pytest.raises(EntryNotFoundError):
        list(ada.list_repo_tree("ada/digits", "nowhere"))


# Uploads and commits.


def test_a_folder_goes_up_and_comes_down(hub, ada, folder, tmp_path):
    ada.create_repo("ada/digits")
    done = ada.upload_folder(repo_id="ada/digits", folder_path=folder, commit_message="All")
    attributes = hub.files("ada/digits").pop(".gitattributes")
    assert hub.files("ada/digits") == contents(folder) | {".gitattributes": attributes}
    newest = hub.commits("ada/digits")[0]
    assert (newest.sha, newest.title, newest.author) == (done.oid, "All", "ada")
    assert [commit.title for commit in ada.list_repo_commits("ada/digits")] == ["All", "initial commit"]
    assert len(hub.requests("PUT", "storage")) == 1  # the weights; small and empty files travel in the commit
    ada.snapshot_download("ada/digits", local_dir=tmp_path / "down")
    assert contents(tmp_path / "down") == hub.files("ada/digits")
    assert (
        ada.verify_repo_checksums("ada/digits", local_dir=tmp_path / "down").mismatches == []
    )  # git's and LFS's hashes


def test_what_has_not_changed_is_not_sent_again(hub, ada, folder):
    ada.create_repo("ada/digits")
    first = ada.upload_folder(repo_id="ada/digits", folder_path=folder)
    hub.log.clear()
    assert ada.upload_folder(repo_id="ada/digits", folder_path=folder).oid == first.oid
    assert not hub.requests("PUT") and not hub.requests("POST", "/commit/")
    ada.create_commit("ada/digits", [add("copy.safetensors", WEIGHTS)], commit_message="The same bytes")
    assert not hub.requests("PUT") and hub.files("ada/digits")["copy.safetensors"] == WEIGHTS


def test_ignored_files_stay_at_home(hub, ada, folder):
    (folder / ".gitignore").write_text("# caches\n*.safetensors\ncaches/\n")
    (folder / "caches").mkdir()
    (folder / "caches" / "a.txt").write_text("a")
    ada.create_repo("ada/digits")
    ada.upload_folder(repo_id="ada/digits", folder_path=folder)
    assert {"unet/weights.safetensors", "caches/a.txt"}.isdisjoint(hub.files("ada/digits"))
    assert "unet/config.json" in hub.files("ada/digits")


def test_what_is_large(hub, ada):
    ada.create_repo("ada/digits")
    files = {"a.png": b"x", "a.txt": b"x", "binary": b"\0", "long.txt": b"x" * (10 * 2**20 + 1), "empty.bin": b""}
    ada.create_commit("ada/digits", [add(*item) for item in files.items()], commit_message="x")
    large = {file.path for file in ada.get_paths_info("ada/digits", list(files)) if file.lfs}
    assert large == {"a.png", "binary", "long.txt"}


def test_parts(login):
    with hub_server(chunk_size=1000) as hub:
        ada = login(url=hub.url)
        ada.create_repo("ada/digits")
        ada.upload_file(path_or_fileobj=WEIGHTS[:2500], path_in_repo="a.bin", repo_id="ada/digits")
        assert [request.received for request in hub.requests("PUT")] == [1000, 1000, 500]
        assert hub.files("ada/digits")["a.bin"] == WEIGHTS[:2500]


@pytest.mark.parametrize("chunk_size", [1000, 100_000])
def test_bytes_with_another_hash_are_refused(login, chunk_size):
    with hub_server(chunk_size=chunk_size) as hub:
        ada = login(url=hub.url)
        ada.create_repo("ada/digits")
        forged = add("a.bin", WEIGHTS)
        forged.upload_info.sha256 = bytes(32)
        with pytest.raises(RuntimeError) as error:
            ada.create_commit("ada/digits", [forged], commit_message="x")
        assert isinstance(error.value.__cause__, BadRequestError)
        assert hub.repo("ada/digits").lfs == {} and len(hub.commits("ada/digits")) == 1


def test_parts_have_to_be_those_that_were_sent():
    with hub_server(chunk_size=1000) as hub:
        hub.add_repo("ada/digits")
        oid, token = hashlib.sha256(WEIGHTS[:1500]).hexdigest(), {"Authorization": "Bearer hf_ada"}
        asked = {"objects": [{"oid": oid, "size": 1500}], "ref": {"name": "main"}}
        batch = httpx.post(f"{hub.url}/ada/digits.git/info/lfs/objects/batch", json=asked, headers=token).json()
        upload = batch["objects"][0]["actions"]["upload"]
        sent = (("00001", WEIGHTS[:1000]), ("00002", WEIGHTS[1000:1500]))
        etags = [httpx.put(upload["header"][number], content=data).headers["ETag"] for number, data in sent]
        for wrong in ([], etags[:1], etags[::-1]):
            parts = [{"partNumber": number, "etag": etag} for number, etag in enumerate(wrong, 1)]
            assert httpx.post(upload["href"], json={"oid": oid, "parts": parts}).status_code == 400
        assert httpx.put(upload["href"], content=WEIGHTS[:1500]).status_code == 400  # whole, where parts were asked for
        assert httpx.put(f"{hub.url}/storage/elsewhere", content=WEIGHTS[:1500]).status_code == 403
        verify = {"json": {"oid": oid, "size": 1500}, "headers": token}
        assert httpx.post(f"{hub.url}/ada/digits.git/info/lfs/objects/verify", **verify).status_code == 404
        assert hub.repo("ada/digits").lfs == {}


def test_a_commit_names_objects_of_its_own_repository_only(hub):
    hub.add_repo("ada/theirs", {"a.bin": WEIGHTS})
    hub.add_repo("ada/ours")
    oid = next(iter(hub.repo("ada/theirs").lfs))
    pointer = {"path": "a.bin", "algo": "sha256", "oid": oid, "size": len(WEIGHTS)}
    answer = send_commit(hub, "ada/ours", {"key": "lfsFile", "value": pointer})
    assert answer.status_code == 400 and "LFS pointer pointed to a file that does not exist" in answer.text
    assert send_commit(hub, "ada/theirs", {"key": "lfsFile", "value": pointer}).status_code == 200
    wrong_size = send_commit(hub, "ada/theirs", {"key": "lfsFile", "value": pointer | {"size": 7}})
    assert wrong_size.status_code == 400
    assert [len(hub.commits(name)) for name in ("ada/ours", "ada/theirs")] == [1, 2]


@pytest.mark.parametrize("path", ["../a", "/a", "a/../../b", "a//b", "./a", ".git/config", "a\\b", "", None])
def test_names_that_lead_elsewhere_are_refused(hub, path):
    hub.add_repo("ada/digits")
    value = {"content": "YQ==", "encoding": "base64", "path": path}
    good = {"content": "YQ==", "encoding": "base64", "path": "good.txt"}
    answer = send_commit(hub, "ada/digits", {"key": "file", "value": good}, {"key": "file", "value": value})
    assert answer.status_code == 400 and hub.files("ada/digits") == {}  # the good one is not there either


@pytest.mark.parametrize(
    "line",
    [
        {"key": "file", "value": {"path": "a", "content": "not base64!", "encoding": "base64"}},
        {"key": "file", "value": {"path": "a", "content": "AAAA", "encoding": "base64"}},  # zero bytes: binary
        {"key": "file", "value": {"path": "a.txt/b", "content": "YQ==", "encoding": "base64"}},  # a.txt is a file
        {"key": "lfsFile", "value": {"path": "a", "oid": "0" * 64, "algo": "sha256"}},
        {"key": "rename", "value": {}},
        {"no": "key"},
    ],
)
def test_other_commits_that_are_refused(hub, line):
    hub.add_repo("ada/digits", {"a.txt": b"a"})
    assert send_commit(hub, "ada/digits", line).status_code == 400
    assert len(hub.commits("ada/digits")) == 1


def test_a_stale_parent_is_refused(hub, ada):
    start = hub.add_repo("ada/digits")
    second = ada.create_commit("ada/digits", [add("a", b"a")], commit_message="a", parent_commit=start).oid
    with refused(412) as stale:
        ada.create_commit("ada/digits", [add("b", b"b")], commit_message="b", parent_commit=start)
    assert "A commit has happened since" in str(stale.value)
    ada.create_commit("ada/digits", [add("c", b"c")], commit_message="c", parent_commit=second[:10])
    assert sorted(hub.files("ada/digits")) == ["a", "c"]


def test_copies_and_deletions(hub, ada):
    hub.add_repo("ada/digits", {"old/a.txt": b"a", "old/b.bin": WEIGHTS, "keep.txt": b"k"})
    changes = [CommitOperationCopy("old/a.txt", "new/a.txt"), CommitOperationCopy("old/b.bin", "new/b.bin")]
    ada.create_commit("ada/digits", [*changes, CommitOperationDelete("old/")], commit_message="Move")
    assert hub.files("ada/digits") == {"new/a.txt": b"a", "new/b.bin": WEIGHTS, "keep.txt": b"k"}
    ada.delete_file("keep.txt", "ada/digits")
    with pytest.raises(EntryNotFoundError, match="A file with this name doesn't exist"):
        ada.delete_file("keep.txt", "ada/digits")
    with pytest.raises(EntryNotFoundError):
        ada.delete_folder("old", "ada/digits")


def test_an_empty_commit_is_a_commit(hub):
    hub.add_repo("ada/digits", {"a.txt": b"a"})
    assert send_commit(hub, "ada/digits").status_code == 200
    assert len(hub.commits("ada/digits")) == 2 and hub.files("ada/digits") == {"a.txt": b"a"}


def test_readers_see_a_whole_commit(hub, ada):
    hub.add_repo("ada/digits", {"a": b"0", "b": b"0"})
    enough = threading.Event()

    def write():
        number = 0
        while not enough.is_set():
            number += 1
            text = str(number).encode()
            ada.create_commit("ada/digits", [add("a", text), add("b", text)], commit_message="both")

    writer, seen = threading.Thread(target=write), set()
    writer.start()
    try:
        while len(seen) < 10:
            a, b = (file.blob_id for file in ada.get_paths_info("ada/digits", ["a", "b"]))
            assert a == b
            seen.add(a)
    finally:
        enough.set()
        writer.join()


def test_a_pull_request_leaves_main_alone(hub, ada, login):
    hub.add_repo("ada/digits", {"a.txt": b"a"})
    bob = login("hf_bob")
    change = [add("b.txt", b"b"), add("w.bin", WEIGHTS)]
    with refused(403):
        login("hf_ada_reads").create_commit("ada/digits", change, commit_message="Add", create_pr=True)
    done = bob.create_commit("ada/digits", change, commit_message="Add", create_pr=True)
    assert (done.pr_url, done.pr_revision) == (f"{hub.url}/ada/digits/discussions/1", "refs/pr/1")
    assert hub.files("ada/digits") == {"a.txt": b"a"}
    bob.create_commit("ada/digits", [add("c.txt", b"c")], commit_message="More", revision="refs/pr/1")
    assert sorted(hub.files("ada/digits", "refs/pr/1")) == ["a.txt", "b.txt", "c.txt", "w.bin"]
    assert ada.model_info("ada/digits", revision="refs/pr/1").sha == hub.commits("ada/digits", "refs/pr/1")[0].sha
    pull_requests = ada.list_repo_refs("ada/digits", include_pull_requests=True).pull_requests
    assert [ref.ref for ref in pull_requests] == ["refs/pr/1"]


def test_branches_and_tags(hub, ada):
    start = hub.add_repo("ada/digits", {"a.txt": b"a"})
    ada.create_branch("ada/digits", branch="try/it")
    ada.upload_file(path_or_fileobj=b"b", path_in_repo="b.txt", repo_id="ada/digits", revision="try/it")
    ada.create_tag("ada/digits", tag="v1", revision="try/it")
    with refused(409):
        ada.create_tag("ada/digits", tag="v1")
    ada.create_branch("ada/digits", branch="try/it", exist_ok=True)
    refs = ada.list_repo_refs("ada/digits")
    assert {ref.name: ref.target_commit == start for ref in refs.branches} == {"main": True, "try/it": False}
    assert [ref.name for ref in refs.tags] == ["v1"]
    assert sorted(hub.files("ada/digits", "v1")) == ["a.txt", "b.txt"] != sorted(hub.files("ada/digits"))
    assert ada.model_info("ada/digits", revision=start[:8]).sha == start
    with pytest.raises(RevisionNotFoundError):  # a tag is not a branch
        ada.upload_file(path_or_fileobj=b"b", path_in_repo="c.txt", repo_id="ada/digits", revision="v1")
    ada.delete_branch("ada/digits", branch="try/it")
    ada.delete_tag("ada/digits", tag="v1")
    assert not ada.revision_exists("ada/digits", "v1")
    with refused(403):
        ada.delete_branch("ada/digits", branch="main")


# Reading.


def test_what_the_card_says(hub, ada):
    hub.add_repo("ada/digits", {"README.md": CARD, "w.safetensors": WEIGHTS})
    info = ada.model_info("ada/digits", files_metadata=True)
    assert info.tags == ["diffusers", "ddpm", "dataset:mnist", "license:mit", "region:us"]
    assert (info.card_data.license, info.library_name, info.author, info.private) == ("mit", "diffusers", "ada", False)
    readme, weights = info.siblings
    assert (readme.lfs, readme.size, weights.size, weights.lfs.size) == (None, len(CARD), len(WEIGHTS), len(WEIGHTS))
    assert ada.model_info("ada/digits", expand=["sha"]).siblings is None


@pytest.mark.parametrize(
    ("yaml", "sentence"),
    [
        ("license: [", "YAML"),
        ("- a list", "mapping"),
        ("tags: ddpm", '"tags" must be list'),
        ("license: 3", '"license" must be str'),
        ("tags:\n- 3", '"tags" must be a list of strings'),
        ("model-index:\n- name: m", r'"model-index\[0\].results" is required'),
        ("model-index:\n- name: m\n  results:\n  - task: {type: t}", "dataset.type"),
    ],
)
def test_metadata_of_the_wrong_type_are_refused(hub, ada, yaml, sentence):
    hub.add_repo("ada/digits")
    with pytest.raises(ValueError, match=sentence):
        ada.create_commit("ada/digits", [add("README.md", f"---\n{yaml}\n---\n".encode())], commit_message="x")
    assert not hub.requests("POST", "preupload|commit")


def test_a_good_card_and_none(hub, ada):
    hub.add_repo("ada/digits")
    model = "model-index:\n- name: m\n  results:\n  - task: {type: t}\n    dataset: {name: d, type: d}\n"
    good = f"---\nlicense: mit\n{model}    metrics:\n    - {{type: fid, value: 1.5}}\n---\n"
    ada.create_commit("ada/digits", [add("README.md", good.encode())], commit_message="good")
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        ada.create_commit("ada/digits", [add("README.md", b"# none")], commit_message="none")


def test_trees_come_in_pages(login):
    with hub_server(page_size=3) as hub:
        files = {f"data/{number}.txt": b"%d" % number for number in range(7)}
        hub.add_repo("ada/digits", {**files, "a b/c%d.txt": b"x"})
        ada = login(url=hub.url)
        listed = list(ada.list_repo_tree("ada/digits", recursive=True, expand=True))
        assert [item.path for item in listed] == sorted([*files, "a b", "a b/c%d.txt", "data"])
        assert len(hub.requests("GET", "/tree/")) == 4 and listed[0].last_commit.title == "seed"
        assert [item.path for item in ada.list_repo_tree("ada/digits")] == ["a b", "data"]
        assert sorted(ada.list_repo_files("ada/digits")) == sorted(hub.files("ada/digits"))
        assert len(ada.list_repo_commits("ada/digits")) == 1


def test_the_commit_that_changed_a_file_last(hub, ada):
    hub.add_repo("ada/digits", {"a/1.txt": b"1", "b.txt": b"b"})
    ada.create_commit("ada/digits", [add("b.txt", b"c")], commit_message="b")
    titles = {
        file.path: file.last_commit.title for file in ada.get_paths_info("ada/digits", ["a", "b.txt"], expand=True)
    }
    assert titles == {"a": "seed", "b.txt": "b"}


def test_ranges(hub, login):
    hub.add_repo("ada/digits", {"w.bin": WEIGHTS}, private=True)
    login()
    files = HfFileSystem(endpoint=hub.url, token="hf_ada", skip_instance_cache=True)
    assert files.cat_file("ada/digits/w.bin", start=100, end=300) == WEIGHTS[100:300]
    assert files.cat_file("ada/digits/w.bin", start=-10) == WEIGHTS[-10:]
    assert {request.status for request in hub.requests("GET", "resolve")} == {206}
    header = {"Authorization": "Bearer hf_ada"}
    address = f"{hub.url}/ada/digits/resolve/main/w.bin"
    assert httpx.get(address, headers=header | {"Range": "bytes=5-9"}).content == WEIGHTS[5:10]
    suffix = httpx.get(address, headers=header | {"Range": "bytes=-7"})
    assert suffix.content == WEIGHTS[-7:] and suffix.headers["Content-Range"].endswith(f"/{len(WEIGHTS)}")
    assert httpx.get(address, headers=header | {"Range": f"bytes={len(WEIGHTS)}-"}).status_code == 416
    assert httpx.get(address, headers=header | {"If-None-Match": suffix.headers["ETag"]}).status_code == 304


def test_a_hostile_repository_is_served_as_it_is(hub, ada, tmp_path):
    hub.add_repo("eve/bad", {"../../evil.txt": b"x", "good.txt": b"g"})
    assert "../../evil.txt" in ada.list_repo_files("eve/bad")
    with pytest.raises((OSError, ValueError)):
        ada.snapshot_download("eve/bad", cache_dir=tmp_path / "cache")
    assert not list(tmp_path.rglob("evil.txt"))


# Faults.


def test_a_download_that_is_cut_goes_on_where_it_was(hub, ada, tmp_path):
    long = b"0123456789abcdef" * (12 * 2**16)  # 12 MiB
    hub.add_repo("ada/digits", {"long.bin": long})
    hub.cut("long.bin", after_bytes=11 * 2**20)
    path = ada.hf_hub_download("ada/digits", "long.bin", cache_dir=tmp_path)
    with open(path, "rb") as file:
        assert file.read() == long
    # the client writes pieces of 10 MiB, so the last MiB that came is asked for again
    assert [(r.status, r.sent) for r in hub.requests("GET", "long.bin")] == [(200, 11 * 2**20), (206, 2 * 2**20)]


def test_an_upload_that_is_cut_is_sent_again(hub, ada):
    ada.create_repo("ada/digits")
    hub.cut("storage", after_bytes=1000)
    ada.upload_file(path_or_fileobj=WEIGHTS, path_in_repo="w.bin", repo_id="ada/digits")
    assert [(r.status, r.received) for r in hub.requests("PUT")] == [(0, 1000), (200, len(WEIGHTS))]
    assert hub.files("ada/digits")["w.bin"] == WEIGHTS


@pytest.mark.parametrize("status", [429, 500, 503])
def test_the_client_asks_again_where_it_does(hub, ada, status):
    ada.create_repo("ada/digits")
    hub.fail("POST", "preupload", times=1, status=status, headers={"Retry-After": "0"})
    ada.upload_file(path_or_fileobj=b"a", path_in_repo="a.txt", repo_id="ada/digits")
    assert [request.status for request in hub.requests("POST", "preupload")] == [status, 200]


def test_a_failed_commit_did_nothing_and_a_lost_one_happened(hub, ada):
    ada.create_repo("ada/digits")
    hub.fail("POST", "/commit/main", status=500)
    with refused(500):
        ada.create_commit("ada/digits", [add("a.txt", b"a")], commit_message="fails")
    assert "a.txt" not in hub.files("ada/digits")
    hub.lose("POST", "/commit/main")
    with pytest.raises(httpx.RemoteProtocolError):
        ada.create_commit("ada/digits", [add("a.txt", b"a")], commit_message="is lost")
    assert hub.files("ada/digits")["a.txt"] == b"a"
    assert [request.status for request in hub.requests("POST", "/commit/")] == [500, 0]


def test_a_hub_that_is_closed_cannot_be_reached(login):
    with hub_server() as hub:
        client = login(url=hub.url)
        client.whoami()  # the connection stays open
    with pytest.raises(httpx.TransportError):
        client.whoami()


def test_the_log(hub, ada, login):
    hub.add_repo("ada/digits", {"a.txt": b"abc"})
    ada.model_info("ada/digits", files_metadata=True)
    login(None).file_exists("ada/digits", "a.txt")
    info, head = hub.log
    assert (info.method, info.path, info.query, info.with_token) == (
        "GET",
        "/api/models/ada/digits",
        "blobs=true",
        True,
    )
    assert (head.method, head.status, head.sent, head.with_token) == ("HEAD", 200, 0, False)


# What stands on the client, in processes of their own.

PUSH_AND_PULL = """
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
network = UNet2DModel(8, 1, 1, block_out_channels=(4,), norm_num_groups=2, layers_per_block=1,
                      down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
DDPMPipeline(network, DDPMScheduler()).push_to_hub("ada/digits", private=True)
pulled = DDPMPipeline.from_pretrained("ada/digits").unet
assert all((a == b).all() for a, b in zip(network.parameters(), pulled.parameters(), strict=True))
print(pulled.config["_name_or_path"])
"""


def test_stock_diffusers_pushes_and_pulls(hub, run_python, tmp_path):
    loaded = run_python(PUSH_AND_PULL, **hub.environment(tmp_path, "hf_ada")).stdout
    assert hub.commits("ada/digits")[0].sha in loaded  # from the cache, of that commit
    assert hub.repo("ada/digits").private
    assert hub.files("ada/digits").keys() >= {
        *("model_index.json", "README.md", "scheduler/scheduler_config.json"),
        *("unet/config.json", "unet/diffusion_pytorch_model.safetensors"),
    }


LOAD = """
from datasets import load_dataset
for name in ("ada/parquet", "ada/images"):
    whole = load_dataset(name, split="train")
    stream = load_dataset(name, split="train", streaming=True)
    for rows in (whole, stream):
        print(name, [(row["label"], row["image"].size) for row in rows])
"""


def png(shade):
    buffer = io.BytesIO()
    Image.new("L", (3, 2), shade).save(buffer, "PNG")
    return buffer.getvalue()


def shard(labels):
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    rows = [{"image": {"bytes": png(label), "path": None}, "label": label} for label in labels]
    table = pa.Table.from_pylist(rows, pa.schema({"image": image, "label": pa.int64()}))
    features = {"image": {"_type": "Image"}, "label": {"_type": "Value", "dtype": "int64"}}
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), buffer)
    return buffer.getvalue()


def test_datasets_loads_and_streams(hub, run_python, tmp_path):
    shards = {f"data/train-0000{n}-of-00002.parquet": shard([2 * n, 2 * n + 1]) for n in range(2)}
    hub.add_repo("ada/parquet", shards, repo_type="dataset")
    images = {f"train/{label}/{label}.png": png(ord(label)) for label in "ab"}
    hub.add_repo("ada/images", images, repo_type="dataset", private=True)
    shown = run_python(LOAD, **hub.environment(tmp_path, "hf_ada")).stdout.splitlines()
    assert shown == 2 * [f"ada/parquet {[(label, (3, 2)) for label in range(4)]}"] + 2 * [
        f"ada/images {[(label, (3, 2)) for label in range(2)]}"
    ]
