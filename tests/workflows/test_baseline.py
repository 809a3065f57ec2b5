import pytest
import torch

from tests.data.conftest import small_graph
from zoo.data.graph import Graph, Split
from zoo.errors import DataError
from zoo.workflows import baseline
from zoo.workflows.baseline import linear_baseline

NAN = float("nan")


def separable(task: str, num_nodes: int = 400) -> Graph:
    """Labels are signs and maxima of noisy features."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_nodes, 3, generator=generator)
    noisy = x + 0.1 * torch.randn(num_nodes, 3, generator=generator)
    y = {"multilabel": (noisy > 0).float(), "multiclass": noisy.argmax(1), "binary": (noisy[:, 0] > 0).long()}[task]
    order = torch.randperm(num_nodes, generator=generator)
    return small_graph(
        x=x * torch.tensor([1e-3, 1.0, 1e3]) + 7,
        y=y,
        num_nodes=num_nodes,
        categories=None,
        splits=(Split(order[:200], order[200:300], order[300:]),),
        task=task,
        num_tasks=1 if task == "binary" else 3,
    )


@pytest.mark.parametrize(
    ("task", "metric"),
    [("multilabel", "rocauc"), ("multilabel", "micro_f1"), ("multiclass", "accuracy"), ("binary", "rocauc")],
)
def test_it_learns_what_the_features_tell(task: str, metric: str) -> None:
    graph = separable(task)
    scores = linear_baseline(graph, graph.splits[0], metric)
    assert scores.keys() == {"valid", "test"}
    assert min(scores.values()) > 0.85


def test_unlabeled_nodes_are_left_out() -> None:
    graph = separable("multilabel")
    graph.y[graph.splits[0].train[:100]] = NAN
    assert linear_baseline(graph, graph.splits[0], "rocauc")["test"] > 0.9


def test_labels_without_contrast_are_no_obstacle() -> None:
    graph, split = separable("multilabel"), separable("multilabel").splits[0]
    graph.y[split.train, 0] = 1
    assert 0.7 < linear_baseline(graph, split, "rocauc")["test"] < 0.9
    graph = separable("multiclass")
    split = graph.splits[0]
    # Without examples of class 2 a third of the nodes is lost, the others are not.
    graph.y[split.train] = torch.where(graph.y[split.train] == 2, -1, graph.y[split.train])
    assert 0.5 < linear_baseline(graph, split, "accuracy")["test"] < 0.75


def test_many_train_nodes_are_thinned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    fit = baseline._logits
    monkeypatch.setattr(baseline, "MAX_TRAIN_NODES", 60)
    monkeypatch.setattr(baseline, "_logits", lambda x, *rest: (sizes.append(len(x)), fit(x, *rest))[1])
    graph = separable("multiclass")
    assert linear_baseline(graph, graph.splits[0], "accuracy")["test"] > 0.8
    assert sizes == [50]


def test_what_cannot_be_scored_is_refused() -> None:
    graph = separable("multiclass")
    with pytest.raises(DataError, match="does not fit a multiclass task"):
        linear_baseline(graph, graph.splits[0], "rocauc")
    with pytest.raises(DataError, match="needs node features"):
        linear_baseline(small_graph(x=None), graph.splits[0], "accuracy")
