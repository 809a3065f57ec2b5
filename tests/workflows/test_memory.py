"""Watching the peak of memory on machines that do not help."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from zoo.errors import RunError
from zoo.workflows import memory

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def linux_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A Linux whose switch is a plain file."""
    switch = tmp_path / "clear_refs"
    monkeypatch.setattr(memory.platform, "system", lambda: "Linux")
    monkeypatch.setattr(memory, "_CLEAR_REFS", switch)
    monkeypatch.setattr(memory, "_status", lambda key: {"VmRSS": 7, "VmHWM": 9}[key])
    return switch


def test_a_c_library_that_cannot_trim_is_done_without(linux_elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_c_library", SimpleNamespace)
    assert (memory.reset_peak(CPU), memory.peak(CPU)) == (7, 9)
    assert linux_elsewhere.read_text() == "5"


def test_a_machine_that_forbids_to_reset_the_peak_says_so_in_one_line(linux_elsewhere: Path) -> None:
    linux_elsewhere.mkdir()
    expected = r"clear_refs: cannot be written \(Is a directory\), so memory cannot be measured here; .*peak$"
    with pytest.raises(RunError, match=expected) as caught:
        memory.reset_peak(CPU)
    assert "\n" not in str(caught.value)


def test_without_proc_the_peak_is_what_psutil_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.platform, "system", lambda: "Windows")
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: SimpleNamespace(rss=5, peak_wset=8))
    assert memory.peak(CPU) == 8
    monkeypatch.setattr(memory.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: SimpleNamespace(rss=5))
    assert memory.peak(CPU) == 5
