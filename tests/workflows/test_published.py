"""Measured figures beside published ones: protocols are compared as numbers."""

import pytest

from zoo.cli.common import echo_compared
from zoo.spec.recipe import Recipe, read_recipe
from zoo.spec.results import Measured
from zoo.spec.shipped import list_recipes, recipe_path
from zoo.workflows.evaluate import Comparison, compare_with_published


def compare(recipe: Recipe, num_views: int, num_parts: int) -> Comparison:
    figure = Measured(split="test", metric=recipe.eval.metric, value=0.5, num_views=num_views, num_parts=num_parts)
    (comparison,) = compare_with_published([figure], [], recipe, {"test": 1000})
    return comparison


@pytest.mark.parametrize("name", list_recipes())
def test_every_figure_with_a_whole_protocol_is_shown_under_that_protocol(name: str) -> None:
    recipe = read_recipe(recipe_path(name))
    reported = [figure for figure in (recipe.source.reported if recipe.source else ()) if figure.split == "test"]
    for figure in reported:
        if figure.num_views is not None and figure.num_parts is not None:
            comparison = compare(recipe, figure.num_views, figure.num_parts)
            assert (comparison.published, comparison.origin) == (figure.mean, figure.source)
            assert comparison.elsewhere == ()
    other = compare(recipe, 7, 11)
    assert other.published is None
    assert other.elsewhere == tuple(reported)


def test_a_figure_of_unstated_parts_is_named_and_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = read_recipe(recipe_path("rev_80"))
    comparison = compare(recipe, 1, 5)
    assert comparison.published is None
    assert comparison.is_within
    echo_compared([comparison])
    assert recipe.source is not None
    (figure,) = recipe.source.reported
    expected = f"published under another protocol: test rocauc {figure.mean:.4f}, single view ({figure.source})"
    assert expected in capsys.readouterr().out
