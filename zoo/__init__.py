"""revgnn-zoo: very deep graph neural networks that anyone can train, share and load.

    import zoo
    model = zoo.load("org/name")          # a Hub id, a shipped name, or a Path to a folder
    logits = model(x, edge_index, edge_attr)

Attributes are imported on first use, so that ``import zoo`` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "load": "zoo.workflows.load",
    "build_model": "zoo.models.factory",
    "read_recipe": "zoo.spec.recipe",
    "list_recipes": "zoo.spec.shipped",
    "load_graph": "zoo.data.datasets",
    "save_graph": "zoo.data.arrays",
    "directed_edges": "zoo.data.graph",
    "Graph": "zoo.data.graph",
    "GraphShape": "zoo.spec.shape",
    "ZooError": "zoo.errors",
}

__all__ = [
    "Graph",
    "GraphShape",
    "ZooError",
    "__version__",
    "build_model",
    "directed_edges",
    "list_recipes",
    "load",
    "load_graph",
    "read_recipe",
    "save_graph",
]

if TYPE_CHECKING:
    from zoo.data.arrays import save_graph
    from zoo.data.datasets import load_graph
    from zoo.data.graph import Graph, directed_edges
    from zoo.errors import ZooError
    from zoo.models.factory import build_model
    from zoo.spec.recipe import read_recipe
    from zoo.spec.shape import GraphShape
    from zoo.spec.shipped import list_recipes
    from zoo.workflows.load import load


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
