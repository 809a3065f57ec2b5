import functools
import http.server
import importlib
import shutil
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.ogb_files import write_random_arxiv, write_random_papers, write_random_products
from zoo.data.graph import Graph, Split
from zoo.data.synthetic import write_synthetic_proteins


@pytest.fixture(scope="session")
def written_ogb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with small data sets in the raw format of OGB; not to be changed by a test."""
    root = tmp_path_factory.mktemp("ogb")
    write_synthetic_proteins(root, 300, mean_degree=20)
    write_random_arxiv(root, 200, num_edges=900)
    write_random_products(root, 200, num_edges=900)
    write_random_papers(root, 200, num_edges=900)
    return root


@pytest.fixture
def ogb_root(written_ogb: Path, tmp_path: Path) -> Path:
    """A copy of these data sets without anyone's cache."""
    root = tmp_path / "root"
    shutil.copytree(written_ogb, root, ignore=shutil.ignore_patterns("zoo", ".zoo*", "data_processed"))
    return root


def small_graph(**changes: object) -> Graph:
    """Six nodes, seven undirected edges with features, three classes."""
    edge_index = torch.tensor([[0, 1, 2, 3, 4, 0, 5], [1, 2, 3, 4, 5, 3, 1]], dtype=torch.int32)
    fields: dict[str, object] = {
        "name": "small",
        "edge_index": edge_index,
        "undirected": True,
        "num_nodes": 6,
        "x": torch.arange(12, dtype=torch.float32).view(6, 2),
        "categories": torch.tensor([0, 1, 2, 0, 1, 2]),
        "edge_attr": torch.arange(14, dtype=torch.float32).view(7, 2),
        "y": torch.tensor([0, 1, 2, 0, 1, -1]),
        "splits": (Split(torch.tensor([0, 1]), torch.tensor([2]), torch.tensor([3, 4])),),
        "task": "multiclass",
        "num_tasks": 3,
    }
    return Graph(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def small() -> Graph:
    return small_graph()


class Server:
    """Serves a folder over plain HTTP on the loopback interface."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[str] = []
        self.cut: set[str] = set()
        handler = functools.partial(_Handler, server_state=self, directory=str(folder))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/{name}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *args: object, server_state: Server, **kwargs: object) -> None:
        self.state = server_state
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self.state.requests.append(self.path)
        name = self.path.lstrip("/")
        if name in self.state.cut:
            content = (self.state.folder / name).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
        else:
            super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    # It has no certificate.
    monkeypatch.setenv("ZOO_ALLOW_HTTP", "1")
    folder = tmp_path / "served"
    folder.mkdir()
    running = Server(folder)
    yield running
    running.close()


@pytest.fixture(scope="session")
def nodeproppred() -> ModuleType:
    """OGB's own loaders, imported without their version check."""
    patch = pytest.MonkeyPatch()
    patch.setitem(sys.modules, "outdated", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = importlib.import_module("ogb.nodeproppred")
    patch.undo()
    return module
