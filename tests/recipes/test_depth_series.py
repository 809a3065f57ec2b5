"""RevGNN-80 and RevGNN-224 at every depth of the paper: one recipe, another number of layers."""

import pytest

from zoo.spec.recipe import read_recipe
from zoo.spec.shape import known_shape
from zoo.spec.shipped import card_path, recipe_path

DEPTHS = {"rev_80": (7, 14, 28, 56, 112, 224, 448, 1001), "rev_224": (3, 7, 14, 28, 56, 112, 224, 448)}
PUBLISHED = {("rev_80", 112): 2_251_384, ("rev_80", 1001): 20_031_384} | {
    ("rev_224", 112): 17_141_560,
    ("rev_224", 448): 68_471_608,
}


def formula(width: int, num_layers: int) -> int:
    """Two groups with edge encoders on ogbn-proteins: the layers, then norm, one-hot, node, edge encoders and head."""
    return (3 * width**2 + 10 * width) * num_layers + 2 * width + 72 + 17 * width + 9 * width + 112 * (width + 1)


@pytest.mark.parametrize(("name", "depth"), [(name, depth) for name in DEPTHS for depth in DEPTHS[name]])
def test_each_depth_has_the_parameters_of_the_formula(name: str, depth: int) -> None:
    recipe = read_recipe(recipe_path(name), [f"model.num_layers={depth}"])
    shape = known_shape(recipe)
    assert shape is not None
    count = recipe.model.num_parameters(shape)
    assert count == formula(int(name.removeprefix("rev_")), depth)
    assert count == PUBLISHED.get((name, depth), count)


@pytest.mark.parametrize("name", DEPTHS)
def test_the_card_lists_every_depth_with_its_parameters(name: str) -> None:
    rows = [line.split() for line in card_path(name).read_text(encoding="utf-8").splitlines()]
    listed = {int(row[0]): row[1] for row in rows if len(row) == 3 and row[0].isdigit()}
    width = int(name.removeprefix("rev_"))
    assert listed == {depth: f"{formula(width, depth):,}" for depth in DEPTHS[name]}
