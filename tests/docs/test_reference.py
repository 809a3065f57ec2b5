"""The reference says what the code does."""

from __future__ import annotations

import ast
import inspect
import re
import sys

from tests.docs.pages import DOCS, ROOT
from zoo import errors
from zoo.spec.recipe import recipe_schema

sys.path.insert(0, str(DOCS))
import generate


def names_read_from_the_environment() -> set[str]:
    """Names in ``os.environ[...]``, ``.get(...)`` and ``.setdefault(...)``, as text or as a constant of the module."""
    found = set()
    for path in (ROOT / "zoo").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        constants = {
            target.id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for text in re.findall(r"environ(?:\.get\(|\.setdefault\(|\[)([\w\"']+)", ast.unparse(tree)):
            found.add(text.strip("\"'") if text[0] in "\"'" else constants[text])
    return found


def test_the_page_of_environment_variables_lists_what_the_code_reads() -> None:
    page = (DOCS / "reference" / "environment.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(\w+)`", page, flags=re.M))
    read = names_read_from_the_environment()
    assert read <= listed
    # TRITON_INTERPRET and the data folder are read by name too.
    assert {"ZOO_DATA", "ZOO_BACKEND", "ZOO_ALLOW_HTTP"} <= read


def test_every_error_has_its_row_with_its_code() -> None:
    rows = generate.exit_codes().splitlines()[2:]
    found = {row.split("|")[2].strip(" `"): row.split("|")[1].strip() for row in rows}
    for name, value in vars(errors).items():
        if inspect.isclass(value) and issubclass(value, errors.ZooError):
            assert found[name] == str(value.exit_code)


def test_every_key_of_the_schema_is_on_the_page_of_recipe_keys() -> None:
    page = generate.recipe_keys()
    schema = recipe_schema()
    for spec in [schema, *schema["$defs"].values()]:
        for key, value in spec.get("properties", {}).items():
            assert key in ("$schema", "type") or f"| `{key}` |" in page
            assert value.get("description", "").replace("|", "\\|") in page or key == "$schema"


def test_a_required_key_and_a_default_are_told_apart() -> None:
    rows = [line for line in generate.recipe_keys().splitlines() if line.startswith("| `num_epochs`")]
    assert rows == ["| `num_epochs` | integer, at least 1, at most 1e+06 | required |  |"]
