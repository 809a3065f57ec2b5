"""The test hub against the real client in this process: repositories, files and who may do what."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, timezone
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    constants,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub.client import ALICE, CARD, FILES, REPO, WEIGHTS, api, content_of, fetch, folder_of, published, raw
from tests.hub.conftest import HubMaker
from tests.hub.repository import Blob, Repository, tree_ids
from tests.hub.server import TestHub

# Ids.


def test_ids_are_those_that_git_gives() -> None:
    files = {"a.txt": b"hello\n", "a/b/c": b"one\n", "a0": b"two\n", "a/z": b"three\n"}
    blobs = {name: Blob.regular(data) for name, data in files.items()}
    assert blobs["a.txt"].blob_id == "ce013625030ba8dba906f756967f9e9ca394464a"
    assert Blob.large(f"{7:064d}", 12).blob_id == "c86f988d3b9b64dc6a161197d62c57eb230c1689"
    assert tree_ids(blobs) == {
        "": "46fc91514fd64c1779738c7b331172500d67f9f5",
        "a": "be31e1cb4788d534350f160b8506211c660aca34",
        "a/b": "6889e612e3de1ed02eaa19de925661861df892cb",
    }
    repo, date = Repository(REPO, private=False), datetime.fromtimestamp(1_700_000_000, timezone.utc)
    first = repo.commit("refs/heads/main", blobs, "first", author="alice", date=date)
    second = repo.commit("refs/heads/main", blobs, "second", "why", author="alice", date=date)
    assert first.id == "a19d42c656d2bc0de10473c224bf330f25a29e29"
    assert second.id == "50a447feb5e959480db794c97f9550884ddc0827"


# Publishing and fetching.


def test_lfs_round_trip_gives_the_same_files(hub: TestHub, tmp_path: Path) -> None:
    client, folder = api(hub), folder_of(tmp_path, FILES)
    assert client.whoami()["name"] == "alice"
    assert client.create_repo(REPO).repo_id == REPO
    assert client.list_repo_files(REPO) == [".gitattributes"]
    info = client.upload_folder(repo_id=REPO, folder_path=folder)
    assert info.oid == hub.repo(REPO).head.id
    assert published(hub) == FILES
    assert [r.bytes_in for r in hub.requests.select("PUT")] == [len(WEIGHTS)]
    assert content_of(snapshot_download(REPO, endpoint=hub.url)) == FILES
    assert client.verify_repo_checksums(REPO).mismatches == []


def test_second_push_sends_nothing(hub: TestHub, tmp_path: Path) -> None:
    client, folder = api(hub), folder_of(tmp_path, FILES)
    hub.put_raw(REPO, FILES)
    head = hub.repo(REPO).head.id
    assert client.upload_folder(repo_id=REPO, folder_path=folder).oid == head
    assert not hub.requests.select("PUT") + hub.requests.select("POST", "/commit/")
    # With one small file changed the weights stay where they are.
    (folder / "config.json").write_bytes(b'{"a": 2}\n')
    assert client.upload_folder(repo_id=REPO, folder_path=folder).oid != head
    assert not hub.requests.select("PUT")
    assert published(hub) == {**FILES, "config.json": b'{"a": 2}\n'}


def test_second_download_gets_nothing(hub: TestHub) -> None:
    commit = hub.put_raw(REPO, FILES)
    assert fetch(hub, "model.safetensors") == WEIGHTS
    assert [r.method for r in hub.requests] == ["HEAD", "GET"]
    hub.requests.clear()
    assert fetch(hub, "model.safetensors") == WEIGHTS
    assert [str(r) for r in hub.requests] == [f"HEAD /{REPO}/resolve/main/model.safetensors 200"]
    # A new commit with the same weights, and then a commit that is known to be cached.
    hub.put_raw(REPO, {"config.json": b"{}"})
    assert fetch(hub, "model.safetensors") == WEIGHTS
    assert [r.method for r in hub.requests] == ["HEAD", "HEAD"]
    assert fetch(hub, "model.safetensors", revision=commit) == WEIGHTS
    assert len(hub.requests) == 2


def test_multipart_and_cdn_work_without_the_token(make_hub: HubMaker, lfs_client: None, tmp_path: Path) -> None:
    hub = make_hub(cdn=True, multipart_chunk=4096)
    api(hub).create_repo(REPO, private=True)
    api(hub).upload_folder(repo_id=REPO, folder_path=folder_of(tmp_path, FILES))
    parts = hub.requests.select("PUT", server="cdn")
    assert [r.bytes_in for r in parts] == [4096, 4096, len(WEIGHTS) - 2 * 4096]
    assert published(hub) == FILES
    hub.requests.clear()
    assert fetch(hub, "model.safetensors", ALICE) == WEIGHTS
    head, get = hub.requests
    assert (head.server, head.status, head.token) == ("hub", 302, ALICE)
    assert (get.server, get.status, get.token) == ("cdn", 200, "")
    # Storage refuses a link that was tampered with, and a token.
    assert raw(hub, f"/lfs/{hashlib.sha256(WEIGHTS).hexdigest()}")[0].status == 403
    link = raw(hub, head.path, headers={"Authorization": f"Bearer {ALICE}"})[0].headers["Location"]
    assert httpx2.get(link, headers={"Authorization": f"Bearer {ALICE}"}).status_code == 400


def test_size_name_and_content_decide_what_is_a_large_file(make_hub: HubMaker, lfs_client: None) -> None:
    hub = make_hub(lfs_threshold=100)
    api(hub).create_repo(REPO)
    files = {"long.txt": b"x" * 100, "short.txt": b"x" * 99, "empty.safetensors": b"", "curve.png": b"\x89\0"}
    additions = [CommitOperationAdd(name, data) for name, data in files.items()]
    api(hub).create_commit(REPO, additions, commit_message="four files")
    assert published(hub) == files
    blobs = hub.repo(REPO).head.files
    assert {name for name in files if blobs[name].lfs} == {"long.txt", "curve.png"}


def test_xet_round_trip_serves_clients_with_and_without_xet(
    xet_hub: TestHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, folder = api(xet_hub), folder_of(tmp_path, FILES)
    client.create_repo(REPO)
    client.upload_folder(repo_id=REPO, folder_path=folder)
    assert [r.token for r in xet_hub.requests.select(path="/xet-write-token/")] == [ALICE]
    assert not xet_hub.requests.select("PUT")
    blob = xet_hub.repo(REPO).head.files["model.safetensors"]
    assert (blob.sha256, blob.size) == (hashlib.sha256(WEIGHTS).hexdigest(), len(WEIGHTS))
    assert len(blob.xet_hash) == 64
    xet_hub.requests.clear()
    assert content_of(snapshot_download(REPO, endpoint=xet_hub.url, token=False)) == FILES
    assert xet_hub.requests.select(path="/xet-read-token/")
    assert not xet_hub.requests.select("GET", "/resolve/.*safetensors")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    assert fetch(xet_hub, "model.safetensors", cache_dir=tmp_path / "other") == WEIGHTS
    assert xet_hub.requests.select("GET", "/resolve/.*safetensors")


def test_client_that_insists_on_xet_fails_on_a_hub_without(make_hub: HubMaker, tmp_path: Path) -> None:
    hub = make_hub()
    api(hub).create_repo(REPO)
    with pytest.raises(ConnectionError, match="404"):
        api(hub).upload_folder(repo_id=REPO, folder_path=folder_of(tmp_path, FILES))
    assert published(hub) == {}


# Revisions.


def test_tags_are_made_and_found(hub: TestHub) -> None:
    client, first = api(hub), hub.put_raw(REPO, FILES)
    client.create_tag(REPO, tag="v1", tag_message="first")
    hub.put_raw(REPO, {"two.txt": b"2\n"})
    with pytest.raises(HfHubHTTPError, match="409"):
        client.create_tag(REPO, tag="v1")
    with pytest.raises(RevisionNotFoundError):
        client.create_tag(REPO, tag="v2", revision="nothing")
    assert {(r.ref, r.target_commit) for r in client.list_repo_refs(REPO).tags} == {("refs/tags/v1", first)}
    assert client.model_info(REPO, revision="v1").sha == first
    with pytest.raises(RemoteEntryNotFoundError):
        fetch(hub, "two.txt", revision="v1")


def test_commit_refuses_what_a_hub_refuses(hub: TestHub) -> None:
    client, old = api(hub), hub.put_raw(REPO, FILES)
    new = hub.put_raw(REPO, {"config.json": b"{}"})
    add = CommitOperationAdd("a.txt", b"a")
    with pytest.raises(HfHubHTTPError, match="412"):
        client.create_commit(REPO, [add], commit_message="late", parent_commit=old)
    header = json.dumps({"key": "header", "value": {"summary": "raw"}})
    lfs = {"key": "lfsFile", "value": {"path": "a.bin", "algo": "sha256", "oid": "0" * 64, "size": 1}}
    path = {"key": "file", "value": {"path": "../a", "content": "", "encoding": "base64"}}
    gone = {"key": "deletedFile", "value": {"path": "nothing"}}
    for operation, status in ((lfs, 400), (path, 400), (gone, 404)):
        body = f"{header}\n{json.dumps(operation)}\n"
        url = f"/api/models/{REPO}/commit/main"
        assert raw(hub, url, "POST", {"Authorization": f"Bearer {ALICE}"}, body)[0].status == status
    assert hub.repo(REPO).head.id == new


# Listings.


def test_listings_come_in_pages(make_hub: HubMaker) -> None:
    hub = make_hub(page_size=2)
    hub.put_raw(REPO, FILES)
    for number in range(3):
        hub.put_raw(f"alice/other-{number}", {"README.md": CARD.replace(b"graphs", b"graphs, more")})
    assert len(list(api(hub).list_models(author="alice"))) == 4
    assert len(list(api(hub).list_models(author="alice", limit=3))) == 3
    assert [m.id for m in api(hub).list_models(filter=["graphs", "license:mit"], search="MODEL")] == [REPO]


def test_info_holds_what_the_card_says(hub: TestHub) -> None:
    hub.put_raw(REPO, {**FILES, "README.md": CARD.replace(b"---\n#", b"library_name: zoo\n---\n#")})
    info = api(hub).model_info(REPO, files_metadata=True)
    assert (info.sha, info.author, info.private, info.gated) == (hub.repo(REPO).head.id, "alice", False, False)
    assert (info.card_data.license, info.library_name, info.tags) == ("mit", "zoo", ["graphs", "zoo", "license:mit"])
    weights = next(file for file in info.siblings if file.rfilename == "model.safetensors")
    assert (weights.size, weights.lfs.sha256) == (len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest())
    assert api(hub).model_info(REPO, expand=["sha"]).tags is None


def test_card_with_bad_yaml_is_refused_before_anything_is_sent(hub: TestHub) -> None:
    hub.put_raw(REPO, FILES)
    for card in (b"---\ntags: [a\n---\n", b"---\nonly words\n---\n", b"---\ntags: {a: 1}\n---\n"):
        with pytest.raises(ValueError, match="Invalid metadata in README"):
            api(hub).upload_file(repo_id=REPO, path_or_fileobj=card, path_in_repo="README.md")
    with pytest.warns(UserWarning, match="empty or missing yaml"):
        api(hub).upload_file(repo_id=REPO, path_or_fileobj=b"# no metadata\n", path_in_repo="README.md")
    assert published(hub)["README.md"] == b"# no metadata\n"


# Who may do what.


def test_private_repository_shows_itself_to_members_alone(hub: TestHub) -> None:
    member, stranger = hub.add_user("mia", lab="read"), hub.add_user("bob")
    hub.add_user("alice", lab="admin")
    api(hub).create_repo("lab/model", private=True)
    api(hub).upload_file(repo_id="lab/model", path_or_fileobj=b"x", path_in_repo="x.txt")
    assert api(hub, member).model_info("lab/model").private
    for token, status in (("", "401"), (stranger, "404")):
        with pytest.raises(RepositoryNotFoundError, match=status):
            api(hub, token).model_info("lab/model")
        with pytest.raises(RepositoryNotFoundError, match=status):
            hf_hub_download("lab/model", "x.txt", endpoint=hub.url, token=token or False)
        assert list(api(hub, token).list_models()) == []
    hub.repo("lab/model").private = False
    assert not api(hub, stranger).model_info("lab/model").private


def test_gate_hides_files_from_those_not_on_the_list(hub: TestHub) -> None:
    bob = hub.add_user("bob")
    hub.put_raw(REPO, FILES)
    hub.repo(REPO).gated = "manual"
    assert api(hub, bob).model_info(REPO).gated == "manual"
    for token, status in (("", "401"), (bob, "403")):
        with pytest.raises(GatedRepoError, match=status):
            fetch(hub, "config.json", token)
        with pytest.raises(GatedRepoError, match=status):
            api(hub, token).auth_check(REPO)
    hub.repo(REPO).granted.add("bob")
    assert fetch(hub, "config.json", bob) == FILES["config.json"]


def test_write_needs_a_right_and_a_token_that_may(hub: TestHub) -> None:
    reader, bob, mia = hub.add_user("alice", "read"), hub.add_user("bob"), hub.add_user("mia", alice="read")
    hub.put_raw(REPO, FILES)
    api(hub).auth_check(REPO, write=True)
    for token in (reader, bob, mia):
        api(hub, token).auth_check(REPO)
        with pytest.raises(HfHubHTTPError, match="403"):
            api(hub, token).auth_check(REPO, write=True)
        with pytest.raises(HfHubHTTPError, match="403"):
            api(hub, token).upload_file(repo_id=REPO, path_or_fileobj=b"x", path_in_repo="x.txt")
        with pytest.raises(HfHubHTTPError, match="403"):
            api(hub, token).create_repo("alice/new")
    with pytest.raises(HfHubHTTPError, match="401"):
        api(hub, "").create_tag(REPO, tag="v1")
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api(hub, "hf_unknown").whoami()
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as caught:
        api(hub, "hf_unknown").model_info(REPO)
    assert type(caught.value) is HfHubHTTPError
    assert published(hub) == FILES


def test_existing_repository_is_a_conflict_that_may_be_accepted(hub: TestHub) -> None:
    hub.put_raw(REPO, FILES)
    with pytest.raises(HfHubHTTPError, match="409"):
        api(hub).create_repo(REPO)
    assert api(hub).create_repo(REPO, exist_ok=True).repo_id == REPO
    assert published(hub) == FILES


def test_missing_things_have_their_own_errors(hub: TestHub, hf_home: Path) -> None:
    commit = hub.put_raw(REPO, FILES)
    with pytest.raises(RepositoryNotFoundError, match="404"):
        api(hub).model_info("alice/nothing")
    with pytest.raises(RevisionNotFoundError):
        fetch(hub, "config.json", revision="nothing")
    with pytest.raises(RemoteEntryNotFoundError):
        fetch(hub, "nothing.json")
    # The answer names the commit, so that the client may remember what is not there.
    assert [path.parent.name for path in hf_home.rglob("nothing.json")] == [commit]


def test_pull_request_of_a_stranger_is_apart_from_main(hub: TestHub, tmp_path: Path) -> None:
    bob = hub.add_user("bob")
    hub.put_raw(REPO, FILES)
    info = api(hub, bob).upload_folder(
        repo_id=REPO, folder_path=folder_of(tmp_path, {"new.safetensors": WEIGHTS[:99]}), create_pr=True
    )
    assert (info.pr_revision, info.pr_num) == ("refs/pr/1", 1)
    assert published(hub) == FILES
    assert fetch(hub, "new.safetensors", revision="refs/pr/1") == WEIGHTS[:99]
    # Bob may go on with it, and nobody else who may not write.
    api(hub, bob).upload_file(repo_id=REPO, path_or_fileobj=b"b", path_in_repo="b.txt", revision="refs/pr/1")
    with pytest.raises(HfHubHTTPError, match="403"):
        api(hub, hub.add_user("eve")).delete_file("b.txt", REPO, revision="refs/pr/1")
