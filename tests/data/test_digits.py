import numpy as np
import pytest
import torch

from zoo.data.datasets import load_graph
from zoo.data.graph import Graph, validate
from zoo.data.published import digits_graph
from zoo.workflows.baseline import linear_baseline


@pytest.fixture(scope="module")
def digits() -> Graph:
    return load_graph("digits")


def test_digits_link_similar_images(digits: Graph) -> None:
    validate(digits)
    assert digits.undirected
    assert digits.num_nodes == 1797
    assert 9_900 < digits.num_edges < 9_960
    source, target = digits.edge_index.long()
    assert bool((source < target).all())
    same = (digits.y[source] == digits.y[target]).float().mean()
    assert 0.95 < same < 0.97


def test_every_image_has_its_nearest_as_neighbors(digits: Graph) -> None:
    assert digits.x is not None
    distance = torch.cdist(digits.x.double(), digits.x.double())
    distance.fill_diagonal_(float("inf"))
    farthest_of_nearest = distance.kthvalue(8, dim=1).values
    source, target = digits.edge_index.long()
    linked = distance[source, target]
    assert bool((linked <= torch.maximum(farthest_of_nearest[source], farthest_of_nearest[target]) + 1e-9).all())
    assert int(torch.bincount(torch.cat([source, target])).min()) >= 8


def test_edge_features_say_how_similar(digits: Graph) -> None:
    assert digits.x is not None
    assert digits.edge_attr is not None
    source, target = digits.edge_index.long()
    distance, gaussian, cosine, mutual, rank = digits.edge_attr.T
    torch.testing.assert_close(distance, (digits.x[source] - digits.x[target]).norm(dim=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cosine, torch.cosine_similarity(digits.x[source], digits.x[target]))
    assert np.corrcoef(distance.numpy(), gaussian.numpy())[0, 1] < -0.9
    assert set(mutual.tolist()) == {0.0, 1.0}
    assert set(rank.tolist()) == {i / 8 for i in range(1, 9)}


def test_each_split_trains_on_ten_images_per_digit(digits: Graph) -> None:
    assert len(digits.splits) == 10
    for split in digits.splits:
        assert torch.bincount(digits.y[split.train]).tolist() == [10] * 10
        assert (len(split.valid), len(split.test)) == (500, 1197)
    assert len({tuple(split.train.tolist()) for split in digits.splits}) == 10


def test_the_graph_is_the_same_every_time(digits: Graph) -> None:
    again = digits_graph()
    assert torch.equal(digits.edge_index, again.edge_index)
    assert torch.equal(digits.splits[3].train, again.splits[3].train)


def test_linear_baseline_scores_about_090(digits: Graph) -> None:
    scores = [linear_baseline(digits, split, "accuracy")["test"] for split in digits.splits[:3]]
    assert np.mean(scores) == pytest.approx(0.90, abs=0.02)
