"""The test hub when things go wrong: ranges, faults, and hubs that stop."""

from __future__ import annotations

import http.client
import threading
import time
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, constants
from huggingface_hub.errors import BadRequestError, LocalEntryNotFoundError

from tests.hub.client import ALICE, FILES, REPO, WEIGHTS, api, fetch, folder_of, published, raw
from tests.hub.server import TestHub
from tests.hub.wire import Fault


@pytest.mark.parametrize(
    ("asked", "status", "expected", "content_range"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=7-99", 206, b"789", "bytes 7-9/10"),
        ("bytes=-2", 206, b"89", "bytes 8-9/10"),
        ("bytes=10-", 416, b"", "bytes */10"),
        ("bytes=-", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
    ],
)
def test_ranges(hub: TestHub, asked: str, status: int, expected: bytes, content_range: str | None) -> None:
    hub.put_raw(REPO, {"digits.txt": b"0123456789"})
    response, body = raw(hub, f"/{REPO}/resolve/main/digits.txt", headers={"Range": asked})
    assert (response.status, body, response.headers["Content-Range"]) == (status, expected, content_range)


def test_bodies_may_come_in_chunks(hub: TestHub) -> None:
    headers = {"Authorization": f"Bearer {ALICE}", "Transfer-Encoding": "chunked"}
    body = (
        f"{len(chunk):x}\r\n{chunk}\r\n".encode() for chunk in ('{"name": "mo', 'del", "organization": "alice"}', "")
    )
    assert raw(hub, "/api/repos/create", "POST", headers, body)[0].status == 200
    assert REPO in hub.repos


def test_faults_strike_in_turn_and_count(hub: TestHub) -> None:
    hub.put_raw(REPO, FILES)
    path = f"/api/models/{REPO}"
    skipping, always = Fault("GET", "/models/", skip=1, status=500), Fault("GET", "/refs$", times=None, status=418)
    hub.faults += [skipping, always]
    assert [raw(hub, path)[0].status for _ in range(3)] == [200, 500, 200]
    assert [raw(hub, f"{path}/refs")[0].status for _ in range(2)] == [418, 418]
    assert (skipping.hits, always.hits) == (1, 2)
    assert [r.status for r in hub.requests] == [200, 500, 200, 418, 418]


def test_cut_connection_is_resumed_with_a_range(
    hub: TestHub, monkeypatch: pytest.MonkeyPatch, quick_retries: None
) -> None:
    hub.put_raw(REPO, FILES)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.faults.append(Fault("GET", "safetensors", drop_after=5000))
    assert fetch(hub, "model.safetensors") == WEIGHTS
    gets = hub.requests.select("GET", "safetensors")
    assert [(r.headers.get("range"), r.status, r.bytes_out) for r in gets] == [
        (None, 200, 5000),
        ("bytes=5000-", 206, len(WEIGHTS) - 5000),
    ]


def test_flipped_bit_is_seen_by_a_checksum_alone(hub: TestHub) -> None:
    hub.put_raw(REPO, FILES)
    hub.faults.append(Fault("GET", "safetensors", flip_bit_at=7))
    assert fetch(hub, "model.safetensors") == WEIGHTS[:7] + b"\x06" + WEIGHTS[8:]
    assert [m["path"] for m in api(hub).verify_repo_checksums(REPO).mismatches] == ["model.safetensors"]


def test_short_body_is_noticed(hub: TestHub) -> None:
    hub.put_raw(REPO, FILES)
    hub.faults.append(Fault("GET", "safetensors", cut_to=10))
    with pytest.raises(OSError, match="Consistency check failed"):
        fetch(hub, "model.safetensors")


def test_missing_headers_make_it_no_hub(hub: TestHub) -> None:
    hub.put_raw(REPO, FILES)
    hub.faults.append(Fault("HEAD", "config", headers={"x-repo-commit": None}))
    with pytest.raises(LocalEntryNotFoundError, match="X-Repo-Commit"):
        fetch(hub, "config.json")
    hub.faults.append(Fault("HEAD", "config", headers={"ETag": '"other"'}))
    fetch(hub, "config.json")
    assert hub.requests[-1].status == 200


def test_connection_lost_before_the_answer(hub: TestHub) -> None:
    hub.put_raw(REPO, FILES)
    assert fetch(hub, "config.json") == FILES["config.json"]
    hub.faults.append(Fault("HEAD", lose="request"))
    with pytest.raises(httpx2.RemoteProtocolError):
        fetch(hub, "config.json")
    assert hub.requests[-1].status == 0


def test_lost_answer_of_a_commit_leaves_nothing_to_send(hub: TestHub, tmp_path: Path) -> None:
    hub.put_raw(REPO, {})
    folder = folder_of(tmp_path, FILES)
    hub.faults.append(Fault("POST", "/commit/", lose="answer"))
    with pytest.raises(httpx2.RemoteProtocolError):
        api(hub).upload_folder(repo_id=REPO, folder_path=folder)
    head = hub.repo(REPO).head.id
    assert published(hub) == FILES
    hub.requests.clear()
    assert api(hub).upload_folder(repo_id=REPO, folder_path=folder).oid == head
    assert not hub.requests.select("PUT") + hub.requests.select("POST", "/commit/")


def test_failed_uploads_are_tried_again(hub: TestHub, tmp_path: Path, quick_retries: None) -> None:
    hub.put_raw(REPO, {})
    hub.faults += [Fault("PUT", status=503), Fault("PUT", lose="request")]
    api(hub).upload_folder(repo_id=REPO, folder_path=folder_of(tmp_path, FILES))
    assert [r.status for r in hub.requests.select("PUT")] == [503, 0, 200]
    assert published(hub) == FILES


def test_slow_or_failing_hub_leaves_the_cache(hub: TestHub) -> None:
    hub.put_raw(REPO, FILES)
    assert fetch(hub, "config.json") == FILES["config.json"]
    for fault in (Fault("HEAD", delay_s=30), Fault("HEAD", status=503)):
        hub.faults.append(fault)
        assert fetch(hub, "config.json", etag_timeout=0.2) == FILES["config.json"]
        assert fault.hits == 1


def test_stopped_hub_hangs_up_on_kept_connections_and_comes_back(hub: TestHub) -> None:
    hub.put_raw(REPO, FILES)
    kept = http.client.HTTPConnection(hub.url.removeprefix("http://"), timeout=10)
    kept.request("GET", f"/api/models/{REPO}")
    assert kept.getresponse().read()
    assert fetch(hub, "config.json") == FILES["config.json"]
    hub.stop()
    assert kept.sock.recv(1) == b""
    kept.close()
    with pytest.raises(ConnectionRefusedError):
        raw(hub, f"/api/models/{REPO}")
    assert fetch(hub, "config.json") == FILES["config.json"]
    hub.start()
    assert raw(hub, f"/api/models/{REPO}")[0].status == 200


def test_closed_hub_leaves_no_thread_and_no_folder() -> None:
    before = threading.active_count()
    with TestHub(cdn=True) as hub:
        kept = http.client.HTTPConnection(hub.url.removeprefix("http://"), timeout=10)
        kept.request("GET", "/api/models")
        assert kept.getresponse().read() == b"[]"
        hub.faults.append(Fault(delay_s=60))
        waiting = http.client.HTTPConnection(hub.url.removeprefix("http://"), timeout=10)
        waiting.request("GET", "/api/models")
        while hub.faults[0].hits == 0:
            time.sleep(0.01)
        # Both servers, and both connections.
        assert threading.active_count() == before + 4
    with pytest.raises(http.client.RemoteDisconnected):
        waiting.getresponse()
    waiting.close()
    kept.close()
    assert threading.active_count() == before
    assert not hub.root.exists()


def test_bad_request_names_what_is_wrong(hub: TestHub) -> None:
    hub.put_raw(REPO, FILES)
    operation = CommitOperationAdd("a.txt", b"a")
    hub.faults.append(Fault("POST", "/commit/", status=400, body=b'{"error": "no"}'))
    with pytest.raises(BadRequestError):
        api(hub).create_commit(REPO, [operation], commit_message="bad")
