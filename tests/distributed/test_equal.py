"""The number of processes changes no bit of a result, in any family, with labels, teachers and stops in between."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.distributed.jobs import launch, train_all
from tests.workflows.small import changed, recipe_data, write_graph
from tests.workflows.test_resume import outcome
from zoo.workflows.run_dir import RunDir

# Steps of four parts and of one.
SHARED = {
    "train__partition": {"type": "random", "num_parts": 5},
    "train__parts_per_step": 4,
    "train__num_epochs": 2,
    "eval__num_views": 1,
    "eval__partition": {"type": "random", "num_parts": 3},
}
REUSE = {"train__label_reuse": {"mask_rate": 0.5, "num_iters": 1}, "train__loss": "log_cross_entropy"}
SAGE = {"type": "sage"}
SOLVER = {"type": "anderson", "tol": 1e-2, "max_iters": 5}
MODELS: dict[str, dict[str, Any]] = {
    "rev": {"model__norm": "batch"},
    "res": {"model": {"type": "res", "num_layers": 3, "hidden_channels": 8, "conv": SAGE}},
    "deq": {
        "model": {
            "type": "deq",
            "hidden_channels": 8,
            "conv": SAGE,
            "solver": SOLVER,
            "weight_norm": "spectral",
        }
    },
    "rev_gat": {"model": {"type": "rev_gat", "num_layers": 3, "hidden_channels": 8, "num_heads": 2}},
    "gcnii": {"model": {"type": "gcnii", "num_layers": 3, "hidden_channels": 8}},
    "weight_tied": {"model__num_distinct_layers": 1},
    "label_reuse": {**REUSE, "model__norm": "batch"},
    "distillation": {**REUSE, "train__distillation": {"alpha": 0.9, "temperature": 0.7}},
    # Of 90 nodes 40 are learned from, so that several parts have none, and some steps more or fewer parts than others.
    "small_parts": {
        "train__partition": {"type": "random", "num_parts": 45},
        "train__parts_per_step": 11,
        "train__num_epochs": 1,
    },
    # Stubs find other clusters on each rank.
    "clusters": {
        "train__partition": {"type": "metis", "num_parts": 5, "num_clusters": 15},
        "eval__partition": {"type": "metis", "num_parts": 3, "num_clusters": 9},
    },
    "skipping": {"train__on_nonfinite": "skip"},
}
STOPS = {"stopped": ("training_step", 3), "stopped_late": ("autocast", 8)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of 1, 2 and 4 processes; two of those that 2 have stopped are continued by 4."""
    base = tmp_path_factory.getbasetemp()
    # The processes in which pytest runs tests share a folder, and one of them trains for all.
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "equal"
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            train_runs(folder)
            (folder / "done").touch()
    return folder


def train_runs(folder: Path) -> None:
    data = recipe_data(write_graph(folder / "graph.npz"))
    recipes = {name: changed(data, **{**SHARED, **places}) for name, places in MODELS.items()}
    recipes |= dict.fromkeys(STOPS, recipes["rev"])
    assert launch(1, train_all, recipes, folder / "1", {}, folder=folder) == [0]
    assert launch(2, train_all, recipes, folder / "2", STOPS, folder=folder) == [0, 0]
    for name in STOPS:
        assert RunDir(folder / "2" / name).results() is None
        (folder / "4").mkdir(exist_ok=True)
        (folder / "2" / name).rename(folder / "4" / name)
    assert launch(4, train_all, recipes, folder / "4", {}, folder=folder) == [0] * 4


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("world_size", [2, 4])
def test_a_shared_run_ends_like_that_of_one_process(name: str, world_size: int, folder: Path) -> None:
    assert outcome(folder / str(world_size) / name) == outcome(folder / "1" / name)
    if name == "distillation":
        assert outcome(folder / str(world_size) / name / "teacher") == outcome(folder / "1" / name / "teacher")


@pytest.mark.parametrize("name", STOPS)
def test_a_run_may_be_continued_by_another_number_of_processes(name: str, folder: Path) -> None:
    assert outcome(folder / "4" / name) == outcome(folder / "1" / "rev")


def test_the_runs_differ_from_each_other(folder: Path) -> None:
    assert len({str(outcome(folder / "1" / name)[0]) for name in MODELS}) >= len(MODELS) - 1
