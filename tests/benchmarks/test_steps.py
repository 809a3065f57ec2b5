"""Benchmarks of training steps, at sizes that take no time."""

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import steps
from benchmarks.plot import plot
from benchmarks.steps import file_stem, run_suite
from benchmarks.suites import SUITES, Case, Trend, fit_lines
from benchmarks.worker import build, measure
from zoo.errors import OutOfMemoryError, RunError
from zoo.workflows.step_cost import random_graph
from zoo.workflows.worker import Task

# PyTorch Geometric uses what PyTorch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

CPU = torch.device("cpu")
SIZES = {"num_layers": 2, "channels": 12, "num_nodes": 100, "num_edges": 400}
TINY = Case(**SIZES, num_steps=2)
ENVIRONMENT = {"device": "x", "num_threads": 2, "torch": "2"}
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def with_fields(**fields: Any) -> Case:
    return TINY.model_copy(update=fields)


@pytest.mark.parametrize("implementation", ["zoo", "zoo_plain", "pyg", "pyg_plain"])
def test_each_implementation_is_measured(implementation: str) -> None:
    cost = measure(with_fields(implementation=implementation), CPU)
    assert len(cost.step_s) == 2
    assert cost.median_step_s > 0
    assert cost.num_parameters > 0
    assert (cost.num_nodes, cost.num_edges) == (100, 400)


def test_the_whole_graph_is_evaluated_in_one_part() -> None:
    cost = measure(with_fields(work="evaluate"), CPU)
    assert cost.epoch_s == pytest.approx(sum(cost.step_s) / 2)
    assert cost.state_bytes == 4 * cost.num_parameters


def test_peers_differ_in_memory_and_not_in_depth_or_width() -> None:
    cases = [with_fields(implementation=name) for name in ("zoo", "pyg")]
    shape = random_graph(TINY.read_recipe(), 100, 400)[0].shape
    ours, theirs = (build(case, case.read_recipe(), shape) for case in cases)
    assert len(ours.stack.layers) == len(theirs.layers) == 2
    # Theirs lack the shared edge encoder and each layer's map of it: raw features enter every layer.
    conv = theirs.layers[0].convs[0].conv
    assert conv.lin_edge.weight.shape == (6, 8)
    matrices = [
        [tuple(p.shape) for p in mlp.parameters() if p.dim() == 2]
        for mlp in (ours.stack.layers[0][0].conv.mlp, conv.mlp)
    ]
    assert matrices == [[(12, 6), (6, 12)]] * 2


def test_a_peer_of_another_model_is_refused() -> None:
    case = with_fields(implementation="pyg", settings=("model.conv.aggr.type=mean",))
    recipe = case.read_recipe()
    with pytest.raises(RunError, match="rev_deep: PyG's side is written for models like rev_deep's"):
        build(case, recipe, random_graph(recipe, 100, 400)[0].shape)


def test_a_suite_writes_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In processes of their own."""
    monkeypatch.setenv("ZOO_BACKEND", "chunked")
    result = run_suite("depth", with_fields(num_steps=1), tmp_path / "results", device="cpu", quiet=True)
    stem = "depth_2x12_100n400e"
    assert result["file"] == stem
    assert json.loads((tmp_path / "results" / f"{stem}.json").read_text()) == result
    assert (tmp_path / "results" / f"{stem}.png").read_bytes().startswith(b"\x89PNG")
    assert [(case["num_layers"], case["num_edges"], len(case["step_s"])) for case in result["cases"]] == [
        (1, 400, 1),
        (2, 400, 1),
    ]
    assert result["environment"]["torch"]


def ends(monkeypatch: pytest.MonkeyPatch, answers: dict[str, dict[str, Any] | RunError]) -> None:
    """Put ends of tasks, by implementation, in place of processes."""

    def run_tasks(tasks: list[Task], **_: Any) -> Iterator[tuple[Task, dict[str, Any] | RunError]]:
        for task in tasks:
            yield task, answers[task.request.case.implementation]  # type: ignore[attr-defined]

    monkeypatch.setattr(steps, "run_tasks", run_tasks)


RIGHT = {"median_step_s": 1.0, "epoch_s": 1.0, "peak_bytes": 1, "num_nodes": 50}


def test_running_out_of_memory_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OutOfMemoryError("x: stopped by SIGKILL, out of memory?")
    ends(monkeypatch, {"zoo": RIGHT, "zoo_plain": full, "pyg": full, "pyg_plain": full})
    result = run_suite("peers", TINY, tmp_path, device="cpu", quiet=True)
    assert [case.get("failed") for case in result["cases"]] == [None, *["out of memory"] * 3]
    assert (tmp_path / "peers_2x12_100n400e.png").exists()


def test_a_failing_case_is_named_and_the_others_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends(monkeypatch, {**dict.fromkeys(("zoo", "zoo_plain", "pyg_plain"), RIGHT), "pyg": RunError("E: no")})
    with pytest.raises(RunError, match=r"^pyg, rev_deep, 2 layers .*, 1 part: E: no\n.*peers_2x12.*json: holds"):
        run_suite("peers", TINY, tmp_path, device="cpu", quiet=True)
    kept = json.loads((tmp_path / "peers_2x12_100n400e.json").read_text())["cases"]
    assert [case.get("median_step_s") for case in kept] == [1.0, None, 1.0, 1.0]


def test_files_are_named_after_what_differs_from_the_usual() -> None:
    peers, true_size = SUITES["peers"].base, SUITES["true_size"].base
    assert file_stem("peers", peers, "cpu") == "peers"
    assert file_stem("true_size", true_size, "cuda") == "gpu_true_size"
    assert file_stem("peers", peers.model_copy(update={"num_layers": 7, "channels": 224}), "cpu") == "peers_7x224"
    half = peers.model_copy(update={"settings": ("train.precision=bf16",)})
    assert file_stem("peers", half, "cpu") == "peers_train.precision=bf16"


def test_true_size_holds_both_models_the_peer_and_the_whole_graph() -> None:
    cases = list(SUITES["true_size"].cases(SUITES["true_size"].base))
    assert {(case.num_nodes, case.num_edges) for case in cases} == {(132_534, 79_122_504)}
    told = [(c.implementation, c.recipe, c.num_layers, c.channels, c.num_parts, c.num_steps, c.work) for c in cases]
    assert told == [
        ("zoo", "rev_deep", 1001, 80, 10, 3, "train"),
        ("pyg", "rev_deep", 1001, 80, 10, 2, "train"),
        ("zoo", "rev_wide", 448, 224, 10, 3, "train"),
        ("zoo", "rev_deep", 1001, 80, 1, 1, "train"),
        ("zoo", "rev_deep", 1001, 80, 1, 1, "evaluate"),
    ]
    assert len({case.label for case in cases}) == 5


def test_a_line_through_points_on_a_line_is_that_line() -> None:
    trend = Trend("num_edges", 1_000_000, "median_step_s")
    rows = [
        {"implementation": "zoo", "num_edges": edges, "median_step_s": 0.5 + 2e-6 * edges}
        for edges in (100_000, 200_000, 800_000)
    ]
    failed = {"implementation": "zoo", "num_edges": 10**9, "failed": "out of memory"}
    (line,) = fit_lines([*rows, failed, {**rows[0], "implementation": "pyg"}], trend)
    assert (line["implementation"], line["over"], line["per"]) == ("zoo", "num_edges", 1_000_000)
    assert (line["slope"], line["intercept"], line["r2"]) == pytest.approx((2.0, 0.5, 1.0))
    bent = [*rows, {"implementation": "zoo", "num_edges": 400_000, "median_step_s": 3.0}]
    assert fit_lines(bent, trend)[0]["r2"] < 0.9


@pytest.mark.parametrize("suite", sorted(SUITES))
def test_every_suite_can_be_drawn(suite: str) -> None:
    base = SUITES[suite].base.model_copy(update={**SIZES, "num_layers": 32})
    rows: list[dict[str, Any]] = [
        {
            **case.model_dump(),
            "median_step_s": 1.0 + index,
            "epoch_s": 2.0 + index,
            "peak_bytes": 1e6 * (index + 1),
            "state_bytes": 1e6,
            "part_bytes": 2e6,
        }
        for index, case in enumerate(SUITES[suite].cases(base))
    ]
    trend = SUITES[suite].trend
    result = {
        "suite": suite,
        "summary": "s",
        "date": "2026-01-01",
        "environment": ENVIRONMENT,
        "cases": rows,
        "fits": [] if trend is None else fit_lines(rows, trend),
    }
    assert plot(result).startswith(b"\x89PNG")
    if len(rows) > 1:
        rows[-1] = {**SUITES[suite].base.model_dump(), "implementation": "pyg", "failed": "out of memory"}
        assert plot(result).startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["memory", "peers", "peers_7x224", "peer_memory", "depth", "edges", "ops"])
def test_committed_results_can_be_drawn_again(name: str, tmp_path: Path) -> None:
    result = json.loads((RESULTS / f"{name}.json").read_text())
    if name == "ops":
        runpy.run_path(str(RESULTS.parent / "ops.py"))["plot"](result, tmp_path / "ops.png")
        assert (tmp_path / "ops.png").read_bytes().startswith(b"\x89PNG")
    else:
        assert plot(result).startswith(b"\x89PNG")
