"""Fetching: once, whole, from one commit, and from the cache when the Hub is away."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import zoo
from tests.hub.bundles import REPO, command, content, downloads
from tests.hub.client import ALICE
from tests.hub.conftest import HubMaker
from tests.hub.server import TestHub
from tests.hub.wire import Fault, Request
from zoo.cli import main
from zoo.errors import AccessError, BundleError, NetworkError, NotFoundError, ZooError, ZooWarning
from zoo.hub.client import connect
from zoo.hub.pull import Pulled
from zoo.workflows.pull import copy_bundle, fetch

UseHub = Callable[..., None]
Env = Callable[..., dict[str, str]]
WEIGHTS = "/model.safetensors"


@pytest.fixture
def full_hub(hub: TestHub, use_hub: UseHub, bundle: Path) -> TestHub:
    """A hub that holds the small model, and this process as nobody in front of it."""
    hub.put_raw(REPO, content(bundle))
    use_hub(hub)
    return hub


def pull(reference: str = REPO, **options: Any) -> Pulled:
    return fetch(reference, quiet=True, **options)


def next_commit(hub: TestHub, bundle: Path) -> str:
    """The same model with other weights of the same shapes, as a new head."""
    from tests.hub.bundles import with_weights

    weights = bytearray((bundle / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    return hub.put_raw(REPO, with_weights(content(bundle), bytes(weights)))


def test_folder_holds_the_published_files(full_hub: TestHub, bundle: Path) -> None:
    pulled = pull()
    assert (pulled.commit, pulled.is_stale) == (full_hub.repo(REPO).head.id, False)
    assert content(pulled.folder) == content(bundle)


def test_second_pull_asks_once_and_downloads_nothing(full_hub: TestHub) -> None:
    folder = pull().folder
    full_hub.requests.clear()
    assert pull().folder == folder
    assert [str(r) for r in full_hub.requests] == [f"HEAD /{REPO}/resolve/main/config.json 200"]


def test_missing_card_is_asked_for_once(full_hub: TestHub) -> None:
    commit = full_hub.put_raw(REPO, {"README.md": None, "curves.png": None})
    assert set(content(pull().folder)) == {"config.json", "model.safetensors", "probe.safetensors"}
    full_hub.requests.clear()
    pull(f"{REPO}@{commit}")
    assert len(full_hub.requests) == 0


def test_commit_in_the_cache_needs_no_hub(full_hub: TestHub) -> None:
    commit = pull().commit
    full_hub.stop()
    assert pull(f"{REPO}@{commit}").commit == commit
    full_hub.start()
    full_hub.requests.clear()
    pull(f"{REPO}@{commit}")
    assert len(full_hub.requests) == 0


def test_offline_sends_nothing(full_hub: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NetworkError, match="not in the cache"):
        pull(offline=True)
    commit = pull().commit
    full_hub.requests.clear()
    assert pull(offline=True).commit == commit
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pull().commit == commit
    with pytest.raises(NetworkError, match=r"v9: not in the cache"):
        pull(f"{REPO}@v9")
    assert len(full_hub.requests) == 0


def test_all_files_are_of_one_commit_though_the_tag_moves(full_hub: TestHub, bundle: Path) -> None:
    repo = full_hub.repo(REPO)
    first = repo.refs["refs/tags/v1"] = repo.head

    class Move(Fault):
        """The tag moves between the configuration and the weights."""

        def strikes(self, request: Request) -> bool:
            if request.method == "GET" and request.path.endswith("/config.json"):
                next_commit(full_hub, bundle)
                repo.refs["refs/tags/v1"] = repo.head
            return False

    full_hub.faults.append(Move())
    pulled = pull(f"{REPO}@v1")
    assert pulled.commit == first.id
    assert content(pulled.folder) == content(bundle)
    full_hub.faults.clear()
    assert pull(f"{REPO}@v1").commit == repo.head.id != first.id


def test_new_commit_with_the_same_weights_downloads_them_no_more(full_hub: TestHub) -> None:
    pull()
    full_hub.put_raw(REPO, {"README.md": b"# Other words\n"})
    full_hub.requests.clear()
    assert (pull().folder / "README.md").read_bytes() == b"# Other words\n"
    assert downloads(full_hub) == 0


# Damage.


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "probe.safetensors", "README.md"])
def test_flipped_bit_is_an_error_and_the_next_pull_is_whole(full_hub: TestHub, bundle: Path, name: str) -> None:
    full_hub.faults.append(Fault("GET", f"/{name}$", flip_bit_at=300))
    with pytest.raises(BundleError, match=f"alice/small@[0-9a-f]{{12}}: {name}: damaged: .*; try again"):
        pull()
    assert content(pull().folder) == content(bundle)
    assert len(full_hub.requests.select("GET", f"/{name}$")) == 2


def test_damage_that_stays_is_an_error_with_the_name_of_the_file(full_hub: TestHub, hf_home: Path) -> None:
    full_hub.faults.append(Fault("GET", WEIGHTS, flip_bit_at=8000, times=None))
    with pytest.raises(BundleError, match=r"alice/small@[0-9a-f]{12}: model\.safetensors: damaged") as caught:
        pull()
    assert caught.value.exit_code == 5
    # Nothing damaged is left to be used later, with or without the Hub.
    with pytest.raises(NetworkError):
        pull(offline=True)
    full_hub.faults.clear()
    pull()


@pytest.mark.parametrize("change", ["flip", "shorter"])
def test_damage_in_the_cache_is_noticed(full_hub: TestHub, bundle: Path, change: str) -> None:
    pulled = pull()
    blob = (pulled.folder / "model.safetensors").resolve()
    data = bytearray(blob.read_bytes())
    data[-5] ^= 1
    blob.write_bytes(bytes(data if change == "flip" else data[:-1]))
    with pytest.raises(BundleError, match="damaged in the cache"):
        pull(offline=True)
    assert content(pull(f"{REPO}@{pulled.commit}").folder) == content(bundle)


def test_truncated_body_is_an_error_and_the_next_pull_is_whole(full_hub: TestHub, bundle: Path) -> None:
    full_hub.faults.append(Fault("GET", WEIGHTS, cut_to=5000))
    with pytest.raises(BundleError, match=r"model\.safetensors: damaged: .*; try again"):
        pull()
    with pytest.raises(NetworkError):
        pull(offline=True)
    assert content(pull().folder) == content(bundle)


def test_connection_that_drops_within_a_file_is_taken_up_again(
    full_hub: TestHub, bundle: Path, quick_retries: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_hub.faults.append(Fault("GET", WEIGHTS, drop_after=5000))
    assert content(pull().folder) == content(bundle)


# A hub that is away.


@pytest.mark.parametrize(
    ("method", "fault"),
    [
        ("HEAD", {"lose": "request"}),
        ("HEAD", {"lose": "answer"}),
        ("HEAD", {"status": 503}),
        ("HEAD", {"status": 500}),
        ("HEAD", {"status": 429}),
        ("GET", {"lose": "request"}),
        ("GET", {"status": 503}),
        ("GET", {"status": 416}),
        ("GET", {"drop_after": 100}),
    ],
)
def test_transport_failure_falls_back_to_the_cached_commit_and_says_so(
    full_hub: TestHub,
    bundle: Path,
    method: str,
    fault: dict[str, Any],
    quick_retries: None,
) -> None:
    full_hub.faults.append(Fault(method, "/resolve/", times=None, **fault))
    with pytest.raises(NetworkError) as caught:
        pull()
    assert caught.value.exit_code == 6
    full_hub.faults.clear()
    first = pull()
    next_commit(full_hub, bundle)
    full_hub.faults.append(Fault(method, "/resolve/", times=None, **fault))
    with pytest.warns(ZooWarning, match=f"; using the cached commit {first.commit}$") as told:
        again = pull()
    assert (again.commit, again.is_stale, again.folder) == (first.commit, True, first.folder)
    assert len(told) == 1
    full_hub.faults.clear()
    assert pull().commit == full_hub.repo(REPO).head.id


def test_stopped_hub_falls_back_to_the_cached_commit(full_hub: TestHub) -> None:
    commit = pull().commit
    full_hub.stop()
    with pytest.warns(ZooWarning, match="using the cached commit"):
        pulled = pull()
    assert (pulled.commit, pulled.is_stale) == (commit, True)
    with pytest.raises(NetworkError, match="cannot be reached"):
        pull("alice/other")


def test_half_fetched_commit_is_never_what_a_name_means_offline(
    full_hub: TestHub, bundle: Path, quick_retries: None
) -> None:
    first = pull().commit
    second = next_commit(full_hub, bundle)
    full_hub.faults.append(Fault("GET", f"{second}{WEIGHTS}", status=503, times=None))
    with pytest.warns(ZooWarning, match="using the cached commit"):
        assert pull().commit == first
    assert pull(offline=True).commit == first
    with pytest.raises(NetworkError):
        pull(f"{REPO}@{second}", offline=True)


def test_info_of_a_newer_commit_leaves_the_whole_one_to_offline_users(
    full_hub: TestHub, bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = pull().commit
    second = next_commit(full_hub, bundle)
    assert main(["info", REPO]) == 0
    assert second in capfd.readouterr().out
    assert pull(offline=True).commit == first
    full_hub.stop()
    with pytest.warns(ZooWarning, match=f"using the cached commit {first}"):
        pull()


@pytest.mark.parametrize("fault", [{"status": 429}, {"status": 500}, {"status": 503}, {"lose": "request"}])
def test_one_bad_answer_does_not_end_a_pull(
    full_hub: TestHub, bundle: Path, fault: dict[str, Any], quick_retries: None
) -> None:
    full_hub.faults += [Fault("HEAD", "/main/config.json", **fault), Fault("HEAD", WEIGHTS, **fault)]
    assert content(pull().folder) == content(bundle)
    assert [rule.hits for rule in full_hub.faults] == [1, 1]


@pytest.mark.parametrize("name", ["config.json", "README.md"])
def test_small_files_are_verified_where_the_cache_has_no_links(
    full_hub: TestHub, bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda *folder: False)
    offset = content(bundle)[name].index(b"0.") + 3
    full_hub.faults.append(Fault("GET", f"/{name}$", flip_bit_at=offset))
    with pytest.raises(BundleError, match=f"{name}: damaged: its content does not match its id; try again"):
        pull()
    pulled = pull()
    assert not (pulled.folder / name).is_symlink()
    assert content(pulled.folder) == content(bundle)


# Who may read.


def test_what_does_not_exist_is_not_found(full_hub: TestHub) -> None:
    for reference, words in (
        ("alice/nothing", "no such repository"),
        (f"{REPO}@v9", "no such branch, tag or commit"),
        (f"{REPO}@{'0' * 40}", "no such branch, tag or commit"),
    ):
        with pytest.raises(NotFoundError, match=words) as caught:
            pull(reference)
        assert caught.value.exit_code == 3


def test_private_and_gated_repositories_open_to_their_readers(full_hub: TestHub, use_hub: UseHub) -> None:
    bob, reader = full_hub.add_user("bob"), full_hub.add_user("alice", "read")
    full_hub.repo(REPO).private = True
    for token in ("", bob):
        use_hub(full_hub, token)
        with pytest.raises(NotFoundError, match="or it is private"):
            pull()
    use_hub(full_hub, reader)
    pull()
    shutil.rmtree(constants.HF_HUB_CACHE)
    full_hub.repo(REPO).private = False
    full_hub.repo(REPO).gated = "manual"
    for token in ("", bob):
        use_hub(full_hub, token)
        with pytest.raises(AccessError, match=f"gated; ask for access at {full_hub.url}/{REPO}") as caught:
            pull()
        assert caught.value.exit_code == 4
    full_hub.repo(REPO).granted.add("bob")
    pull()
    use_hub(full_hub, "hf_unknown")
    with pytest.raises(AccessError, match="does not accept the token"):
        pull()


@pytest.mark.parametrize(("status", "error"), [(401, AccessError), (403, AccessError), (409, ZooError)])
def test_refusals_are_not_papered_over_by_the_cache(full_hub: TestHub, status: int, error: type[ZooError]) -> None:
    pull()
    full_hub.faults.append(Fault("HEAD", "/config.json", status=status))
    with pytest.raises(error) as caught:
        pull()
    assert type(caught.value) is error


# Ways of transport.


def test_token_stays_with_the_hub(make_hub: HubMaker, lfs_client: None, use_hub: UseHub, bundle: Path) -> None:
    hub = make_hub(cdn=True)
    hub.put_raw(REPO, content(bundle))
    hub.repo(REPO).private = True
    use_hub(hub, ALICE)
    pull()
    assert {(r.server, r.token) for r in hub.requests} == {("hub", ALICE), ("cdn", "")}


def test_plain_http_is_refused_off_this_machine(monkeypatch: pytest.MonkeyPatch, hf_home: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", ALICE)
    for endpoint in ("http://hub.example", "http://127.0.0.1.example", "ftp://127.0.0.1", "http://localhost@example"):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        with pytest.raises(AccessError, match="only https"):
            pull()
    monkeypatch.setenv("ZOO_ALLOW_HTTP", "1")
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.example")
    assert connect().api.token is False


# Files elsewhere.


def test_copy_is_whole_or_absent(full_hub: TestHub, bundle: Path, tmp_path: Path) -> None:
    pulled, out = pull(), tmp_path / "new" / "copy"
    copy_bundle(pulled, out)
    assert content(out) == content(bundle)
    assert not any(path.is_symlink() for path in out.iterdir())
    copy_bundle(pulled, out)
    (out / "config.json").write_bytes(b"{}")
    with pytest.raises(BundleError, match="already there and not this bundle"):
        copy_bundle(pulled, out)
    assert [path.name for path in out.parent.iterdir()] == ["copy"]


def test_empty_folders_are_filled_whatever_they_are_called(
    full_hub: TestHub, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, link = tmp_path / "here", tmp_path / "link"
    here.mkdir()
    (tmp_path / "there").mkdir()
    link.symlink_to(tmp_path / "there")
    monkeypatch.chdir(here)
    for out in (Path(), link):
        copy_bundle(pull(), out)
        assert content(out) == content(bundle)
        assert len(list(out.iterdir())) == len(content(bundle))
    assert link.is_symlink()


def test_copy_of_another_commit_is_replaced_if_asked(full_hub: TestHub, bundle: Path, tmp_path: Path) -> None:
    out, notes = tmp_path / "out", tmp_path / "notes"
    full_hub.put_raw(REPO, {"curves.png": b"picture"})
    assert zoo.pull(REPO, out) == out
    (out / "mine.txt").write_text("mine")
    next_commit(full_hub, bundle)
    full_hub.put_raw(REPO, {"curves.png": None})
    with pytest.raises(BundleError, match="to replace the bundle there: --update"):
        zoo.pull(REPO, out)
    zoo.pull(REPO, out, update=True)
    assert content(out) == {**content(pull().folder), "mine.txt": b"mine"}
    zoo.load(out)
    notes.mkdir()
    (notes / "mine.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"not this bundle; choose another --to$"):
        zoo.pull(REPO, notes, update=True)


def test_update_that_is_cut_short_gives_no_wrong_weights(
    full_hub: TestHub, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    zoo.pull(REPO, out)
    next_commit(full_hub, bundle)
    pulled, moved = pull(), []
    replace = Path.replace

    def once(path: Path, target: Path) -> Path:
        if moved:
            raise OSError(28, "No space left on device")
        moved.append(target)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", once)
    with pytest.raises(ZooError, match="cannot be written: No space left on device"):
        copy_bundle(pulled, out, update=True)
    monkeypatch.undo()
    with pytest.raises(BundleError, match="its SHA-256 is"):
        zoo.load(out)
    copy_bundle(pulled, out, update=True)
    assert content(out) == content(pulled.folder)


# The command.


def test_dry_run_says_the_sizes_and_downloads_nothing(
    full_hub: TestHub, bundle: Path, capfd: pytest.CaptureFixture[str], hf_home: Path
) -> None:
    commit = full_hub.put_raw(REPO, {"notes.txt": b"no part of the bundle"})
    assert main(["pull", REPO, "--dry-run", "--json"]) == 0
    sizes = {name: len(data) for name, data in content(bundle).items()}
    assert json.loads(capfd.readouterr().out) == {"commit": commit, "num_bytes": sizes}
    assert main(["pull", REPO, "--dry-run"]) == 0
    told = capfd.readouterr().out.splitlines()
    assert told[-1].split(maxsplit=1) == [f"{sum(sizes.values()):,}", f"bytes to download of {REPO} at {commit}"]
    assert not (hf_home / "hub").exists()
    pull()
    assert main(["pull", f"{REPO}@{commit}", "--dry-run"]) == 0
    assert capfd.readouterr().out.split()[0] == "0"
    full_hub.put_raw("alice/other", {"notes.txt": b"x"})
    for arguments, code in (
        (["alice/other"], 5),
        (["alice/nothing"], 3),
        ([REPO, "--offline"], 6),
        ([REPO, "--update"], 2),
    ):
        assert main(["pull", *arguments, *(["--dry-run"] if code != 2 else [])]) == code


def test_command_prints_the_folder_alone(
    full_hub: TestHub, tmp_path: Path, capfd: pytest.CaptureFixture[str], bundle: Path
) -> None:
    out = tmp_path / "out"
    for arguments, folder in ((["pull", REPO], None), (["pull", REPO, "-q", "--to", str(out)], out)):
        assert main(arguments) == 0
        told = capfd.readouterr()
        assert told.err == ""
        (line,) = told.out.splitlines()
        assert folder in (None, Path(line))
        assert content(Path(line)) == content(bundle)
    assert main(["pull", REPO, "--json"]) == 0
    told = capfd.readouterr()
    assert told.err == ""
    said = json.loads(told.out)
    assert said["commit"] == full_hub.repo(REPO).head.id
    assert set(said) == {"folder", "repository", "revision", "commit", "sha256", "is_stale"}


def test_exit_codes_tell_the_cause(full_hub: TestHub, capfd: pytest.CaptureFixture[str]) -> None:
    full_hub.put_raw("alice/other", {"notes.txt": b"x"})
    full_hub.put_raw("alice/gated", {"config.json": b"{}"})
    full_hub.repo("alice/gated").gated = "manual"
    codes = {
        "justaname": 2,
        "a/b/c": 2,
        "../x": 2,
        f"{REPO}@../../x": 2,
        f"{REPO}@": 2,
        "alice/nothing": 3,
        "alice/gated": 4,
        "alice/other": 5,
    }
    for reference, code in codes.items():
        assert main(["pull", reference]) == code
        told = capfd.readouterr()
        assert told.out == ""
        assert len(told.err.splitlines()) == 1
    full_hub.stop()
    assert main(["pull", REPO]) == 6


def test_three_parallel_pulls_download_once(full_hub: TestHub, hub_env: Env) -> None:
    full_hub.faults.append(Fault("GET", WEIGHTS, delay_s=0.5))
    line = [sys.executable, "-W", "error", "-m", "zoo", "pull", REPO]
    env = hub_env(full_hub)
    processes = [subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)]
    told = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len({out for out, _ in told}) == 1
    assert downloads(full_hub) == 1


def test_full_disk_is_said_in_one_line_and_leaves_nothing_behind(
    full_hub: TestHub, hub_env: Env, hf_home: Path, bundle: Path
) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

    # No file may grow beyond 5,000 bytes: the weights do not fit.
    env = hub_env(full_hub)
    full = command(env, "pull", REPO, preexec_fn=limit)
    assert (full.returncode, full.stdout) == (1, "")
    (line,) = full.stderr.splitlines()
    assert "model.safetensors: cannot be kept in" in line
    assert "File too large" in line
    assert not [path for path in hf_home.rglob("*") if path.is_file() and path.stat().st_size >= 5000]
    assert not list(hf_home.rglob("*.incomplete"))
    assert command(env, "pull", REPO).returncode == 0


def test_pull_does_without_torch(full_hub: TestHub, hub_env: Env) -> None:
    script = (
        "import sys; from zoo.cli import main; code = main(sys.argv[1:]); "
        "print([m for m in ('torch', 'numpy', 'matplotlib') if m in sys.modules]); sys.exit(code)"
    )
    line = [sys.executable, "-c", script, "pull", REPO, "-q"]
    done = subprocess.run(line, env=hub_env(full_hub), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.splitlines()[1]) == (0, "[]")


def test_tokens_are_never_told_or_kept(full_hub: TestHub, hub_env: Env, hf_home: Path) -> None:
    canary = "hf_" + "Canary" * 6
    full_hub.tokens[canary] = ("alice", "write")
    env = hub_env(full_hub, canary)
    said = ""
    for arguments in (["pull", REPO], ["pull", "alice/nothing"], ["pull", REPO, "--json"]):
        done = command(env, *arguments)
        said += done.stdout + done.stderr
    full_hub.faults.append(Fault("HEAD", status=400, headers={"X-Error-Message": f"bad token {canary}"}, times=None))
    refused = command(env, "pull", REPO)
    assert refused.returncode == 1
    assert "hf_***" in refused.stderr
    said += refused.stdout + refused.stderr
    assert {r.token for r in full_hub.requests} == {canary}
    assert canary not in said
    kept = [path for path in hf_home.rglob("*") if path.is_file()]
    assert kept
    assert not [path for path in kept if canary.encode() in path.read_bytes()]
    assert os.path.exists(constants.HF_HUB_CACHE)
