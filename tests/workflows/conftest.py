from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workflows.small import small_recipe
from zoo.ops.dispatch import use_backend
from zoo.workflows import train as train_module
from zoo.workflows.train import train


@pytest.fixture(autouse=True, scope="package")
def _small_is_quick() -> Iterator[None]:
    """Graphs this small gain nothing from compiled kernels."""
    with use_backend("chunked"):
        yield


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the small recipe; tests that change it make a copy."""
    folder = tmp_path_factory.mktemp("finished")
    with use_backend("chunked"):
        train(small_recipe(folder), folder / "run", device="cpu", quiet=True)
    return folder / "run"


@pytest.fixture(autouse=True, scope="package")
def _no_pictures(finished_run: Path) -> Iterator[None]:
    # A picture takes longer than training on a graph this small; the finished run has one.
    with pytest.MonkeyPatch.context() as context:
        context.setattr(train_module, "plot", lambda run: None)
        yield
