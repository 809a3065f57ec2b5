from collections.abc import Iterator

import pytest
import torch

from zoo.workflows import train as train_module


@pytest.fixture(autouse=True, scope="package")
def _small_is_quick() -> Iterator[None]:
    """Graphs this small gain nothing from threads, which on a busy machine only wait."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_module, "plot", lambda run: None)
