from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.workflows.small import small_recipe
from zoo.ops.dispatch import use_backend
from zoo.workflows import train as train_module
from zoo.workflows.train import train


@pytest.fixture(autouse=True, scope="package")
def _small_is_quick() -> Iterator[None]:
    """Graphs this small gain nothing from threads, which on a busy machine only wait, nor from compiled kernels."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with use_backend("chunked"):
        yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="package")
def finished_run(tmp_path_factory: pytest.TempPathFactory, _small_is_quick: None) -> Path:
    """A finished run of the small recipe; tests that change it make a copy."""
    folder = tmp_path_factory.mktemp("finished")
    train(small_recipe(folder), folder / "run", device="cpu", quiet=True)
    return folder / "run"


@pytest.fixture(autouse=True)
def _no_pictures(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A picture takes longer than training on a graph this small; the finished run has one.
    monkeypatch.setattr(train_module, "plot", lambda run: None)
