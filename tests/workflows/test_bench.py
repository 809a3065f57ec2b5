"""Benchmarks of training steps, at sizes that take no time."""

import json
import runpy
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workflows.small import recipe_data, write_graph
from zoo.cli.bench import SUITES as OFFERED
from zoo.errors import RunError
from zoo.workflows.bench import SUITES, base_case, run, run_suite, worker
from zoo.workflows.bench.case import Case, build, draw_graph, read_case_recipe
from zoo.workflows.bench.draw import draw
from zoo.workflows.bench.fit import fit_lines
from zoo.workflows.bench.suites import Trend
from zoo.workflows.bench.worker import measure
from zoo.workflows.train import epoch_parts

# PyTorch Geometric uses what PyTorch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

CPU = torch.device("cpu")
TINY = Case(num_layers=2, channels=12, num_nodes=50, num_edges=400, num_steps=2)
SIZES = {"num_layers": 2, "channels": 12, "num_nodes": 50, "num_edges": 400}
ENVIRONMENT = {"device": "x", "num_threads": 2, "torch": "2"}


def with_fields(**fields: Any) -> Case:
    return TINY.model_copy(update=fields)


@pytest.mark.parametrize("implementation", ["zoo", "zoo_plain", "pyg", "pyg_plain"])
def test_each_implementation_is_timed(implementation: str) -> None:
    found = measure(with_fields(implementation=implementation), device=CPU, watch_memory=False)
    assert len(found["step_s"]) == 2
    assert found["median_step_s"] > 0
    assert found["num_parameters"] > 0
    assert "peak_bytes" not in found


def test_an_epoch_is_all_its_parts_and_what_it_takes_to_make_them() -> None:
    found = measure(with_fields(num_parts=4, num_steps=2), device=CPU, watch_memory=False)
    assert found["num_parts"] == 4
    assert found["epoch_s"] == pytest.approx(found["partition_s"] + 2 * sum(found["step_s"]))
    assert found["partition_s"] > 0


def test_drawing_and_sorting_a_partition_is_part_of_making_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*args: Any) -> Any:
        time.sleep(0.05)
        return epoch_parts(*args)

    monkeypatch.setattr(worker, "epoch_parts", slow)
    found = measure(with_fields(num_parts=2), device=CPU, watch_memory=False)
    assert found["partition_s"] >= 0.05


def test_the_bytes_that_stay_are_counted() -> None:
    found = measure(TINY, device=CPU, watch_memory=True)
    # Weights, gradients and the two moments of Adam, which also counts the steps of each parameter.
    tensors = len(list(build(TINY, read_case_recipe(TINY), draw_graph(50, 400, 0).shape).parameters()))
    assert found["state_bytes"] == 16 * found["num_parameters"] + 4 * tensors
    # Ids, 16 node features, row starts; source and 8 features of every edge.
    assert found["part_bytes"] == 50 * (8 + 64) + 51 * 8 + 400 * (4 + 32)
    assert found["graph_bytes"] == 0


def test_the_whole_graph_is_evaluated_in_one_part() -> None:
    found = measure(with_fields(work="evaluate"), device=CPU, watch_memory=True)
    assert found["epoch_s"] == pytest.approx(sum(found["step_s"]) / 2)
    assert found["state_bytes"] == 4 * found["num_parameters"]


def test_the_graph_has_the_sizes_asked_for_and_is_the_same_each_time() -> None:
    graph = draw_graph(50, 400, 0)
    assert (graph.num_nodes, graph.num_edges, graph.undirected) == (50, 200, True)
    assert torch.equal(graph.edge_attr, draw_graph(50, 400, 0).edge_attr)
    assert graph.edge_attr.min() == pytest.approx(0.001)
    assert graph.edge_attr.max() <= 1
    assert 0 <= graph.edge_index.min() <= graph.edge_index.max() < 50


def test_about_six_in_ten_edge_features_say_no_evidence() -> None:
    edge_attr = draw_graph(50, 20_000, 0).edge_attr
    assert (edge_attr == edge_attr.min()).float().mean() == pytest.approx(0.6, abs=0.01)


def test_peers_differ_in_memory_and_not_in_depth_or_width() -> None:
    shape = draw_graph(50, 400, 0).shape
    cases = [with_fields(implementation=name) for name in ("zoo", "pyg")]
    ours, theirs = (build(case, read_case_recipe(case), shape) for case in cases)
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
    with pytest.raises(RunError, match="rev_deep: PyG's side is written for models like rev_deep's"):
        build(case, read_case_recipe(case), draw_graph(50, 400, 0).shape)


def test_a_suite_writes_what_it_measured(tmp_path: Path) -> None:
    result = run_suite("step", TINY, tmp_path / "results", device="cpu", num_steps=1, quiet=True)
    stem = "step_2x12_50n400e"
    assert result["file"] == stem
    assert json.loads((tmp_path / "results" / f"{stem}.json").read_text()) == result
    assert (tmp_path / "results" / f"{stem}.png").read_bytes().startswith(b"\x89PNG")
    (case,) = result["cases"]
    assert (case["num_layers"], case["num_edges"], len(case["step_s"])) == (2, 400, 1)
    assert result["environment"]["torch"]


def worker_that(monkeypatch: pytest.MonkeyPatch, answers: dict[str, tuple[int, str, str]]) -> None:
    """Put canned ends of a worker in place of workers: exit code, stdout and stderr by implementation."""

    def answer(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, *answers[json.loads(command[-1])["case"]["implementation"]])

    monkeypatch.setattr(run.subprocess, "run", answer)


RIGHT = (0, '{"median_step_s": 1.0, "epoch_s": 1.0, "num_nodes": 50}', "")


def test_running_out_of_memory_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = {
        "zoo": RIGHT,
        "pyg": (1, "", "Traceback\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20 GiB\n"),
        "zoo_plain": (-9, "", ""),
        "pyg_plain": (1, "", "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    }
    worker_that(monkeypatch, ends)
    result = run_suite("peers", TINY, tmp_path, device="cpu", quiet=True)
    assert [case.get("failed") for case in result["cases"]] == [None, *["out of memory"] * 3]
    assert (tmp_path / "peers_2x12_50n400e.png").exists()


def test_a_failing_case_is_named_and_the_others_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker_that(monkeypatch, {**dict.fromkeys(("zoo", "zoo_plain", "pyg_plain"), RIGHT), "pyg": (1, "", "a\nE: no\n")})
    with pytest.raises(RunError, match=r"^pyg, 2 layers of 12 channels, 1 part: E: no\n.*peers_2x12.*json: holds"):
        run_suite("peers", TINY, tmp_path, device="cpu", quiet=True)
    kept = json.loads((tmp_path / "peers_2x12_50n400e.json").read_text())["cases"]
    assert [case.get("median_step_s") for case in kept] == [1.0, None, 1.0, 1.0]


def test_files_are_named_after_what_differs_from_the_usual() -> None:
    assert run.file_stem("peers", base_case("peers", {}), "cpu") == "peers"
    assert run.file_stem("true_size", base_case("true_size", {}), "cuda") == "gpu_true_size"
    wide = base_case("peers", {"num_layers": 7, "channels": 224})
    assert run.file_stem("peers", wide, "cpu") == "peers_7x224"
    own = base_case("memory", {}, recipe="rev_80", settings=["train.precision=bf16"])
    assert run.file_stem("memory", own, "cpu") == "memory_rev_80_train.precision=bf16"


def test_a_recipe_brings_its_own_model_and_data(tmp_path: Path) -> None:
    data = recipe_data(write_graph(tmp_path / "graph.npz", task="multilabel"), task="multilabel")
    path = tmp_path / "small.json"
    path.write_text(json.dumps(data))
    case = base_case("step", {"num_layers": 5}, recipe=str(path))
    assert (case.num_layers, case.channels, case.num_parts, case.num_nodes) == (5, 8, 2, None)
    found = measure(case, device=CPU, watch_memory=False)
    assert (found["num_nodes"], found["num_parts"]) == (90, 2)
    assert len(found["step_s"]) == 3


def test_suites_of_synthetic_graphs_refuse_a_recipe() -> None:
    with pytest.raises(RunError, match="bench edges: measures synthetic graphs of its own; leave --recipe out"):
        base_case("edges", {}, recipe="rev_80")
    with pytest.raises(RunError, match="deq_64: has no number of layers"):
        base_case("depth", {}, recipe="deq_64")


def test_true_size_holds_both_models_the_peer_and_the_whole_graph() -> None:
    cases = list(SUITES["true_size"].cases(SUITES["true_size"].base))
    assert {(case.num_nodes, case.num_edges) for case in cases} == {(132_534, 79_122_504)}
    told = [(c.implementation, c.recipe, c.num_layers, c.channels, c.num_parts, c.num_steps, c.work) for c in cases]
    assert told == [
        ("zoo", "rev_deep", 1001, 80, 10, 10, "train"),
        ("pyg", "rev_deep", 1001, 80, 10, 2, "train"),
        ("zoo", "rev_wide", 448, 224, 10, 3, "train"),
        ("zoo", "rev_deep", 1001, 80, 1, 1, "train"),
        ("zoo", "rev_deep", 1001, 80, 1, 1, "evaluate"),
    ]


def test_the_command_offers_every_suite() -> None:
    assert set(OFFERED) == set(SUITES)


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
    base = base_case(suite, {**SIZES, "num_layers": 32})
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
    assert draw(result).startswith(b"\x89PNG")
    if len(rows) > 1:
        rows[-1] = {**SUITES[suite].base.model_dump(), "implementation": "pyg", "failed": "out of memory"}
        assert draw(result).startswith(b"\x89PNG")


def test_the_estimates_for_a_gpu_are_those_that_the_script_computes() -> None:
    folder = Path(__file__).parents[2] / "benchmarks"
    assert runpy.run_path(str(folder / "estimate.py"))["table"]() == (folder / "gpu.md").read_text()


def test_what_was_measured_on_a_gpu_stands_beside_the_estimate(tmp_path: Path) -> None:
    deep = {"implementation": "zoo", "recipe": "rev_deep", "num_parts": 10, "work": "train"}
    found = {"epoch_s": 4.0, "partition_s": 0.1, "state_bytes": 3e8, "part_bytes": 3e7, "peak_bytes": 1e8}
    rows = [{**deep, **found}, {**deep, "implementation": "pyg", "failed": "out of memory"}]
    path = tmp_path / "gpu_true_size.json"
    path.write_text(json.dumps({"cases": rows}))
    script = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "estimate.py"))
    script["table"].__globals__["RESULTS"] = path
    lines = {line.split(" | ")[0]: line for line in script["table"]().splitlines()}
    assert lines["| RevGNN-Deep, training epoch, 10 parts"].endswith("| 4.00 s |")
    assert lines["| the same in PyG"].endswith("| out of memory |")
    assert lines["| share of partitioning"].endswith("| 2.50% |")
    assert lines["| RevGNN-Deep, memory of a step"].endswith("| 0.43 GB |")
    assert lines["| RevGNN-Wide, memory of a step"].endswith("| not measured |")
