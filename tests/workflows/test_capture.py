"""Options of a run for a GPU: they are obeyed, change nothing of a run's identity, and without a GPU do nothing."""

import dataclasses
import json
import warnings

import pytest
import torch

from tests.workflows.small import recipe_data, write_graph
from zoo.errors import ZooWarning
from zoo.hub.config import read_config
from zoo.spec.recipe import parse_recipe
from zoo.workflows import train
from zoo.workflows.export import export
from zoo.workflows.graphs import place_graph, recipe_graph
from zoo.workflows.run_dir import RunDir
from zoo.workflows.session import StoppedError, StopRequest


@pytest.fixture
def data(tmp_path):
    return recipe_data(write_graph(tmp_path / "graph.npz"))


def test_a_run_may_ask_for_captured_layers(data, tmp_path):
    recipe = parse_recipe(data, where="a test")
    plain = train.train(recipe, tmp_path / "plain", device="cpu", quiet=True)
    with pytest.warns(ZooWarning, match="CUDA graphs need a GPU"):
        captured = train.train(recipe, tmp_path / "captured", device="cpu", capture=True, quiet=True)
    assert captured.results == plain.results


def test_a_run_begun_with_options_goes_on_without_them(data, tmp_path, monkeypatch):
    recipe = parse_recipe(data, where="a test")
    whole = train.train(recipe, tmp_path / "whole", device="cpu", quiet=True)
    options = {"capture": True, "edge_precision": "fp16"}
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", ZooWarning)
        # As if a signal had come before the first step.
        patch.setattr(StopRequest, "__bool__", lambda self: True)
        patch.setattr(StopRequest, "name", "SIGTERM")
        with pytest.raises(StoppedError):
            train.train(recipe, tmp_path / "run", device="cpu", quiet=True, **options)
    assert train.train(recipe, tmp_path / "run", device="cpu", resume=True, quiet=True).results == whole.results


def test_runs_bundles_and_recipes_of_an_earlier_version_are_read(data, finished_run, tmp_path):
    recipe = RunDir(finished_run).recipe()
    folder, _ = export(finished_run, tmp_path / "bundle")
    config, bundled = json.loads((folder / "config.json").read_text()), read_config(folder).recipe
    for values in ({"capture": False, "edge_precision": "fp32"}, {"capture": True}, {"edge_precision": "fp16"}):
        as_before = recipe.to_json()
        as_before["schema_version"] = 1
        as_before["train"] |= values
        in_bundle = as_before | {"data": config["recipe"]["data"]}
        (folder / "config.json").write_text(json.dumps(config | {"recipe": in_bundle}))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert parse_recipe(as_before, where="old.json") == recipe
            assert read_config(folder).recipe == bundled
        told = [str(warning.message).partition(": ")[2] for warning in caught]
        assert len(told) == 2 * sum(value not in (False, "fp32") for value in values.values())
        assert all("is not a key any more and is ignored; use --" in line for line in told)


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
