"""Publishing: one commit, nothing twice, and nothing that was not meant to be published."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants, parse_eval_result_entries, snapshot_download
from safetensors.torch import load_file, save_file

import zoo
from tests.hub.bundles import REPO, changed_config, command, content, outputs, with_weights
from tests.hub.client import ALICE, api, content_of, hf
from tests.hub.conftest import HubMaker
from tests.hub.server import TestHub
from tests.hub.wire import Fault, Request
from zoo.cli import main
from zoo.errors import AccessError, BundleError, NetworkError, NotFoundError, ZooError, ZooWarning
from zoo.hub.card import is_generated
from zoo.hub.push import Published
from zoo.hub.reference import ReferenceFormatError
from zoo.workflows.publish import write_card

UseHub = Callable[..., None]
Env = Callable[..., dict[str, str]]
FILES = {"README.md", "config.json", "model.safetensors", "probe.safetensors", "curves.png"}


def push(source: Path, repo_id: str = REPO, *, replace_card: bool = False, **options: Any) -> Published:
    return zoo.push(source, repo_id, replace_card=replace_card, **options)


@pytest.fixture(autouse=True, scope="module")
def licensed(bundle: Path) -> None:
    """Without a license each push would warn."""
    write_card(bundle, license="mit")


def published(hub: TestHub, revision: str = "main") -> dict[str, bytes]:
    return {name: data for name, data in hub.files(REPO, revision).items() if name != ".gitattributes"}


def commits(hub: TestHub) -> int:
    return len(hub.repo(REPO).head.history())


def sent(hub: TestHub) -> list[str]:
    """What was asked of the hub that changes something."""
    harmless = ("/preupload/", "/objects/batch", "/validate-yaml", "/paths-info/")
    changing = [r for r in hub.requests if r.method in ("POST", "PUT", "DELETE")]
    return [str(r) for r in changing if not any(part in r.path for part in harmless)]


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A bundle that the test may change."""
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


@pytest.mark.parametrize("kind", ["lfs", "multipart", "xet"])
def test_round_trip_gives_equal_bytes_and_outputs(
    make_hub: HubMaker, use_hub: UseHub, run: Path, bundle: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"lfs": {}, "multipart": {"cdn": True, "multipart_chunk": 4096}, "xet": {"xet": True}}[
        kind
    ]
    hub = make_hub(**options)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", kind != "xet")
    use_hub(hub, ALICE)
    done = push(run)
    assert (done.is_new, done.commit, set(done.changed)) == (True, hub.repo(REPO).head.id, FILES)
    assert commits(hub) == 2
    files = published(hub)
    assert set(files) == FILES
    assert all(files[name] == content(bundle)[name] for name in FILES - {"README.md"})
    assert b'zoo.load("alice/small")' in files["README.md"]
    model = zoo.load(REPO)
    assert outputs(model).equal(outputs(zoo.load(bundle)))
    assert not model.training
    ways = {r.server for r in hub.requests.select("PUT")}, bool(hub.requests.select(path="/xet-write-token/"))
    assert ways == {"lfs": ({"hub"}, False), "multipart": ({"cdn"}, False), "xet": (set(), True)}[kind]


def test_second_push_says_unchanged_and_sends_nothing(hub: TestHub, use_hub: UseHub, run: Path) -> None:
    use_hub(hub, ALICE)
    first = push(run)
    hub.requests.clear()
    second = push(run)
    assert (second.changed, second.commit, second.is_new) == ((), first.commit, False)
    assert sent(hub) == []
    assert commits(hub) == 2


def test_push_of_a_changed_card_sends_the_weights_no_more(hub: TestHub, use_hub: UseHub, copy: Path) -> None:
    use_hub(hub, ALICE)
    push(copy)
    hub.requests.clear()
    card = (copy / "README.md").read_text().replace("# small\n", "# small\n\nWritten by hand.\n")
    (copy / "README.md").write_text(card)
    assert push(copy, message="Say more").changed == ("README.md",)
    assert not hub.requests.select("PUT")
    assert b"# small\n\nWritten by hand.\n" in published(hub)["README.md"]
    assert hub.repo(REPO).head.title == "Say more"


def test_card_edited_on_the_site_keeps_its_words_and_gets_the_new_figures(
    hub: TestHub, use_hub: UseHub, copy: Path
) -> None:
    use_hub(hub, ALICE)
    push(copy)
    edited = published(hub)["README.md"].replace(b"## Limits\n", b"## Limits\n\nMany of them.\n")
    hub.put_raw(REPO, {"README.md": edited})
    push(copy)
    assert push(copy).changed == ()
    (copy / "config.json").write_bytes(with_figures(copy, 0.5))
    assert set(push(copy).changed) == {"README.md", "config.json"}
    card = published(hub)["README.md"].decode()
    assert "## Limits\n\nMany of them.\n" in card
    assert (card.count("value: 0.5\n"), card.count("| 0.5000 |")) == (4, 6)
    push(copy, replace_card=True)
    assert b"Many of them" not in published(hub)["README.md"]


def with_figures(folder: Path, value: float) -> bytes:
    results = json.loads((folder / "config.json").read_bytes())["results"]
    return changed_config(folder, results=[{**figure, "value": value} for figure in results])


@pytest.mark.parametrize("options", [{}, {"replace_card": True}])
def test_license_chosen_on_the_site_stays(
    hub: TestHub, use_hub: UseHub, copy: Path, options: dict[str, Any], recwarn: pytest.WarningsRecorder
) -> None:
    use_hub(hub, ALICE)
    hub.put_raw(REPO, {"README.md": b"---\nlicense: apache-2.0\n---"})
    push(copy, **options)
    card = published(hub)["README.md"].decode()
    assert "license: apache-2.0\n" in card
    assert is_generated(card)
    assert not [warning for warning in recwarn if issubclass(warning.category, ZooWarning)]


def test_license_is_the_one_that_was_asked_for_and_none_without(hub: TestHub, use_hub: UseHub, copy: Path) -> None:
    use_hub(hub, ALICE)
    (copy / "README.md").unlink()
    with pytest.warns(ZooWarning, match="has no license, so nobody may use it; to choose one: --license"):
        zoo.push(copy, REPO, quiet=True)
    assert b"license" not in published(hub)["README.md"]
    zoo.push(copy, REPO, license="gpl-3.0", quiet=True)
    assert b"license: gpl-3.0\n" in published(hub)["README.md"]
    assert zoo.push(copy, REPO, quiet=True).changed == ()
    hub.requests.clear()
    with pytest.raises(ZooError, match=r"license 'My own': expected its identifier"):
        zoo.push(copy, REPO, license="My own", quiet=True)
    assert len(hub.requests) == 0


def test_figure_is_entered_on_a_leaderboard_and_renewed_with_the_weights(
    hub: TestHub, use_hub: UseHub, copy: Path
) -> None:
    use_hub(hub, ALICE)
    name = ".eval_results/revgnn-zoo.yaml"
    results = json.loads((copy / "config.json").read_bytes())["results"]
    test = next(figure["value"] for figure in results if figure["split"] == "test")
    assert main(["push", str(copy), REPO, "--benchmark", "graphs/bench:007", "-q"]) == 0

    def entered() -> list[tuple[str, str, float, str | None]]:
        entries = parse_eval_result_entries(yaml.safe_load(published(hub)[name]))
        return [(entry.dataset_id, entry.task_id, entry.value, entry.notes) for entry in entries]

    assert entered() == [("graphs/bench", "007", test, "accuracy, 3 views of 2 parts")]
    assert push(copy).changed == ()
    (copy / "config.json").write_bytes(with_figures(copy, 0.5))
    assert name in push(copy).changed
    assert entered()[0][2] == 0.5
    # One that its owner wrote is left alone, and a model without a test figure is on no leaderboard.
    by_hand = b"- dataset: {id: a/b, task_id: c}\n  value: 0.1\n"
    hub.put_raw(REPO, {name: by_hand})
    assert push(copy).changed == ()
    push(copy, benchmark="graphs/bench:007")
    (copy / "config.json").write_bytes(changed_config(copy, results=[]))
    assert name in push(copy).changed
    assert name not in published(hub)


def test_weights_that_are_not_finite_are_refused_in_lines_without_source(
    hub: TestHub, use_hub: UseHub, copy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    use_hub(hub, ALICE)
    state = load_file(copy / "model.safetensors")
    next(iter(state.values())).view(-1)[0] = float("nan")
    save_file(state, copy / "model.safetensors")
    files = with_weights(content(copy), (copy / "model.safetensors").read_bytes())
    (copy / "config.json").write_bytes(files["config.json"])
    assert main(["push", str(copy), REPO]) == 5
    told = capfd.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in told] == ["Warning", "Error"]
    assert "NaN or infinite weights are neither written to a bundle nor published" in told[-1]
    assert not hub.requests.select()


@pytest.mark.parametrize("benchmark", ["bench", "graphs/bench", "graphs/bench:", "a/b/c:d", "graphs/bench:a b", ":x"])
def test_benchmark_that_is_none_is_refused_without_asking(
    hub: TestHub, use_hub: UseHub, copy: Path, benchmark: str
) -> None:
    use_hub(hub, ALICE)
    with pytest.raises(ReferenceFormatError, match="expected"):
        push(copy, benchmark=benchmark)
    (copy / "config.json").write_bytes(changed_config(copy, results=[]))
    with pytest.raises(BundleError, match=r"graphs/bench:t: config\.json has no figure of the test split"):
        push(copy, benchmark="graphs/bench:t")
    assert len(hub.requests) == 0


def test_card_of_another_library_gets_a_pull_request_with_its_words(hub: TestHub, use_hub: UseHub, copy: Path) -> None:
    bob = hub.add_user("bob")
    use_hub(hub, bob)
    theirs = b"---\nlibrary_name: timm\nlicense: cc-by-4.0\n---\n# Their model\n\nTheir words.\n"
    hub.put_raw(REPO, {"README.md": theirs})
    push(copy, create_pr=True)
    card = published(hub, "refs/pr/1")["README.md"]
    for part in (b"library_name: revgnn-zoo\n", b"license: cc-by-4.0\n", b"Their words.\n", b"## These weights\n"):
        assert part in card


def test_card_whose_metadata_cannot_be_read_is_named(hub: TestHub, use_hub: UseHub, copy: Path) -> None:
    use_hub(hub, ALICE)
    hub.put_raw(REPO, {"README.md": b"---\nlicense: [\n---\n# Words\n"})
    with pytest.raises(
        BundleError, match=r"^alice/small: its README\.md: its metadata .* cannot be read: .*; mend it there"
    ):
        push(copy)
    push(copy, replace_card=True)
    (copy / "README.md").write_text("---\nlicense: [\n---\n# Words\n")
    with pytest.raises(BundleError, match=rf"^{copy}/README\.md: its metadata"):
        push(copy)


def test_other_files_of_the_repository_stay_and_a_stale_picture_goes(hub: TestHub, use_hub: UseHub, copy: Path) -> None:
    use_hub(hub, ALICE)
    push(copy)
    hub.put_raw(REPO, {"notes.txt": b"mine\n"})
    (copy / "curves.png").unlink()
    assert set(push(copy).changed) == {"README.md", "curves.png"}
    assert set(published(hub)) == FILES - {"curves.png"} | {"notes.txt"}


def test_only_files_of_the_list_are_published(hub: TestHub, use_hub: UseHub, copy: Path) -> None:
    use_hub(hub, ALICE)
    for name in ("secrets.env", "optimizer.pt", ".hidden", "model.safetensors.bak"):
        (copy / name).write_bytes(b"x")
    (copy / "folder").mkdir()
    (copy / "folder" / "more.safetensors").write_bytes(b"x")
    (copy / "link").symlink_to("/etc/hostname")
    push(copy)
    assert set(published(hub)) == FILES


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_link_is_refused_and_not_followed(hub: TestHub, use_hub: UseHub, copy: Path, name: str) -> None:
    use_hub(hub, ALICE)
    target = (copy / name).rename(copy / f"real-{name}")
    (copy / name).symlink_to(target)
    with pytest.raises(BundleError, match=rf"{name}: a link"):
        push(copy)
    assert len(hub.requests) == 0


def test_a_link_in_a_run_folder_is_refused(hub: TestHub, use_hub: UseHub, run: Path, tmp_path: Path) -> None:
    use_hub(hub, ALICE)
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    (copy / "bundle" / "curves.png").unlink()
    (copy / "bundle" / "curves.png").symlink_to("/etc/hostname")
    with pytest.raises(BundleError, match=r"curves\.png: a link"):
        push(copy)
    assert len(hub.requests) == 0


def test_unfit_bundles_are_refused_before_anything_is_sent(hub: TestHub, use_hub: UseHub, copy: Path) -> None:
    use_hub(hub, ALICE)
    state = load_file(copy / "model.safetensors")
    state["head.bias"] = torch.full_like(state["head.bias"], float("nan"))
    save_file(state, copy / "nan.safetensors", metadata={"format": "pt"})
    files = with_weights(content(copy), (copy / "nan.safetensors").read_bytes())
    unfit = {
        "NaN": files,
        "SHA-256": {"model.safetensors": content(copy)["model.safetensors"][:-1] + b"\0"},
        "metadata": {"README.md": b"---\n- a\n---\nmany words about the model in question\n"},
        "token": {"README.md": (copy / "README.md").read_bytes() + b"hf_" + b"a" * 34},
        "home folder": {"README.md": (copy / "README.md").read_bytes() + str(Path.home() / "x").encode()},
        "unknown key": {"config.json": changed_config(copy, extra=1)},
    }
    good = content(copy)
    for words, changes in unfit.items():
        for name, data in {**good, **changes}.items():
            (copy / name).write_bytes(data)
        with pytest.warns(UserWarning, match="NaN") if words == "NaN" else pytest.raises(BundleError, match=words):
            if words == "NaN":
                with pytest.raises(BundleError, match="NaN"):
                    push(copy)
            else:
                push(copy)
    assert sent(hub) == []
    assert hub.repos == {}


def test_tag_is_set_and_never_moved(hub: TestHub, use_hub: UseHub, copy: Path) -> None:
    use_hub(hub, ALICE)
    first = push(copy, tag="v1")
    assert hub.repo(REPO).find("v1") is hub.repo(REPO).head
    # Once more is no change; a later commit may not take it.
    assert push(copy, tag="v1").changed == ()
    (copy / "curves.png").unlink()
    hub.requests.clear()
    with pytest.raises(ZooError, match=r"tag v1 exists at .* and is never moved"):
        push(copy, tag="v1")
    assert sent(hub) == []
    push(copy, tag="v2")
    tags = {name: hub.repo(REPO).refs[f"refs/tags/{name}"].id for name in ("v1", "v2")}
    assert tags == {"v1": first.commit, "v2": hub.repo(REPO).head.id}
    with pytest.raises(ReferenceFormatError):
        push(copy, tag="../v3")


def test_dry_run_checks_all_and_sends_nothing(hub: TestHub, use_hub: UseHub, copy: Path) -> None:
    use_hub(hub, ALICE)
    done = push(copy, dry_run=True)
    assert (done.is_new, set(done.changed), done.commit) == (True, FILES, None)
    assert sent(hub) == []
    assert hub.repos == {}


def test_private_repository_is_created_private(hub: TestHub, use_hub: UseHub, copy: Path) -> None:
    use_hub(hub, ALICE)
    push(copy, private=True)
    assert hub.repo(REPO).private


def test_stranger_opens_a_pull_request(hub: TestHub, use_hub: UseHub, copy: Path) -> None:
    bob = hub.add_user("bob")
    use_hub(hub, bob)
    with pytest.raises(NotFoundError, match="no such repository"):
        push(copy, create_pr=True)
    hub.put_raw(REPO, {"notes.txt": b"x"})
    with pytest.raises(AccessError):
        push(copy)
    done = push(copy, create_pr=True)
    assert (done.commit, done.url) == (None, f"{hub.url}/{REPO}/discussions/1")
    assert set(published(hub, "refs/pr/1")) == {*FILES, "notes.txt"}
    assert set(published(hub)) == {"notes.txt"}
    assert outputs(zoo.load(f"{REPO}@refs/pr/1")).equal(outputs(zoo.load(copy)))


def test_those_without_the_right_are_told_before_anything_is_sent(hub: TestHub, use_hub: UseHub, copy: Path) -> None:
    reader, bob = hub.add_user("alice", "read"), hub.add_user("bob")
    for token, words in (("", "needs a token"), (reader, "only read"), (bob, "may not create"), ("hf_un", "token")):
        use_hub(hub, token)
        with pytest.raises(AccessError, match=words) as caught:
            push(copy)
        assert caught.value.exit_code == 4
    hub.add_repo(REPO, private=True)
    for token in (reader, bob):
        use_hub(hub, token)
        with pytest.raises(AccessError):
            push(copy)
    assert sent(hub) == []


def test_second_writer_is_refused_rather_than_overruled(hub: TestHub, use_hub: UseHub, copy: Path) -> None:
    use_hub(hub, ALICE)
    push(copy)
    (copy / "curves.png").unlink()

    class Overtake(Fault):
        """Somebody else commits after our push has looked at the repository."""

        def strikes(self, request: Request) -> bool:
            if "/preupload/" in request.path:
                hub.put_raw(REPO, {"other.txt": b"first\n"})
            return False

    hub.faults.append(Overtake())
    with pytest.raises(ZooError, match="changed by somebody else meanwhile") as caught:
        push(copy)
    assert caught.value.exit_code == 1
    hub.faults.clear()
    assert set(published(hub)) == {*FILES, "other.txt"}
    push(copy)
    assert set(published(hub)) == FILES - {"curves.png"} | {"other.txt"}


def test_hub_without_xet_storage_names_the_switch(
    make_hub: HubMaker, use_hub: UseHub, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = make_hub()
    use_hub(hub, ALICE)
    with pytest.raises(NetworkError, match="if it has no xet storage, set HF_HUB_DISABLE_XET=1"):
        push(copy)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    push(copy)
    assert set(published(hub)) == FILES


@pytest.mark.parametrize("fault", [{"lose": "answer"}, {"status": 504, "is_done": True}])
def test_commit_whose_answer_was_lost_is_looked_up(
    hub: TestHub, use_hub: UseHub, copy: Path, fault: dict[str, Any], quick_retries: None
) -> None:
    use_hub(hub, ALICE)
    hub.faults.append(Fault("POST", "/commit/", **fault))
    with pytest.warns(ZooWarning, match="the answer was lost, but the commit is there"):
        done = push(copy, tag="v1")
    assert done.commit == hub.repo(REPO).head.id == hub.repo(REPO).refs["refs/tags/v1"].id
    assert set(published(hub)) == FILES
    assert push(copy).changed == ()
    assert commits(hub) == 2


@pytest.mark.parametrize("fault", [{"lose": "request"}, {"status": 429}, {"status": 500}, {"status": 503}])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/models/alice/small$"),
        ("GET", "/api/whoami"),
        ("POST", "/repos/create"),
        ("POST", "/commit/"),
        ("POST", "/tag/"),
    ],
)
def test_push_survives_one_bad_answer(
    hub: TestHub, use_hub: UseHub, copy: Path, method: str, path: str, fault: dict[str, Any], quick_retries: None
) -> None:
    use_hub(hub, ALICE)
    hub.faults.append(Fault(method, path, **fault))
    assert push(copy, tag="v1").commit == hub.repo(REPO).refs["refs/tags/v1"].id
    assert hub.faults[0].hits == 1
    assert (set(published(hub)), commits(hub)) == (FILES, 2)
    hub.faults[:] = [Fault("POST", "/paths-info/", **fault), Fault("GET", "/refs", **fault)]
    assert push(copy, tag="v1").changed == ()


def test_host_that_asks_for_more_time_gets_it(
    hub: TestHub, use_hub: UseHub, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("zoo.hub.client.time.sleep", slept.append)
    use_hub(hub, ALICE)
    hub.faults.append(Fault("POST", "/commit/", status=429, headers={"Retry-After": "17"}))
    push(copy)
    assert slept == [17.0]
    hub.faults[:] = [Fault("GET", "/api/models/", status=429, headers={"Retry-After": "3600"})]
    with pytest.raises(NetworkError, match="try again in 3,600 s"):
        push(copy)
    assert slept == [17.0]


def test_dropped_commit_that_stays_dropped_is_an_error(
    hub: TestHub, use_hub: UseHub, copy: Path, quick_retries: None
) -> None:
    use_hub(hub, ALICE)
    hub.faults.append(Fault("POST", "/commit/", lose="request", times=None))
    with pytest.raises(NetworkError) as caught:
        push(copy)
    assert caught.value.exit_code == 6
    assert published(hub) == {}
    hub.faults.clear()
    push(copy)
    assert (set(published(hub)), commits(hub)) == (FILES, 2)


@pytest.mark.parametrize("fault", [{"lose": "request"}, {"lose": "answer"}, {"status": 500}, {"status": 503}])
def test_upload_survives_a_bad_moment(
    hub: TestHub, use_hub: UseHub, copy: Path, fault: dict[str, Any], quick_retries: None
) -> None:
    use_hub(hub, ALICE)
    hub.faults.append(Fault("PUT", "/lfs/", **fault))
    push(copy)
    assert set(published(hub)) == FILES
    assert outputs(zoo.load(REPO)).equal(outputs(zoo.load(copy)))


def test_upload_that_is_refused_for_good_says_why(
    hub: TestHub, use_hub: UseHub, copy: Path, quick_retries: None
) -> None:
    use_hub(hub, ALICE)
    hub.faults.append(
        Fault("PUT", "/lfs/", status=403, headers={"X-Error-Message": "storage is full for alice"}, times=None)
    )
    with pytest.raises(AccessError, match=r"no access \(.*storage is full for alice\)"):
        push(copy)


def test_failure_of_the_tag_says_that_the_model_is_published(
    hub: TestHub, use_hub: UseHub, copy: Path, quick_retries: None
) -> None:
    use_hub(hub, ALICE)
    hub.faults.append(Fault("POST", "/tag/", status=503, times=None))
    with pytest.raises(NetworkError) as caught:
        push(copy, tag="v1")
    assert f"{REPO}: published at {hub.repo(REPO).head.id}, but not tagged v1: " in str(caught.value)


def test_private_is_never_published_publicly(hub: TestHub, use_hub: UseHub, copy: Path) -> None:
    use_hub(hub, ALICE)
    hub.add_repo(REPO)
    with pytest.raises(AccessError, match="is public, and --private does not change that; make it private at"):
        push(copy, private=True)
    assert sent(hub) == []
    hub.repo(REPO).private = True
    push(copy, private=True)
    assert set(published(hub)) == FILES


@pytest.mark.parametrize("tag", ["main", "refs/heads/main", "refs/tags/v1", "0" * 40])
def test_tag_that_means_something_else_is_refused_without_asking(
    hub: TestHub, use_hub: UseHub, copy: Path, tag: str
) -> None:
    use_hub(hub, ALICE)
    with pytest.raises(ReferenceFormatError, match="no name for a tag"):
        push(copy, tag=tag)
    assert len(hub.requests) == 0


def test_destination_with_a_revision_is_told_of_the_option(hub: TestHub, use_hub: UseHub, copy: Path) -> None:
    use_hub(hub, ALICE)
    with pytest.raises(ReferenceFormatError, match=r"alice/small@v1: .*: --tag v1$"):
        push(copy, f"{REPO}@v1")
    assert len(hub.requests) == 0


def test_branch_takes_the_commit_and_main_stays(hub: TestHub, use_hub: UseHub, copy: Path) -> None:
    use_hub(hub, ALICE)
    first = push(copy)
    (copy / "curves.png").unlink()
    done = push(copy, branch="next/try", tag="v2")
    repo = hub.repo(REPO)
    assert (repo.head.id, repo.refs["refs/heads/next/try"].id) == (first.commit, done.commit)
    assert done.url == f"{hub.url}/{REPO}/tree/next/try"
    assert set(published(hub, "next/try")) == FILES - {"curves.png"}
    assert push(copy, branch="next/try").changed == ()
    assert zoo.load(f"{REPO}@next/try").zoo_info.commit == done.commit
    for options, words in (({"tag": "next/try"}, "is a branch there"), ({"branch": "v2"}, "is a tag there")):
        with pytest.raises(ZooError, match=words):
            push(copy, **options)
    push(copy, "alice/new", branch="dev")
    assert set(hub.files("alice/new")) == {".gitattributes"}
    assert set(hub.files("alice/new", "dev")) == {".gitattributes", *FILES - {"curves.png"}}
    with pytest.raises(ZooError, match="a pull request has a branch of its own"):
        push(copy, branch="dev", create_pr=True)


@pytest.mark.parametrize(
    ("status", "error"),
    [(403, AccessError), (409, ZooError), (412, ZooError), (429, NetworkError), (503, NetworkError)],
)
def test_refused_commit_has_its_own_error(
    hub: TestHub, use_hub: UseHub, copy: Path, status: int, error: type[ZooError], quick_retries: None
) -> None:
    use_hub(hub, ALICE)
    hub.faults.append(Fault("POST", "/commit/", status=status, times=None))
    with pytest.raises(error) as caught:
        push(copy)
    assert type(caught.value) is error
    assert published(hub) == {}


def test_commands_publish_and_the_stock_client_reads_it(
    hub: TestHub, hub_env: Env, use_hub: UseHub, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = command(hub_env(hub, ALICE), "push", str(run), REPO, "--tag", "v1", "-q")
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout == f"{hub.url}/{REPO} at {hub.repo(REPO).head.id}, tag v1\n"
    use_hub(hub, ALICE)
    assert main(["push", str(run), REPO, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["changed"] == []
    assert main(["push", str(run), REPO, "--tag", "v1"]) == 0
    assert capfd.readouterr().out == f"{REPO}: unchanged at {hub.repo(REPO).head.id}, nothing was sent; tag v1\n"
    assert main(["push", str(run), "alice/new", "--dry-run"]) == 0
    assert capfd.readouterr().out.startswith("alice/new: would create it; would send config.json, model.safetensors")
    nobody = hub_env(hub)
    folder = hf(nobody, "download", REPO, "--revision", "v1", "--format", "quiet").strip()
    assert content_of(folder) == published(hub)
    other = snapshot_download(REPO, endpoint=hub.url, cache_dir=tmp_path / "other", token=False)
    assert content_of(other) == published(hub)
    assert api(hub).model_info(REPO).library_name == "revgnn-zoo"
    # What the stock client has fetched is used by ours.
    hub.requests.clear()
    pulled = command(hub_env(hub, HF_HUB_OFFLINE="1"), "pull", f"{REPO}@v1")
    assert (pulled.returncode, pulled.stdout.strip()) == (0, folder)
    assert len(hub.requests) == 0


def test_model_that_fails_its_probe_or_has_none_is_not_published(
    hub: TestHub, use_hub: UseHub, copy: Path, tmp_path: Path
) -> None:
    use_hub(hub, ALICE)
    tensors = load_file(copy / "probe.safetensors")
    tensors["logits_float64"] += 1e-3
    save_file(tensors, copy / "probe.safetensors")
    raw = (copy / "probe.safetensors").read_bytes()
    stored = {"sha256": hashlib.sha256(raw).hexdigest(), "num_bytes": len(raw)}
    (copy / "config.json").write_bytes(changed_config(copy, probe=stored))
    with pytest.raises(BundleError, match="fails its probe"):
        push(copy)
    config = json.loads((copy / "config.json").read_bytes())
    del config["probe"]
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(BundleError, match="carries no probe to verify it by"):
        push(copy)
    assert len(hub.requests) == 0
