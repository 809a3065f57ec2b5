"""What a step minimises: formulas, the labels that a model reads and never reads, and what a teacher adds."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.workflows.small import NUM_NODES, small_recipe, write_graph
from zoo.data.graph import Graph, Part, Split
from zoo.data.partition import RandomParts
from zoo.models.factory import build_model
from zoo.ops.csr import CSR
from zoo.spec.recipe import Recipe
from zoo.spec.shape import input_shape
from zoo.workflows import session
from zoo.workflows.evaluate import Protocol, predict
from zoo.workflows.graphs import recipe_graph
from zoo.workflows.objective import (
    KnownLabels,
    Objective,
    binary_loss,
    distillation_loss,
    log_cross_entropy,
    multilabel_loss,
    sample_read,
)
from zoo.workflows.step import build_optimizer, training_step

CPU = torch.device("cpu")
NUM_FEATURES, NUM_CLASSES = 6, 3
REUSE = {"mask_rate": 0.5, "num_iters": 1}


class Recorder(nn.Module):
    """Remembers what it was given; its logits are a linear map of all it reads."""

    def __init__(self, num_in: int = NUM_FEATURES + NUM_CLASSES) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(num_in, NUM_CLASSES, generator=generator))
        self.calls: list[tuple[Tensor, bool, bool]] = []
        self.logits: Tensor | None = None

    def forward(
        self, x: Tensor, csr: CSR, edge_attr: Tensor | None = None, edge_weight: Tensor | None = None
    ) -> Tensor:
        self.calls.append((x.clone(), torch.is_grad_enabled(), self.training))
        self.logits = x @ self.weight
        if self.logits.requires_grad:
            self.logits.retain_grad()
        return self.logits


def loaded(folder: Path, **places: object) -> tuple[Recipe, Graph, Split, Part]:
    """A recipe with label reuse, its graph, and the graph as one part."""
    recipe = small_recipe(folder, **{"train__label_reuse": REUSE, **places})
    graph, split = recipe_graph(recipe)
    return recipe, graph, split, next(iter(RandomParts(graph, 1, torch.Generator().manual_seed(0))))


def test_unknown_labels_do_not_count() -> None:
    logits = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    y = torch.tensor([[1.0, math.nan], [0.0, math.nan]])
    expected = nn.functional.binary_cross_entropy_with_logits(logits[:, :1], y[:, :1])
    assert torch.allclose(multilabel_loss(logits, y), expected)
    whole = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    mean = nn.functional.binary_cross_entropy_with_logits(logits, whole)
    assert torch.allclose(multilabel_loss(logits, whole), mean)
    assert torch.allclose(binary_loss(logits[:, :1], torch.tensor([1, 0])), expected)


def test_log_cross_entropy_is_its_formula() -> None:
    rows, classes = [[1.0, -2.0, 0.5], [0.1, 0.2, -3.0], [40.0, 0.0, 0.0]], [2, 0, 1]
    eps = 1 - math.log(2)
    total = 0.0
    for row, label in zip(rows, classes, strict=True):
        entropy = math.log(sum(math.exp(value) for value in row)) - row[label]
        total += math.log(eps + entropy) - math.log(eps)
    assert log_cross_entropy(torch.tensor(rows), torch.tensor(classes)).item() == pytest.approx(total / 3, rel=1e-5)
    certain = torch.tensor([[100.0, 0.0]])
    assert log_cross_entropy(certain, torch.tensor([0])).item() == pytest.approx(0.0, abs=1e-6)


def softened(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def test_distillation_is_its_formula() -> None:
    student, teacher, temperature = [[1.0, -1.0, 0.3], [0.2, 0.9, 0.0]], [[0.5, 0.1, -2.0], [1.5, 1.0, 0.7]], 0.7
    total = 0.0
    for row, target in zip(student, teacher, strict=True):
        for q, p in zip(softened(row, temperature), softened(target, temperature), strict=True):
            total += p * (math.log(p) - math.log(q))
    expected = total / (2 * 3) * temperature**2
    actual = distillation_loss(torch.tensor(student), torch.tensor(teacher), temperature)
    assert actual.item() == pytest.approx(expected, rel=1e-5)
    itself = distillation_loss(torch.tensor(student), torch.tensor(student), temperature)
    assert itself.item() == pytest.approx(0.0, abs=1e-6)


def test_train_nodes_without_a_label_are_left_out(tmp_path: Path) -> None:
    y = torch.arange(NUM_NODES) % 3
    y[::2] = -1
    graph = write_graph(tmp_path / "some.npz", y=y.numpy())
    recipe, graph_, split, _ = loaded(tmp_path, data__path=str(graph))
    objective = Objective(recipe.train, graph_, split, CPU)
    assert objective.is_train.sum() == (y[split.train] >= 0).sum()
    assert not objective.is_train[::2].any()
    assert objective.known is not None
    assert torch.equal(objective.known.y >= 0, objective.is_train)


def test_labels_that_are_read_are_drawn_among_the_train_nodes_and_one_is_left() -> None:
    train = torch.arange(4000) % 2 == 0
    torch.manual_seed(3)
    read = sample_read(train, 0.3)
    assert not (read & ~train).any()
    assert 0.27 < read.sum() / train.sum() < 0.33
    torch.manual_seed(3)
    assert torch.equal(sample_read(train, 0.3), read)
    assert not torch.equal(sample_read(train, 0.3), read)
    few = torch.tensor([False, True, True, False])
    counts = {int(sample_read(few, 0.999).sum()) for _ in range(50)}
    assert counts == {1}
    assert int(sample_read(torch.tensor([True]), 0.999).sum()) == 0


@pytest.mark.parametrize("num_iters", [0, 1, 2])
def test_a_step_reads_some_train_labels_and_predicts_the_others(num_iters: int, tmp_path: Path) -> None:
    recipe, graph, split, part = loaded(tmp_path, train__label_reuse={**REUSE, "num_iters": num_iters})
    objective = Objective(recipe.train, graph, split, CPU)
    model = Recorder().train()
    torch.manual_seed(5)
    loss = objective.step_loss(model, part)
    torch.manual_seed(5)
    read = sample_read(objective.is_train, 0.5)
    predicted = objective.is_train & ~read
    assert 0 < read.sum() < objective.is_train.sum()

    one_hot = nn.functional.one_hot(graph.y, NUM_CLASSES).float()
    columns = torch.where(read.unsqueeze(1), one_hot, 0.0)
    assert len(model.calls) == num_iters + 1
    for number, (x, has_gradient, training) in enumerate(model.calls):
        assert torch.equal(x[:, :NUM_FEATURES], part.x)
        assert torch.allclose(x[:, NUM_FEATURES:], columns)
        assert has_gradient == (number == num_iters)
        assert training
        guess = (x @ model.weight.detach()).softmax(1)
        columns = torch.where(read.unsqueeze(1), one_hot, guess)
    # Nodes whose labels were read, and those of the other splits, teach nothing.
    assert loss is not None
    loss.backward()  # type: ignore[no-untyped-call]
    assert model.logits is not None
    assert model.logits.grad is not None
    assert torch.equal(model.logits.grad.abs().sum(1) > 0, predicted)
    expected = nn.functional.cross_entropy(model.logits[predicted], graph.y[predicted])
    assert torch.equal(loss, expected)


def test_no_label_that_is_predicted_reaches_the_model(tmp_path: Path) -> None:
    """Whatever those labels are, the model is given the same."""
    recipe, graph, split, part = loaded(tmp_path)
    torch.manual_seed(5)
    read = sample_read(Objective(recipe.train, graph, split, CPU).is_train, 0.5)
    given = []
    for shift in (0, 1):
        y = torch.where(read, graph.y, (graph.y + shift) % NUM_CLASSES)
        other = Graph(**{**graph.__dict__, "y": y})
        model = Recorder().train()
        torch.manual_seed(5)
        Objective(recipe.train, other, split, CPU).step_loss(model, part)
        given.append([x for x, _, _ in model.calls])
    assert all(torch.equal(one, other) for one, other in zip(*given, strict=True))


def test_evaluation_reads_all_train_labels_and_no_other(tmp_path: Path) -> None:
    recipe, graph, split, _ = loaded(tmp_path)
    is_train = torch.zeros(NUM_NODES, dtype=torch.bool)
    is_train[split.train] = True
    protocol = Protocol(1, 1, 0, "test")

    def given(y: Tensor) -> list[Tensor]:
        model = Recorder().train()
        other = Graph(**{**graph.__dict__, "y": y})
        known = KnownLabels.of(recipe.train, other, split, CPU)
        predict(model, other, protocol, device=CPU, precision="fp32", known=known)
        assert [(gradient, training) for _, gradient, training in model.calls] == [(False, False)] * 2
        return [x[:, NUM_FEATURES:] for x, _, _ in model.calls]

    first, second = given(graph.y)
    one_hot = nn.functional.one_hot(graph.y, NUM_CLASSES).float()
    assert torch.equal(first, torch.where(is_train.unsqueeze(1), one_hot, 0.0))
    assert torch.equal(second[is_train], one_hot[is_train])
    assert torch.allclose(second[~is_train].sum(1), torch.ones(int((~is_train).sum())))
    shifted = (graph.y + 1) % NUM_CLASSES
    for one, other in zip((first, second), given(torch.where(is_train, graph.y, shifted)), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(given(shifted)[0], first)


def test_the_pass_without_gradient_moves_the_statistics_of_batch_norm(tmp_path: Path) -> None:
    recipe, graph, split, part = loaded(tmp_path, model__norm="batch", model__reversible=False)
    objective = Objective(recipe.train, graph, split, CPU)
    model = build_model(recipe.model, input_shape(recipe, graph.shape))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    assert norms
    optimizer = build_optimizer(recipe.train.optimizer, model)
    assert training_step(model, optimizer, [part], objective, recipe.train) is not None
    assert {int(norm.num_batches_tracked) for norm in norms if norm.num_batches_tracked is not None} == {2}
    predict(model, graph, Protocol(1, 1, 0, "test"), device=CPU, precision="fp32", known=objective.known)
    assert {int(norm.num_batches_tracked) for norm in norms if norm.num_batches_tracked is not None} == {2}


def test_a_student_learns_from_labels_and_from_its_teacher(tmp_path: Path) -> None:
    recipe, graph, split, _ = loaded(tmp_path, train__distillation={"alpha": 0.8, "temperature": 0.7})
    teacher = torch.randn(NUM_NODES, NUM_CLASSES, generator=torch.Generator().manual_seed(2))
    objective = Objective(recipe.train, graph, split, CPU, teacher)
    for part in RandomParts(graph, 3, session.generator(0, "parts")):
        model = Recorder().train()
        torch.manual_seed(4)
        loss = objective.step_loss(model, part)
        torch.manual_seed(4)
        train = objective.is_train[part.nodes]
        predicted = train & ~sample_read(train, 0.5)
        assert loss is not None
        assert model.logits is not None
        labels = nn.functional.cross_entropy(model.logits[predicted], graph.y[part.nodes[predicted]])
        # All nodes of the part, whatever split they are in; divided by nodes times classes.
        p = (teacher[part.nodes] / 0.7).softmax(1)
        divergence = (p * (p.log() - (model.logits / 0.7).log_softmax(1))).mean() * 0.7**2
        assert torch.allclose(loss, 0.2 * labels + 0.8 * divergence)


def test_the_validation_loss_is_that_of_the_labeled_valid_nodes(tmp_path: Path) -> None:
    y = torch.arange(NUM_NODES) % 3
    y[::5] = -1
    path = write_graph(tmp_path / "some.npz", y=y.numpy())
    recipe, graph, split, _ = loaded(tmp_path, data__path=str(path), train__loss="log_cross_entropy")
    objective = Objective(recipe.train, graph, split, CPU, torch.zeros(NUM_NODES, NUM_CLASSES))
    logits = torch.randn(NUM_NODES, NUM_CLASSES, generator=torch.Generator().manual_seed(6))
    nodes = split.valid[y[split.valid] >= 0]
    assert 0 < len(nodes) < len(split.valid)
    assert objective.valid_loss(logits[objective.valid]) == log_cross_entropy(logits[nodes], y[nodes]).item()
