"""revgnn-zoo: very deep graph neural networks that anyone can train, share and load.

    import zoo
    model = zoo.load("quickstart")          # a shipped name, a folder, or "owner/name" on the Hub
    logits = model(x, edge_index, edge_attr)

``__init__.pyi`` is the one list of public names: type checkers read it, and so does this file. A name is imported on
first use, so that ``import zoo`` does not import torch.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"


def _public_names() -> dict[str, str]:
    """The module of each public name."""
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module or "" for node in imports for alias in node.names}


_PUBLIC = _public_names()
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
