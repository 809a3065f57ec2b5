"""The building blocks as a user meets them: imported from one place, printed, and as README shows them."""

import re
from pathlib import Path

import pytest
import torch

import zoo.layers
from tests.layers.graphs import gen_stack
from zoo.layers import (
    Block,
    EquilibriumBlock,
    EquilibriumLayer,
    FixedPoint,
    GATConv,
    GCNConv,
    GENConv,
    ResidualStack,
    Reversible,
    RevGATConv,
)

README = Path(__file__).parents[2] / "README.md"


def test_readme_example_runs():
    (example,) = [
        code for code in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "BlockInputs" in code
    ]
    torch.manual_seed(0)
    before = torch.randn(5, 80)
    names = {"edge_index": torch.randint(5, (2, 12)), "h": before}
    with torch.no_grad():
        exec(example, names)
    assert names["h"].shape == (5, 80)
    assert not torch.equal(names["h"], before)


def test_every_exported_name_exists():
    assert sorted(zoo.layers.__all__) == zoo.layers.__all__
    assert all(hasattr(zoo.layers, name) for name in zoo.layers.__all__)


def lines(module):
    return [line.strip() for line in repr(module).splitlines()]


def test_a_printed_stack_shows_its_settings():
    shown = lines(gen_stack(num_layers=6, channels=8, num_distinct=2))
    assert "num_steps=6, num_groups=2, reversible=True" in shown
    assert "(0-1): 2 x Block(" in shown
    assert "4, aggr=max" in shown
    assert "num_steps=1, checkpoint=False" in lines(ResidualStack([Block(4, GENConv(4, aggr="mean"))]))


@pytest.mark.parametrize(
    ("module", "settings"),
    [
        (Block(4, GCNConv(4)), "4"),
        (GATConv(4, num_heads=3), "4, num_heads=3"),
        (
            RevGATConv(4, 2, num_heads=3, attend_target=True, symmetric_norm=False),
            "num_heads=3, attend_target=True, symmetric_norm=False",
        ),
        (Block(4, GCNConv(4), dropout=0.5), "4, dropout=0.5"),
        (
            EquilibriumLayer(EquilibriumBlock(4, [GCNConv(4), GCNConv(4)]), solver=FixedPoint("broyden")),
            "solver=FixedPoint(method='broyden', tol=0.001, max_iters=30, history=5), "
            "backward=FixedPoint(method='anderson', tol=0.001, max_iters=30, history=5)",
        ),
        (
            EquilibriumLayer(EquilibriumBlock(4, [GCNConv(4), GCNConv(4)]), solver=Reversible()),
            "solver=Reversible(beta=0.8, tol=0.001, max_iters=12)",
        ),
    ],
)
def test_printed_modules_show_their_settings(module, settings):
    assert settings in lines(module)
