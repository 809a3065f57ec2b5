"""Finds the recipes and model cards: inside the installed package, else beside it in a checkout."""

from __future__ import annotations

import difflib
from pathlib import Path

import zoo
from zoo.errors import NotFoundError

_PACKAGE = Path(zoo.__file__).parent


def shipped_dir(kind: str) -> Path:
    """The folder of ``recipes``, ``model_cards`` or ``bundles`` that came with this installation."""
    # In a checkout the folders stand beside the package; in an installation the wheel put them inside. The check for
    # pyproject.toml keeps an unrelated folder "recipes" in site-packages from being taken for ours.
    beside = _PACKAGE.parent / kind
    return beside if beside.is_dir() and (_PACKAGE.parent / "pyproject.toml").is_file() else _PACKAGE / "shipped" / kind


def list_recipes() -> list[str]:
    """Names of the shipped recipes, sorted."""
    return sorted(path.stem for path in shipped_dir("recipes").glob("*.json"))


def recipe_path(reference: str) -> Path:
    """The recipe file that a reference names: a path (it ends in .json or holds a slash) or a shipped name.

    Raises:
        NotFoundError: if there is no such file or name.
    """
    if reference.endswith(".json") or "/" in reference:
        path = Path(reference).expanduser()
        if not path.is_file():
            shipped = shipped_dir("recipes") / path.name
            hint = f"; did you mean {path.stem!r}, which is shipped?" if shipped.is_file() else ""
            raise NotFoundError(f"{reference}: no such recipe file{hint}")
        return path
    path = shipped_dir("recipes") / f"{reference}.json"
    if not path.is_file():
        names = list_recipes()
        near = difflib.get_close_matches(reference, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"shipped: {', '.join(names)}"
        raise NotFoundError(f"{reference}: no shipped recipe of that name; {hint}")
    return path


def card_path(name: str) -> Path:
    """The model card of a recipe."""
    return shipped_dir("model_cards") / f"{name}.md"
