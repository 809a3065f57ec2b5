"""The keys of a recipe that are about a GPU: they are obeyed, and without one training goes on as before."""

import contextlib
import dataclasses

import pytest
import torch

from tests.workflows.small import recipe_data, write_graph
from zoo.errors import ZooWarning
from zoo.spec.recipe import parse_recipe
from zoo.workflows import train
from zoo.workflows.graphs import place_graph, recipe_graph


@pytest.fixture
def data(tmp_path):
    return recipe_data(write_graph(tmp_path / "graph.npz"))


def test_a_recipe_may_ask_for_captured_layers(data, tmp_path):
    losses = []
    for capture in (False, True):
        data["train"] |= {"capture": capture, "num_epochs": 1}
        with pytest.warns(ZooWarning, match="CUDA graphs need a GPU") if capture else contextlib.nullcontext():
            results = train.train(parse_recipe(data, where="a test"), tmp_path / str(capture), device="cpu", quiet=True)
        losses.append(results.results)
    assert losses[0] == losses[1]


def test_edge_features_are_halved_on_a_gpu_alone_and_only_if_asked_for(data, monkeypatch):
    graph, _ = recipe_graph(parse_recipe(data, where="a test"))
    if graph.edge_attr is None:
        graph = dataclasses.replace(graph, edge_attr=torch.rand(graph.num_edges, 3))
    # A GPU without room leaves the graph where it is.
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert place_graph(graph, gpu).edge_attr is graph.edge_attr
    assert place_graph(graph, cpu, "fp16").edge_attr is graph.edge_attr
    halved = place_graph(graph, gpu, "fp16").edge_attr
    assert halved.dtype == torch.float16
    torch.testing.assert_close(halved.float(), graph.edge_attr, rtol=0, atol=2.5e-4)
