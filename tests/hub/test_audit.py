"""Loading what comes from elsewhere unpickles nothing, starts no process, and writes to its own folders alone.

Python reports such acts to an audit hook, whoever asks for them. The hook runs in a process of its own, because
none can be taken off again.
"""

from __future__ import annotations

import ast
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from tests.hub.bundles import REPO, content
from tests.hub.server import TestHub

# An audit event tells of every class that a pickle imports. A pickle that needs none is seen by a profiler, which is
# told of calls of the functions that read pickles.
GUARD = """
import _pickle, os, pickle, shutil, subprocess, sys
from pathlib import Path
import numpy, torch
import zoo, zoo.cli, zoo.data.datasets, zoo.workflows.evaluate, zoo.workflows.predict
import zoo.workflows.probe, zoo.workflows.pull, zoo.workflows.export

allowed = [os.path.realpath(name) + os.sep for name in sys.argv[1].split(os.pathsep)]
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink",
           "os.truncate", "os.utime", "shutil.rmtree", "tempfile.mkdtemp", "tempfile.mkstemp"}
PROCESSES = {"os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "pty.spawn",
             "subprocess.Popen"}
seen, watching = [], []

def is_outside(name):
    if not isinstance(name, (str, bytes, os.PathLike)) or os.fspath(name) == os.devnull:
        return False
    # The folder of a link, not what it points to, is written when it is made or removed.
    folder, last = os.path.split(os.path.abspath(os.fsdecode(name)))
    return not (os.path.join(os.path.realpath(folder), last) + os.sep).startswith(tuple(allowed))

def hook(event, arguments):
    if not watching:
        return
    if event in PROCESSES or event == "pickle.find_class":
        seen.append(event)
    elif event == "open":
        name, mode, flags = arguments
        if (flags & WRITES or set(mode or "") & set("wax+")) and is_outside(name):
            seen.append(f"open {name}")
    elif event in CHANGES:
        names = arguments[:2] if event in ("os.link", "os.rename", "os.symlink") else arguments[:1]
        if event in ("os.remove", "os.rmdir") and arguments[1] >= 0:
            # A name in an open folder.
            names = [os.path.join(os.readlink(f"/proc/self/fd/{arguments[1]}"), arguments[0])]
        seen.extend(f"{event} {name}" for name in names[-1 if event == "os.symlink" else 0:] if is_outside(name))

def profile(frame, event, what):
    if event == "c_call" and getattr(what, "__name__", "") in ("load", "loads") and (
        getattr(what, "__module__", "") == "_pickle" or type(getattr(what, "__self__", None)) is _pickle.Unpickler
    ):
        seen.append("unpickling")
    if event == "call" and frame.f_code is torch.load.__code__:
        seen.append("torch.load")

def watch(name, work):
    seen.clear()
    watching.append(name)
    sys.setprofile(profile)
    try:
        result = work()
    finally:
        sys.setprofile(None)
        watching.clear()
    print(repr((name, result if isinstance(result, int) else None, sorted(set(seen)))), file=sys.__stderr__)

sys.addaudithook(hook)
"""
WORK = """
_, _, repo, data, out = sys.argv
main = zoo.cli.main
watch("load", lambda: zoo.load(repo))
watch("load and verify", lambda: zoo.load(repo, verify=True))
watch("pull", lambda: main(["pull", repo, "--to", out + "/pulled"]))
watch("verify", lambda: main(["verify", repo]))
watch("verify a folder", lambda: main(["verify", out + "/pulled"]))
watch("eval", lambda: main(["eval", repo, "--data", data, "-q"]))
watch("predict", lambda: main(["predict", repo, "--data", data, "--out", out + "/logits.npz", "-q"]))
"""
CONTROLS = """
_, _, pickled, saved, elsewhere = sys.argv
watch("class", lambda: pickle.loads(Path(pickled).read_bytes()))
watch("plain", lambda: pickle.loads(b"K\\x01."))
watch("torch", lambda: torch.load(saved, weights_only=True))
watch("process", lambda: subprocess.run(["true"]))
watch("system", lambda: os.system("true"))
watch("write", lambda: Path(elsewhere, "file").write_text("x"))
watch("folder", lambda: Path(elsewhere, "folder").mkdir())
watch("rename", lambda: Path(elsewhere, "file").rename(Path(elsewhere, "other")))
watch("link", lambda: Path(elsewhere, "link").symlink_to("/etc"))
watch("remove", lambda: Path(elsewhere, "link").unlink())
watch("tree", lambda: shutil.rmtree(elsewhere + "/folder"))
watch("read", lambda: Path(elsewhere, "other").read_text())
watch("save", lambda: numpy.save(elsewhere + "/array.npy", numpy.zeros(2)))
"""


def watched(env: dict[str, str], allowed: list[Path], code: str, *arguments: str) -> dict[str, tuple[int, list[str]]]:
    """Exit codes and what was seen, by step."""
    # The compiler of the other kernels keeps what it compiled on this machine in pickles of its own, and Python its
    # bytecode beside the sources; neither comes from elsewhere.
    env = {**env, "ZOO_BACKEND": "reference", "PYTHONDONTWRITEBYTECODE": "1"}
    folders = ":".join(str(folder) for folder in allowed)
    line = [sys.executable, "-c", GUARD + code, folders, *arguments]
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    rows = [ast.literal_eval(row) for row in done.stderr.splitlines() if row.startswith("(")]
    return {name: (code, found) for name, code, found in rows}


def test_nothing_is_unpickled_started_or_written_elsewhere(
    hub: TestHub,
    hub_env: Callable[..., dict[str, str]],
    hf_home: Path,
    bundle: Path,
    run: Path,
    tmp_path: Path,
) -> None:
    hub.put_raw(REPO, content(bundle))
    (tmp_path / "out").mkdir()
    data = str(run.parent / "multiclass.npz")
    found = watched(hub_env(hub), [hf_home, tmp_path / "out"], WORK, REPO, data, str(tmp_path / "out"))
    assert found == {
        "load": (None, []),
        "load and verify": (None, []),
        "pull": (0, []),
        "verify": (0, []),
        "verify a folder": (0, []),
        "eval": (0, []),
        "predict": (0, []),
    }
    assert content(tmp_path / "out" / "pulled") == content(bundle)
    assert (tmp_path / "out" / "logits.npz").is_file()


def test_the_guard_sees_what_it_should(hub: TestHub, hub_env: Callable[..., dict[str, str]], tmp_path: Path) -> None:
    (tmp_path / "pickled").write_bytes(pickle.dumps(Path("x")))
    torch.save(torch.zeros(2), tmp_path / "saved")
    there = tmp_path / "elsewhere"
    there.mkdir()
    names = [str(tmp_path / "pickled"), str(tmp_path / "saved"), str(there)]
    found = {name: seen for name, (_, seen) in watched(hub_env(hub), [tmp_path / "out"], CONTROLS, *names).items()}
    assert found.pop("read") == []
    assert found["class"] == ["pickle.find_class", "unpickling"]
    assert found["plain"] == ["unpickling"]
    assert "torch.load" in found["torch"]
    assert "subprocess.Popen" in found["process"]
    assert found["system"] == ["os.system"]
    assert found["write"] == [f"open {there}/file"]
    assert found["folder"] == [f"os.mkdir {there}/folder"]
    assert found["rename"] == [f"os.rename {there}/file", f"os.rename {there}/other"]
    assert found["link"] == [f"os.symlink {there}/link"]
    assert found["remove"] == [f"os.remove {there}/link"]
    assert found["tree"] == [f"os.rmdir {there}/folder", f"shutil.rmtree {there}/folder"]
    assert found["save"] == [f"open {there}/array.npy"]
