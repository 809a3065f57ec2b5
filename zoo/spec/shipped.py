"""Find the recipes, model cards and bundles: inside the installed package, else beside it in a checkout."""

from __future__ import annotations

import fnmatch
from pathlib import Path

from zoo.errors import NotFoundError, RecipeError, nearest
from zoo.json_object import read_json_object

_PACKAGE = Path(__file__).parents[1]


def shipped_dir(kind: str) -> Path:
    """The folder of ``recipes``, ``model_cards`` or ``bundles`` that came with this installation."""
    # In a checkout the folders stand beside the package; in an installation the wheel put them inside. The check for
    # pyproject.toml keeps an unrelated folder "recipes" in site-packages from being taken for ours.
    beside = _PACKAGE.parent / kind
    return beside if beside.is_dir() and (_PACKAGE.parent / "pyproject.toml").is_file() else _PACKAGE / "shipped" / kind


def list_recipes() -> list[str]:
    """Names of the shipped recipes, sorted."""
    return sorted(path.stem for path in shipped_dir("recipes").glob("*.json"))


def list_bundles() -> list[str]:
    """Names of the shipped models with trained weights, sorted."""
    return sorted(path.parent.name for path in shipped_dir("bundles").glob("*/config.json"))


def list_models(
    pattern: str = "*", *, pretrained: bool | None = None, family: str | None = None, dataset: str | None = None
) -> list[str]:
    """Names of the models that came with this installation, sorted.

    >>> import zoo
    >>> zoo.list_models("rev_gat*arxiv", family="rev_gat")
    ['rev_gat_arxiv', 'rev_gat_wide_arxiv']
    >>> "quickstart" in zoo.list_models(pretrained=True)
    True

    Args:
        pattern: of the name, with ``*`` and ``?`` as in a shell.
        pretrained: True: only those with trained weights, for ``zoo.load``; False: only those without; None: all, for
            ``zoo.create_model`` and ``zoo.train``.
        family: only those of this family, ``model.type`` of a recipe, such as "rev".
        dataset: only those for this data set, such as "minesweeper".
    """
    weights = list_bundles()
    names = fnmatch.filter(sorted({*list_recipes(), *weights}), pattern)
    if pretrained is not None:
        names = [name for name in names if (name in weights) == pretrained]
    if family is None and dataset is None:
        return names
    facts = {name: _facts(name) for name in names}
    return [name for name in names if family in (None, facts[name][0]) and dataset in (None, facts[name][1])]


def _facts(name: str) -> tuple[str, str]:
    """Family and data set of a shipped model. Shipped files are tested, so they are not checked again here."""
    path = shipped_dir("recipes") / f"{name}.json"
    if path.is_file():
        data = read_json_object(path, error=RecipeError)
    else:
        data = read_json_object(shipped_dir("bundles") / name / "config.json", error=RecipeError)["recipe"]
    return data["model"]["type"], data["data"]["dataset"]


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
    names = list_recipes()
    if reference not in names:
        raise NotFoundError(f"{reference}: no shipped recipe of that name; {name_hint(reference, names)}")
    return shipped_dir("recipes") / f"{reference}.json"


def name_hint(name: str, names: list[str]) -> str:
    """The nearest of some names or, if none is near, the command that lists them."""
    return nearest(name, names, "'revgnn-zoo list' shows all")


def card_path(name: str) -> Path:
    """The model card of a recipe."""
    return shipped_dir("model_cards") / f"{name}.md"
