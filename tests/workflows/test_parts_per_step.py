"""Several parts make one optimizer step, whose gradient is that of the loss over all their train nodes."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.workflows.small import small_recipe
from tests.workflows.test_resume import outcome, run
from zoo.data.graph import Part
from zoo.data.partition import RandomParts
from zoo.errors import RecipeError, RunError
from zoo.models.factory import build_model
from zoo.spec.shape import input_shape
from zoo.workflows import session
from zoo.workflows import train as module
from zoo.workflows.bench import dry_run
from zoo.workflows.graphs import recipe_graph
from zoo.workflows.objective import Objective
from zoo.workflows.ranks import tree_sum
from zoo.workflows.session import StoppedError
from zoo.workflows.step import build_optimizer, training_step

CPU = torch.device("cpu")
# Steps of three parts and of one; by chance some part has far more train nodes than another.
UNEVEN = {
    "train__partition": {"type": "random", "num_parts": 4},
    "train__parts_per_step": 3,
    "train__num_epochs": 2,
    "model__dropout": 0.0,
}


def fresh(folder: Path, **places: Any) -> tuple[Any, nn.Module, Objective, list[Part]]:
    recipe = small_recipe(folder, **{**UNEVEN, **places})
    graph, split = recipe_graph(recipe)
    session.seed_global(0, "init")
    model = build_model(recipe.model, input_shape(recipe, graph.shape))
    parts = list(RandomParts(graph, 4, session.generator(0, "parts")))
    return recipe, model, Objective(recipe.train, graph, split, CPU), parts


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
def test_the_gradient_is_that_of_the_mean_over_all_labels(task: str, tmp_path: Path) -> None:
    recipe, model, objective, parts = fresh(tmp_path, task=task)
    losses, counts = [], []
    for part in parts[:3]:
        loss = objective.step_loss(model, part)
        assert loss is not None
        losses.append(loss)
        counts.append(objective.num_predicted)
    assert len(set(counts)) > 1
    union = sum((loss * count for loss, count in zip(losses, counts, strict=True)), torch.zeros(())) / sum(counts)
    expected = torch.autograd.grad(union, list(model.parameters()))
    # A step of plain gradient descent at rate 1 moves the weights by the gradient.
    before = [parameter.detach().clone() for parameter in model.parameters()]
    spec = recipe.train.model_copy(update={"max_grad_norm": 0.0})
    value = training_step(model, torch.optim.SGD(model.parameters(), lr=1.0), parts[:3], objective, spec)
    assert value == pytest.approx(union.item(), rel=1e-6)
    for old, new, gradient in zip(before, model.parameters(), expected, strict=True):
        torch.testing.assert_close(old - new.detach(), gradient, rtol=1e-4, atol=1e-6)


def test_parts_without_train_nodes_and_parameters_without_gradients_change_nothing(tmp_path: Path) -> None:
    def weights(*, with_empty: bool) -> tuple[list[Tensor], list[bool]]:
        recipe, model, objective, parts = fresh(tmp_path)
        model.register_parameter("unused", nn.Parameter(torch.ones(2)))
        objective.is_train[parts[1].nodes] = False
        optimizer = build_optimizer(recipe.train.optimizer, model)
        chosen = [parts[0], parts[1], parts[2]] if with_empty else [parts[0], parts[2]]
        assert training_step(model, optimizer, chosen, objective, recipe.train) is not None
        value = training_step(model, optimizer, [parts[1]], objective, recipe.train)
        assert value is None
        return [p.detach() for p in model.parameters()], [p in optimizer.state for p in model.parameters()]

    (first, states), (second, _) = weights(with_empty=True), weights(with_empty=False)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert states.count(False) == 1


def test_statistics_of_batch_norm_move_by_the_mean_over_the_parts(tmp_path: Path) -> None:
    def moved(chosen: list[int], per_step: int) -> dict[str, Tensor]:
        recipe, model, objective, parts = fresh(tmp_path, model__norm="batch", train__parts_per_step=per_step)
        optimizer = build_optimizer(recipe.train.optimizer, model)
        training_step(model, optimizer, [parts[index] for index in chosen], objective, recipe.train)
        return dict(model.named_buffers())

    alone = [moved([index], 1) for index in range(3)]
    together = moved([0, 1, 2], 3)
    assert any(name.endswith("running_var") for name in together)
    for name, buffer in together.items():
        torch.testing.assert_close(buffer.float(), torch.stack([b[name].float() for b in alone]).mean(0))


def test_a_run_with_an_uneven_last_step_is_resumed_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(tmp_path, **{**UNEVEN, "model__dropout": 0.3, "model__norm": "batch"})
    results = run(recipe, tmp_path / "whole")
    assert results.num_steps == 4
    original, calls = module.training_step, iter(range(1, 100))

    def stopped(*arguments: Any) -> Any:
        if next(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    with monkeypatch.context() as context:
        context.setattr(module, "training_step", stopped)
        with pytest.raises(StoppedError, match="epoch 2, part 3/4"):
            run(recipe, tmp_path / "cut")
    run(recipe, tmp_path / "cut", resume=True)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_a_dry_run_says_how_the_steps_of_so_many_processes_are_shared(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, **UNEVEN)
    lines = "\n".join(dry_run(recipe, 2, device="cpu"))
    assert "2 processes, each 2 of the 3 parts of a step, 75% of the time busy" in lines
    assert "steps   4 in all" in lines
    with pytest.raises(RunError, match=r"4 processes .* train.parts_per_step is 3: start 3, or --set .*=4"):
        dry_run(recipe, 4, device="cpu")


def test_more_parts_than_there_are_make_no_step(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="parts_per_step: 5 is more than the 4 of the partition"):
        small_recipe(tmp_path, **{**UNEVEN, "train__parts_per_step": 5})


@pytest.mark.parametrize("num_leaves", range(1, 12))
def test_branches_of_the_tree_add_up_to_its_bits(num_leaves: int) -> None:
    leaves = torch.randn(num_leaves, 50, generator=torch.Generator().manual_seed(0)) * 10.0 ** (torch.arange(50) / 3)
    leaves[num_leaves // 2] = -0.0

    def leaf(index: int) -> Tensor | None:
        return leaves[index].clone() if index < num_leaves else None

    whole = tree_sum(leaf, 0, 1, num_leaves)
    assert whole is not None
    for world_size in (2, 4, 8):
        branches = [tree_sum(leaf, rank, world_size, num_leaves) for rank in range(world_size)]
        filled = [torch.full((50,), -0.0) if branch is None else branch for branch in branches]
        total = tree_sum(lambda rank, filled=filled: filled[rank], 0, 1, world_size)
        assert total is not None
        assert total.numpy().tobytes() == whole.numpy().tobytes()
