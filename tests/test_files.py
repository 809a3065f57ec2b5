import errno
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from zoo.errors import DataError, RunError, ZooWarning
from zoo.files import atomic_write, locked, make_folder, read_errors, read_regular, sha256_of, write_json


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    atomic_write(path, [b"old"], RunError)
    atomic_write(path, [b"new", memoryview(b" text")], RunError)
    assert path.read_bytes() == b"new text"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_whatever_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def chunks() -> Iterator[bytes]:
        yield b"half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, chunks(), RunError)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("error", [RunError, DataError])
def test_what_cannot_be_written_is_an_error_of_the_caller_in_one_line(
    error: type[RunError] | type[DataError], tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    inside = tmp_path / "file" / "inside"
    expected = f"^{inside}: cannot be written: Not a directory$"
    with pytest.raises(error, match=expected):
        atomic_write(inside, [b""], error)
    with pytest.raises(error, match=expected):
        make_folder(inside, error)
    with pytest.raises(error, match=f"^{inside}: cannot be written: "), locked(inside, error):
        pass
    with pytest.raises(error, match=f"^{inside}: cannot be read: Not a directory$"), read_errors(inside, error):
        read_regular(inside, max_bytes=10)


def test_a_number_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", {"loss": float("nan")}, RunError)
    assert not list(tmp_path.iterdir())


def test_a_digest_is_of_a_regular_file_alone(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        sha256_of(tmp_path / "pipe")


def test_one_waits_for_the_lock_of_another(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with locked(tmp_path / ".lock", RunError):
            order.append("second")

    def both() -> None:
        with locked(tmp_path / ".lock", RunError):
            thread = threading.Thread(target=second)
            thread.start()
            time.sleep(0.2)
            order.append("first")
        thread.join(timeout=30)

    with pytest.warns(ZooWarning, match=f"waiting for process {os.getpid()}"):
        both()
    assert order == ["first", "second"]


def test_a_lock_that_is_held_names_its_owner_however_often_it_is_tried(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from zoo.errors import RunError; from zoo.files import locked\n"
        "with locked(Path(sys.argv[1]), RunError): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"held\n"
        for _ in range(2):
            expected = f"^{tmp_path}: in use by process {owner.pid} on {platform.node()}; choose another$"
            with pytest.raises(RunError, match=expected), locked(tmp_path / ".lock", RunError, advice="choose another"):
                pass
        owner.kill()
    # The end of a process, however it comes, gives its locks back.
    with locked(tmp_path / ".lock", RunError, advice="choose another"):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()} on {platform.node()}"


@pytest.mark.parametrize(
    "fault", [OSError(errno.ENOLCK, "No locks available"), OSError(errno.ENOTSUP, "Unsupported"), NotImplementedError()]
)
def test_a_file_system_without_locks_is_named(fault: Exception, tmp_path: Path, monkeypatch: Any) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise fault

    monkeypatch.setattr(FileLock, "acquire", refuse)
    expected = f"^{tmp_path}: the file system has no locks; choose a folder on another disk$"
    with pytest.raises(RunError, match=expected), locked(tmp_path / ".lock", RunError, advice="choose another"):
        pass


def test_an_error_under_a_lock_is_passed_on_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), locked(tmp_path / ".lock", RunError):
        (tmp_path / "nothing").read_bytes()
    with locked(tmp_path / ".lock", RunError, advice="wait"):
        pass
