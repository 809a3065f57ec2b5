import shutil
import struct
from pathlib import Path

import pytest

from tests.workflows.small import small_recipe
from zoo.errors import RunError
from zoo.workflows.plot import plot
from zoo.workflows.run_dir import RunDir, open_run


def test_the_picture_of_a_run_can_be_drawn_again(finished_run: Path, tmp_path: Path) -> None:
    path = plot(RunDir(finished_run), tmp_path / "curves.png")
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    assert width > 2 * height


def test_an_unfinished_run_has_curves_too(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    for name in ("results.json", "curves.png"):
        (tmp_path / "run" / name).unlink()
    log = tmp_path / "run" / "metrics.jsonl"
    # An epoch without an evaluation.
    log.write_text(log.read_text().splitlines()[0].replace("valid_", "no_") + "\n")
    assert plot(RunDir(tmp_path / "run")) == tmp_path / "run" / "curves.png"


def test_without_an_epoch_there_is_nothing_to_draw(tmp_path: Path) -> None:
    with (
        open_run(tmp_path / "run", small_recipe(tmp_path), resume=False) as run,
        pytest.raises(RunError, match="no epoch is recorded yet"),
    ):
        plot(run)


def test_a_picture_that_cannot_be_stored_is_an_error(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be written: No such file or directory"):
        plot(RunDir(finished_run), tmp_path / "no" / "such" / "folder.png")
