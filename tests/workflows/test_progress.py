import fcntl
import os
import pty
import struct
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from zoo.workflows.progress import Board, Progress, duration_in_words


def three_steps() -> None:
    with Progress(3, unit="step") as progress:
        for number in range(3):
            progress.step(f"epoch {number}", {"loss": "0.5"})
        progress.figures("epoch 3", {"valid_accuracy": "0.9"})


def many_figures() -> None:
    figures = {"loss": "0.1234", "epoch_s": "0.08", "memory": "0.70GiB", "valid_accuracy": "0.9540", "best": "0.9541"}
    with Progress(400, unit="step") as progress:
        progress.step("epoch 94/400", figures)
        progress.figures("epoch 94/400", figures)


def on_a_terminal(rows: int, columns: int, show: Callable[[], None] = three_steps) -> str:
    """What is shown on a terminal of this size."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    with os.fdopen(child, "w") as stderr, pytest.MonkeyPatch.context() as context:
        context.setattr(sys, "stderr", stderr)
        show()
    shown = b""
    while True:
        try:
            chunk = os.read(parent, 4096)
        except OSError:
            break
        if not chunk:
            break
        shown += chunk
    os.close(parent)
    return shown.decode()


def test_a_terminal_gets_a_bar() -> None:
    shown = on_a_terminal(40, 100)
    assert "3/3" in shown
    assert "epoch 3: 100%" in shown
    assert "valid_accuracy=0.9" in shown


def test_on_a_narrow_terminal_the_metric_is_not_cut_off() -> None:
    shown = on_a_terminal(40, 80, many_figures)
    assert "loss=0.1234, valid_accuracy=0.9540, best=0.9541]" in shown
    assert "epoch_s" not in shown
    assert "epoch_s=0.08" in on_a_terminal(40, 200, many_figures)


def test_a_terminal_without_a_size_gets_lines() -> None:
    assert on_a_terminal(0, 0).split() == ["epoch", "3", "valid_accuracy", "0.9"]


def test_a_stderr_that_goes_away_does_not_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as broken:
        monkeypatch.setattr(sys, "stderr", broken)
        with Progress(2, unit="step") as progress:
            progress.line("nobody reads this")
            progress.figures("nor", {"this": "line"})
            progress.step("epoch 1", {})
        monkeypatch.undo()
        # What is left in the buffer of the broken pipe has nowhere to go either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), broken.fileno())


def test_without_tensorboard_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.workflows.progress._writer_class", None)
    board = Board(tmp_path / "board", 0)
    board.add({"loss": 0.5}, 1)
    board.close()
    assert not (tmp_path / "board").exists()


def test_with_tensorboard_every_figure_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            written.append((folder, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def close(self) -> None:
            written.append("closed")

    monkeypatch.setattr("zoo.workflows.progress._writer_class", Writer)
    Board(tmp_path, 7).close()
    # The writer makes a folder at once, which a run that fails before its first epoch must not leave behind.
    assert written == []
    board = Board(tmp_path, 7)
    board.add({"loss": 0.5, "lr": 0.1}, 8)
    board.close()
    assert written == [(str(tmp_path), 7), ("loss", 0.5, 8), ("lr", 0.1, 8), "closed"]


def test_the_time_left_is_told_once_and_without_the_first_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([100.0, 103.0, 106.0, 109.0])
    monkeypatch.setattr("zoo.workflows.progress.time.monotonic", lambda: next(clock))
    with Progress(104, unit="step", done=2) as progress:
        for _ in range(4):
            progress.step("epoch 1", {})
    assert capsys.readouterr().err == "about 5 min left for 99 more steps\n"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(61, "1 min"), (3540, "59 min"), (3599, "1 h 0 min"), (12_000, "3 h 20 min"), (2_160_000, "25 days 0 h")],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration_in_words(seconds) == words
