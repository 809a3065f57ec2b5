"""The recipes of RevGAT, as the authors trained it, on a small graph in the format of ogbn-arxiv."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.ogb_files import write_random_arxiv, write_random_products
from tests.workflows.small import small_recipe
from zoo.data.graph import directed_edges
from zoo.errors import DataError
from zoo.layers.conv import RevGATConv
from zoo.models.factory import build_model
from zoo.ops.csr import csr_from_edge_index
from zoo.spec.recipe import Recipe, read_recipe
from zoo.spec.shape import GraphShape
from zoo.spec.shipped import recipe_path
from zoo.workflows import session
from zoo.workflows.evaluate import evaluate
from zoo.workflows.graphs import graph_digest, recipe_graph
from zoo.workflows.load import load
from zoo.workflows.run_dir import RunDir
from zoo.workflows.train import train

NAMES = ["rev_gat_arxiv", "rev_gat_arxiv_kd", "rev_gat_wide_arxiv"]
NUM_NODES = 90


@pytest.fixture(scope="module")
def ogb_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ogb")
    write_random_arxiv(root, NUM_NODES, num_edges=300)
    write_random_products(root, NUM_NODES, num_edges=300)
    return root


def shipped(name: str, *overrides: str) -> Recipe:
    return read_recipe(recipe_path(name), overrides)


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_and_is_evaluated(name: str, ogb_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_DATA", str(ogb_root))
    recipe = shipped(name, "train.num_epochs=3", "model.hidden_channels=24")
    results = train(recipe, tmp_path / "run", device="cpu", quiet=True)
    records = RunDir(tmp_path / "run").metrics()
    assert [record["lr"] for record in records] == pytest.approx([0.002 / 50, 0.002 * 2 / 50, 0.002 * 3 / 50])
    losses = [record["valid_loss"] for record in records]
    assert results.best_epoch == 1 + losses.index(min(losses))
    # 128 features and a column for each of 40 labels.
    assert load(tmp_path / "run").zoo_info.shape.num_node_features == 168
    again = {c.figure.split: c.figure.value for c in evaluate(tmp_path / "run", device="cpu", quiet=True)}
    assert again == {figure.split: figure.value for figure in results.results}
    assert (results.teacher is not None) == name.endswith("_kd")
    assert (tmp_path / "run/teacher/results.json").exists() == name.endswith("_kd")


def test_the_recipes_say_what_the_authors_did() -> None:
    plain, distilled, wide = (shipped(name) for name in NAMES)
    assert plain.data.undirected
    assert plain.data.self_loops
    train_spec, model = plain.train, plain.model
    assert (train_spec.num_epochs, train_spec.loss, train_spec.optimizer.type) == (2000, "log_cross_entropy", "rmsprop")
    assert (train_spec.optimizer.lr, train_spec.schedule.num_warmup_epochs) == (0.002, 50)
    assert plain.eval.select == "loss"
    assert train_spec.label_reuse is not None
    assert (train_spec.label_reuse.mask_rate, train_spec.label_reuse.num_iters) == (0.5, 1)
    expected = {"type": "rev_gat", "num_layers": 5, "num_heads": 3, "num_groups": 2, "dropout": 0.75}
    expected |= {"input_dropout": 0.25, "edge_dropout": 0.3, "attend_target": False, "symmetric_norm": True}
    data = model.model_dump()
    assert {key: data[key] for key in expected} == expected
    assert train_spec.distillation is None
    assert distilled.train.distillation is not None
    assert (distilled.train.distillation.alpha, distilled.train.distillation.temperature) == (0.95, 0.7)
    # Nothing else differs, so the teacher of one is the model of the other.
    assert distilled.train.model_copy(update={"distillation": None}) == plain.train
    assert (distilled.model, distilled.data, distilled.eval, distilled.test) == (
        plain.model,
        plain.data,
        plain.eval,
        plain.test,
    )
    assert wide.model == plain.model.model_copy(update={"hidden_channels": 3 * 356})
    assert (wide.train, wide.data, wide.eval, wide.test) == (plain.train, plain.data, plain.eval, plain.test)


@pytest.mark.parametrize("name", ["rev_gat_arxiv", "rev_sage_products"])
def test_every_node_has_one_edge_to_itself(name: str, ogb_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_DATA", str(ogb_root))
    graph, split = recipe_graph(shipped(name))
    edge_index, _ = directed_edges(graph)
    source, target = edge_index.long()
    loops = source[source == target]
    assert torch.equal(loops.sort().values, torch.arange(NUM_NODES))
    # Every edge is there in both directions.
    pairs = source * NUM_NODES + target
    assert torch.equal(pairs.sort().values, (target * NUM_NODES + source).sort().values)
    without, _ = recipe_graph(shipped(name, "data.self_loops=false"))
    assert graph_digest(graph, split) != graph_digest(without, split)


def test_self_loops_are_refused_only_where_edge_features_are_read(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, data__self_loops=True)
    with pytest.raises(DataError, match=r"multiclass: its edges have features, .* leave out data.self_loops"):
        recipe_graph(recipe)
    graph, _ = recipe_graph(small_recipe(tmp_path, data__self_loops=True, model__conv={"type": "sage"}))
    assert graph.self_loops
    assert graph.edge_attr is None


@pytest.mark.parametrize(("num_heads", "num_channels"), [(3, 4096), (1, 8192)])
def test_attention_begins_at_the_scale_of_the_authors(num_heads: int, num_channels: int) -> None:
    torch.manual_seed(0)
    conv = RevGATConv(4, num_channels, num_heads=num_heads, attend_target=True, symmetric_norm=True)
    for scores in (conv.attend_source, conv.attend_target):
        assert scores is not None
        assert scores.requires_grad
        # Xavier's of a [1, H, C] tensor, which counts as H inputs and one output, each of C numbers.
        expected = math.sqrt(2) * math.sqrt(2 / (num_channels * (num_heads + 1)))
        assert scores.std().item() == pytest.approx(expected, rel=0.03)


def authors_loop(recipe: Recipe, teacher: torch.Tensor | None = None) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The protocol of the authors written down once more, on the whole graph, from their description alone.

    Returns:
        The weights after the last epoch, and the logits of all nodes at the lowest validation loss.
    """
    graph, split = recipe_graph(recipe)
    edge_index, _ = directed_edges(graph)
    x, y, num_classes, eps = graph.x, graph.y, graph.num_tasks, 1 - math.log(2)
    assert x is not None
    train_nodes = split.train.sort().values
    session.seed_global(0, "init")
    model = build_model(recipe.model, GraphShape(num_node_features=x.shape[1] + num_classes, num_tasks=num_classes))
    optimizer = torch.optim.RMSprop(model.parameters(), lr=0.002, weight_decay=0)
    csr, _ = csr_from_edge_index(edge_index, graph.num_nodes)

    def loss_of(logits: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
        losses = nn.functional.cross_entropy(logits[nodes], y[nodes], reduction="none")
        return torch.mean(torch.log(eps + losses) - math.log(eps))

    def run(shown: torch.Tensor) -> torch.Tensor:
        given = torch.cat([x, torch.zeros(len(x), num_classes)], dim=1)
        given[shown, x.shape[1] + y[shown]] = 1
        hidden = torch.ones(len(x), dtype=torch.bool)
        hidden[shown] = False
        logits = model(given, csr).detach()
        given = given.clone()
        given[hidden, -num_classes:] = torch.softmax(logits[hidden], dim=-1)
        return torch.as_tensor(model(given, csr))

    lowest, best = math.inf, torch.empty(0)
    for epoch in range(1, recipe.train.num_epochs + 1):
        for group in optimizer.param_groups:
            group["lr"] = 0.002 * min(epoch / 50, 1)
        model.train()
        session.seed_global(0, "dropout", epoch - 1)
        mask = torch.rand(len(train_nodes)) < 0.5
        optimizer.zero_grad()
        logits = run(train_nodes[mask])
        loss = loss_of(logits, train_nodes[~mask])
        if teacher is not None:
            soft, target = torch.log_softmax(logits / 0.7, dim=1), torch.softmax(teacher / 0.7, dim=1)
            loss = loss * 0.05 + 0.95 * torch.mean(target * (torch.log(target) - soft)) * 0.7 * 0.7
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        model.eval()
        with torch.no_grad():
            logits = run(train_nodes)
        if loss_of(logits, split.valid).item() < lowest:
            lowest, best = loss_of(logits, split.valid).item(), logits
    return model.state_dict(), best


def test_teacher_and_student_end_as_the_protocol_of_the_authors_leaves_them(
    ogb_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_DATA", str(ogb_root))
    recipe = shipped("rev_gat_arxiv_kd", "train.num_epochs=4", "model.hidden_channels=24")
    train(recipe, tmp_path / "run", device="cpu", quiet=True)
    first, logits = authors_loop(recipe)
    second, _ = authors_loop(recipe, teacher=logits)
    for folder, expected in ((tmp_path / "run/teacher", first), (tmp_path / "run", second)):
        saved = RunDir(folder).latest_state()
        assert saved is not None
        for name, tensor in expected.items():
            assert torch.allclose(saved.tensors[f"model/{name}"], tensor, rtol=1e-4, atol=1e-6), name
    # The two runs differ by far more than that, though not in where they began.
    assert max(float((first[name] - second[name]).abs().max()) for name in first) > 1e-4
