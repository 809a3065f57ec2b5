"""The command that measures what fits a machine; tasks run in this process but where processes are the point."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.workflows.small import small_recipe
from zoo.errors import OutOfMemoryError, RunError
from zoo.spec.recipe import read_recipe
from zoo.spec.shipped import recipe_path
from zoo.workflows import bench as bench_module
from zoo.workflows.bench import bench
from zoo.workflows.processes import Task
from zoo.workflows.worker import work


def in_this_process(monkeypatch: pytest.MonkeyPatch, errors: dict[int, RunError]) -> list[Any]:
    """Work here; tasks of some depths fail instead."""
    requests = []

    def run_tasks(tasks: list[Task], *, on_done: Callable[..., None], on_error: Callable[..., None], **_: Any) -> bool:
        for task in tasks:
            request: Any = task.request
            requests.append(request)
            error = errors.get(request.recipe.model.num_layers)
            on_done(task, work(request), ()) if error is None else on_error(task, error)
        return True

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

    def run_tasks(tasks: list[Task], **_: Any) -> bool:
        sizes.extend(task.request.graph_size for task in tasks)  # type: ignore[attr-defined]
        return True

    monkeypatch.setattr(bench_module, "run_tasks", run_tasks)
    recipe = read_recipe(recipe_path("rev_deep"))
    for options in ({}, {"num_nodes": 100, "num_edges": 400}, {"num_edges": 800}):
        bench([recipe], random_graph=True, device="cpu", quiet=True, **options)
    bench([recipe], device="cpu", quiet=True)
    assert sizes == [(132_534, 79_122_504), (100, 400), (132_534, 800), None]
