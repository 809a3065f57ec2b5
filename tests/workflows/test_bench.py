"""Benchmarks of training steps, at sizes that take no time."""

import json
from pathlib import Path

import pytest
import torch

from zoo.errors import RunError
from zoo.workflows.bench import SUITES, run_suite
from zoo.workflows.bench.case import Case, build, draw_part
from zoo.workflows.bench.draw import draw
from zoo.workflows.bench.worker import measure

# PyTorch Geometric uses what PyTorch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

CPU = torch.device("cpu")
TINY = Case(num_layers=2, channels=12, num_nodes=50, num_edges=400)


@pytest.mark.parametrize("implementation", ["zoo", "zoo_plain", "pyg", "pyg_plain"])
def test_each_implementation_is_timed(implementation: str) -> None:
    found = measure(TINY.model_copy(update={"implementation": implementation}), device=CPU, num_steps=2)
    assert len(found["step_s"]) == 2
    assert found["median_step_s"] > 0
    assert found["num_parameters"] > 0


def test_the_part_has_the_sizes_asked_for_and_is_the_same_each_time() -> None:
    x, csr, edge_attr = draw_part(50, 400, 0, CPU)
    assert (x.size(0), csr.num_nodes, csr.num_edges, edge_attr.size(0)) == (50, 50, 400, 400)
    assert torch.equal(edge_attr, draw_part(50, 400, 0, CPU)[2])
    assert edge_attr.min() >= 0.001
    assert edge_attr.max() <= 1


def test_peers_differ_in_memory_and_not_in_depth_or_width() -> None:
    ours, theirs = (build(TINY.model_copy(update={"implementation": name}), CPU) for name in ("zoo", "pyg"))
    assert len(ours.stack.layers) == len(theirs.layers) == 2
    # Theirs lack the shared edge encoder and each layer's map of it: raw features enter every layer.
    conv = theirs.layers[0].convs[0].conv
    assert conv.lin_edge.weight.shape == (6, 8)
    matrices = [
        [tuple(p.shape) for p in mlp.parameters() if p.dim() == 2]
        for mlp in (ours.stack.layers[0][0].conv.mlp, conv.mlp)
    ]
    assert matrices == [[(12, 6), (6, 12)]] * 2


def test_a_suite_writes_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only = SUITES["memory"]._replace(cases=lambda base: iter([base]))
    monkeypatch.setitem(SUITES, "memory", only)
    result = run_suite("memory", TINY, tmp_path / "results", device="cpu", num_steps=1, quiet=True)
    assert json.loads((tmp_path / "results" / "memory.json").read_text()) == result
    assert (tmp_path / "results" / "memory.png").read_bytes().startswith(b"\x89PNG")
    (case,) = result["cases"]
    assert case["num_layers"] == 2
    assert result["environment"]["torch"]


def test_a_failing_case_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absurd = TINY.model_copy(update={"num_nodes": 10**12})
    monkeypatch.setitem(SUITES, "memory", SUITES["memory"]._replace(cases=lambda base: iter([base])))
    with pytest.raises(RunError, match="zoo with 2 layers of 12 channels: "):
        run_suite("memory", absurd, tmp_path, device="cpu", num_steps=1, quiet=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suite", sorted(SUITES))
def test_every_suite_can_be_drawn(suite: str) -> None:
    cases = [
        {**case.model_dump(), "median_step_s": 1.0 + index, "peak_bytes": 1e6 * (index + 1)}
        for index, case in enumerate(SUITES[suite].cases(TINY))
    ]
    environment = {"device": "x", "num_threads": 2, "torch": "2"}
    result = {"suite": suite, "summary": "s", "date": "2026-01-01", "environment": environment, "cases": cases}
    assert draw(result).startswith(b"\x89PNG")
