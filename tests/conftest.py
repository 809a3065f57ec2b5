"""What holds for all tests."""

import functools
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

# Read once, when torch loads its thread pool. Tests run on all cores, a process on each, and their graphs are small:
# threads would only take the cores from each other.
os.environ["OMP_NUM_THREADS"] = "1"
# Threads that spin while they wait take the cores from whoever could work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Many tests start processes, which would each compile every module of this checkout again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


@pytest.fixture(autouse=True)
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the workers that a test starts."""
    # Imported here: torch must be loaded after the lines above.
    from tests import forked

    monkeypatch.setattr(subprocess, "Popen", forked.popen)


@pytest.fixture(autouse=True, scope="session")
def _digits_once() -> Iterator[None]:
    """Link the digits once; many tests train on them, and none changes them."""
    from zoo.data import datasets

    with pytest.MonkeyPatch.context() as context:
        context.setattr(datasets, "digits_graph", functools.cache(datasets.digits_graph))
        yield


@pytest.fixture
def real_workers(forked_workers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start workers as the package does."""
    from tests import forked

    monkeypatch.setattr(subprocess, "Popen", forked.real_popen)
