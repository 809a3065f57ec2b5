"""The command that measures what fits a machine; tasks run in this process but where processes are the point."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.workflows.small import small_recipe
from zoo.errors import OutOfMemoryError, RunError
from zoo.spec.recipe import read_recipe
from zoo.spec.shipped import recipe_path
from zoo.workflows import bench as bench_module
from zoo.workflows.bench import bench
from zoo.workflows.step_cost import StepCost, measure_training
from zoo.workflows.worker import Task, work


def in_this_process(monkeypatch: pytest.MonkeyPatch, errors: dict[int, RunError]) -> list[Any]:
    """Work here; tasks of some depths fail instead."""
    requests = []

    def run_tasks(tasks: list[Task], **_: Any) -> Iterator[tuple[Task, dict[str, Any] | RunError]]:
        for task in tasks:
            request: Any = task.request
            requests.append(request)
            yield task, errors.get(request.recipe.model.num_layers) or work(request)

    monkeypatch.setattr(bench_module, "run_tasks", run_tasks)
    return requests


def test_each_depth_is_measured_with_fresh_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = in_this_process(monkeypatch, {})
    recipes = [small_recipe(tmp_path, model__num_layers=number) for number in (2, 4)]
    results = bench(recipes, num_steps=2, device="cpu", quiet=True)
    assert [row.num_layers for row in results.rows] == [2, 4]
    shallow, deep = (row.cost for row in results.rows)
    assert shallow is not None
    assert deep is not None
    assert len(deep.step_s) == 2
    assert shallow.num_parameters < deep.num_parameters
    assert all(request.folder is None for request in requests)
    assert list(tmp_path.glob("*")) == [tmp_path / "multiclass.npz"]


def test_running_out_of_memory_is_a_row_and_any_other_fault_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = [small_recipe(tmp_path, model__num_layers=number) for number in (2, 4)]
    in_this_process(monkeypatch, {4: OutOfMemoryError("4 layers: stopped by SIGKILL, out of memory?")})
    first, second = bench(recipes, device="cpu", quiet=True).rows
    assert first.cost is not None
    assert second.cost is None
    in_this_process(monkeypatch, {4: RunError("4 layers: no")})
    with pytest.raises(RunError, match="4 layers: no"):
        bench(recipes, device="cpu", quiet=True)


def test_a_random_graph_is_as_large_as_the_data_set_unless_other_sizes_are_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[Any] = []

    def run_tasks(tasks: list[Task], **_: Any) -> list[tuple[Task, dict[str, Any]]]:
        sizes.extend(task.request.graph_size for task in tasks)  # type: ignore[attr-defined]
        return []

    monkeypatch.setattr(bench_module, "run_tasks", run_tasks)
    recipe = read_recipe(recipe_path("rev_deep"))
    for options in ({}, {"num_nodes": 100, "num_edges": 400}, {"num_edges": 800}):
        bench([recipe], random_graph=True, device="cpu", quiet=True, **options)
    bench([recipe], device="cpu", quiet=True)
    assert sizes == [(132_534, 79_122_504), (100, 400), (132_534, 800), None]


def test_options_of_the_device_reach_the_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def measure(*_: Any, **options: Any) -> StepCost:
        seen.append(options)
        return measure_training(*_, **{**options, "capture": False, "edge_precision": "fp32"})

    monkeypatch.setattr("zoo.workflows.worker.measure_training", measure)
    in_this_process(monkeypatch, {})
    bench([small_recipe(tmp_path)], num_steps=1, capture=True, edge_precision="fp16", device="cpu", quiet=True)
    assert seen == [{"num_steps": 1, "capture": True, "edge_precision": "fp16"}]
