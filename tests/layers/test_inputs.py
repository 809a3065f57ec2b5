"""The inputs of blocks, made from what a user has."""

import re

import pytest
import torch

from tests.layers.graphs import random_csr
from zoo.layers import BlockInputs

EDGE_INDEX = torch.tensor([[0, 1, 2, 0], [2, 0, 1, 1]])


def test_edge_features_follow_their_edges():
    attr = torch.arange(8.0).view(4, 2)
    inputs = BlockInputs.from_edges(EDGE_INDEX, attr, num_nodes=3)
    found = {}
    for target in range(3):
        for position in range(int(inputs.csr.rowptr[target]), int(inputs.csr.rowptr[target + 1])):
            found[int(inputs.csr.col[position]), target] = inputs.edges.attr[position].tolist()
    assert found == {(0, 2): [0, 1], (1, 0): [2, 3], (2, 1): [4, 5], (0, 1): [6, 7]}
    assert BlockInputs.from_edges(EDGE_INDEX, num_nodes=3).edges is None


def test_rows_may_be_given_already():
    csr, attr = random_csr(5, 9), torch.rand(9, 2)
    inputs = BlockInputs.from_edges(csr, attr, num_nodes=5)
    assert inputs.csr is csr
    assert inputs.edges.attr is attr


@pytest.mark.parametrize(
    ("edge_index", "attr", "message"),
    [
        (EDGE_INDEX.t(), None, "edge_index: expected integers of shape (2, E)"),
        (EDGE_INDEX + 1, None, "edge_index: node ids must be in 0..2, got 1..3"),
        (EDGE_INDEX, torch.rand(3, 2), "edge_attr: expected [4, D], got [3, 2]"),
        (EDGE_INDEX, torch.rand(4), "edge_attr: expected [4, D], got [4]"),
    ],
)
def test_inputs_that_do_not_fit_are_named_in_one_line(edge_index, attr, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        BlockInputs.from_edges(edge_index, attr, num_nodes=3)
    assert "\n" not in str(caught.value)
