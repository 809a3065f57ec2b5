import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.workflows.small import small_recipe, write_recipe
from zoo.cli import main
from zoo.ops.dispatch import use_backend
from zoo.workflows import train as train_module
from zoo.workflows.export import export
from zoo.workflows.train import train

ROOT = Path(__file__).parent.parent.parent


@dataclasses.dataclass(frozen=True)
class Result:
    """What a command left: its exit code and its lines."""

    code: int
    out: str
    err: list[str]


@pytest.fixture(autouse=True, scope="package")
def _small_is_quick() -> Iterator[None]:
    with use_backend("chunked"):
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, its graph, a finished run and its bundle."""
    folder = tmp_path_factory.mktemp("cli")
    write_recipe(folder)
    with pytest.MonkeyPatch.context() as context, use_backend("chunked"):
        context.setattr(train_module, "plot", lambda run: None)
        train(small_recipe(folder), folder / "run", device="cpu", quiet=True)
        export(folder / "run")
    return folder


@pytest.fixture
def zoo_command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """The command line in this process, in a fresh folder, with no data at hand."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(train_module, "plot", lambda run: None)

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err.splitlines())

    return run


@pytest.fixture
def zoo_process(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """The command line in a process of its own."""

    def run(*arguments: object, **options: object) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "zoo", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "ZOO_BACKEND": "chunked"}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False, **options
        )

    return run
