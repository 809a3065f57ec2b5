import hashlib
import io
import json
import logging
import stat
import threading
import zipfile
from pathlib import Path

import pytest
import torch

from tests.data.conftest import Server
from zoo.data import download as download_module
from zoo.data.download import CHECKSUMS, download, download_and_unpack, unpack
from zoo.data.ogb import load_ogb
from zoo.errors import DataError

MANUAL = "fetch it by hand"


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="zoo")


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def left_over(folder: Path) -> list[str]:
    """What lies there besides locks and the record of checksums."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock" and path.name != CHECKSUMS)


def test_a_download_is_whole_and_recorded(server: Server, tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    (server.folder / "a.bin").write_bytes(content)
    download(server.url("a.bin"), tmp_path / "a.bin", manual=MANUAL)
    assert (tmp_path / "a.bin").read_bytes() == content
    record = json.loads((tmp_path / CHECKSUMS).read_text())
    assert record == {server.url("a.bin"): {"sha256": hashlib.sha256(content).hexdigest()}}
    assert left_over(tmp_path) == ["a.bin", "served"]


def test_https_is_tried_first(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (server.folder / "a").write_bytes(b"x")
    download(server.url("a"), tmp_path / "a", manual=MANUAL)
    assert "cannot be had over https" in caplog.text


def test_plain_http_is_not_used_unasked(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZOO_ALLOW_HTTP")
    (server.folder / "a").write_bytes(b"x")
    with pytest.raises(DataError, match=f"over plain http only with ZOO_ALLOW_HTTP=1.*{MANUAL}"):
        download(server.url("a"), tmp_path / "a", manual=MANUAL)
    assert left_over(tmp_path) == ["served"]


def test_a_folder_of_a_user_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_DATA", "~nobody-of-this-name/data")
    with pytest.raises(DataError, match="there is no such user's folder; change ZOO_DATA"):
        download_module.data_root()


def test_other_bytes_than_the_first_time_are_refused(server: Server, tmp_path: Path) -> None:
    (server.folder / "a").write_bytes(b"one")
    download(server.url("a"), tmp_path / "a", manual=MANUAL)
    download(server.url("a"), tmp_path / "a", manual=MANUAL)
    (server.folder / "a").write_bytes(b"two")
    with pytest.raises(DataError, match=f"differs from the first download .* remove its entry from .*{CHECKSUMS}"):
        download(server.url("a"), tmp_path / "a", manual=MANUAL)
    assert (tmp_path / "a").read_bytes() == b"one"


def test_a_download_cut_short_leaves_nothing(server: Server, tmp_path: Path) -> None:
    (server.folder / "a").write_bytes(b"x" * 1000)
    server.cut.add("a")
    with pytest.raises(DataError, match="500"):
        download(server.url("a"), tmp_path / "a", manual=MANUAL)
    assert left_over(tmp_path) == ["served"]
    assert not (tmp_path / CHECKSUMS).exists()


def test_more_than_expected_is_not_downloaded(server: Server, tmp_path: Path) -> None:
    (server.folder / "a").write_bytes(b"x" * 1000)
    with pytest.raises(DataError, match="offers 1,000 bytes, more than the 999"):
        download(server.url("a"), tmp_path / "a", manual=MANUAL, max_bytes=999)
    assert left_over(tmp_path) == ["served"]


def test_a_missing_file_says_what_to_do(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"cannot be downloaded .*404.*{MANUAL}"):
        download(server.url("nothing"), tmp_path / "a", manual=MANUAL)


def test_no_room_is_found_before_the_download(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (server.folder / "a").write_bytes(b"x" * 1000)
    usage = download_module.shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(download_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match="of disk space is needed"):
        download(server.url("a"), tmp_path / "a", manual=MANUAL)
    assert left_over(tmp_path) == ["served"]


def test_a_damaged_record_of_checksums_is_named(server: Server, tmp_path: Path) -> None:
    (server.folder / "a").write_bytes(b"x")
    (tmp_path / CHECKSUMS).write_text("[")
    with pytest.raises(DataError, match=f"{CHECKSUMS}: not a readable record"):
        download(server.url("a"), tmp_path / "a", manual=MANUAL)


def archived(source: Path, folder: str) -> bytes:
    """A folder as OGB archives it."""
    members = {f"{folder}/{p.relative_to(source)}": p.read_bytes() for p in sorted(source.rglob("*")) if p.is_file()}
    return zipped({name: content for name, content in members.items() if "/zoo/" not in name})


def test_a_data_set_is_downloaded_once(server: Server, written_ogb: Path, tmp_path: Path) -> None:
    (server.folder / "proteins.zip").write_bytes(archived(written_ogb / "ogbn_proteins", "proteins"))
    root = tmp_path / "data"
    url = server.url("proteins.zip")
    first = load_ogb("ogbn-proteins", root=root, url=url)
    again = load_ogb("ogbn-proteins", root=root, url=url)
    assert torch.equal(first.edge_index, again.edge_index)
    assert server.requests == ["/proteins.zip"]
    assert left_over(root) == ["ogbn_proteins"]


@pytest.mark.filterwarnings("ignore:.*waiting for process:zoo.errors.ZooWarning")
def test_two_at_once_download_once(server: Server, tmp_path: Path) -> None:
    (server.folder / "a.zip").write_bytes(zipped({"a/raw": b"1"}))

    def get() -> None:
        download_and_unpack(
            server.url("a.zip"), tmp_path / "root" / "a_data", archive_folder="a", manual=MANUAL, needed=lambda _: []
        )

    threads = [threading.Thread(target=get) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.requests == ["/a.zip"]
    assert (tmp_path / "root" / "a_data" / "raw").read_bytes() == b"1"


@pytest.mark.parametrize(
    "content",
    [
        b"<html>sign in</html>",
        zipped({"other/raw": b"1"}),
        zipped({"a/x": b"1" * 99})[:-30],
        zipped({"a/readme": b"1", "a/raw.txt": b"1"}),
    ],
)
def test_an_archive_that_is_none_leaves_nothing(content: bytes, server: Server, tmp_path: Path) -> None:
    (server.folder / "a.zip").write_bytes(content)

    def get() -> None:
        folder = tmp_path / "root" / "a_data"
        needed = {"needed": lambda unpacked: [unpacked / "raw"]}
        download_and_unpack(server.url("a.zip"), folder, archive_folder="a", manual=MANUAL, **needed)

    with pytest.raises(
        DataError, match=r"not a whole zip archive|the archive has no a(/raw)?; fetch it|a web page came"
    ):
        get()
    assert left_over(tmp_path / "root") == []
    # The right archive is not compared with what came first.
    (server.folder / "a.zip").write_bytes(zipped({"a/raw": b"1"}))
    get()
    assert (tmp_path / "root" / "a_data" / "raw").read_bytes() == b"1"
    assert json.loads((tmp_path / "root" / CHECKSUMS).read_text()).keys() == {server.url("a.zip")}


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/evil", "a\\..\\evil", "C:evil", "a/./../../evil"])
def test_members_that_leave_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    archive, target = tmp_path / "a.zip", tmp_path / "deep" / "target"
    target.mkdir(parents=True)
    archive.write_bytes(zipped({"a/fine": b"1", name: b"evil"}))
    with pytest.raises(DataError, match="unsafe member"):
        unpack(archive, target, max_bytes=1000)
    assert not list(target.iterdir())
    assert not list(tmp_path.rglob("evil"))


def test_links_in_an_archive_are_refused(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        link = zipfile.ZipInfo("a/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        opened.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="unsafe member 'a/link'"):
        unpack(archive, tmp_path, max_bytes=1000)


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(zipped({"a": b"0" * 10_000_000}))
    with pytest.raises(DataError, match="10,000,000 bytes together"):
        unpack(archive, tmp_path, max_bytes=1_000_000)


def test_a_member_larger_than_it_says_is_refused(tmp_path: Path) -> None:
    # The directory declares ten bytes for a member of ten million.
    content = zipped({"a": b"0" * 10_000_000})
    size, lie = (10_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little")
    archive = tmp_path / "a.zip"
    archive.write_bytes(content.replace(size, lie))
    with pytest.raises(DataError):
        unpack(archive, tmp_path, max_bytes=1_000_000)
    assert not (tmp_path / "a").exists() or (tmp_path / "a").stat().st_size <= 1_000_000
