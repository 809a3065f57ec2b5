"""Docstrings against the code that they describe."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import zoo

FOLDER = Path(zoo.__file__).parent
FILES = sorted(FOLDER.rglob("*.py"))
WITH_DOCSTRING = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
Function = ast.FunctionDef | ast.AsyncFunctionDef


def documented(tree: ast.Module) -> Iterator[tuple[str, str, set[str]]]:
    """Every function and class with an Args section: name, docstring, and the names that it may explain."""
    for node in ast.walk(tree):
        if isinstance(node, Function):
            parameters = parameters_of(node)
        elif isinstance(node, ast.ClassDef):
            methods = [item for item in node.body if isinstance(item, Function) and item.name == "__init__"]
            fields = {item.target.id for item in node.body if isinstance(item, ast.AnnAssign)}
            parameters = parameters_of(methods[0]) if methods else fields
        else:
            continue
        docstring = ast.get_docstring(node)
        if docstring and "Args:" in docstring:
            yield node.name, docstring, parameters


def parameters_of(function: Function) -> set[str]:
    arguments = function.args
    names = {item.arg for item in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
    names |= {item.arg for item in (arguments.vararg, arguments.kwarg) if item is not None}
    return names - {"self", "cls"}


def explained(docstring: str) -> set[str]:
    section = re.split(r"\n(?=\S)", docstring.partition("Args:\n")[2])[0]
    entries = re.findall(r"^ {4}([\w*][\w*, ]*?)(?: \([^)]*\))?:", section, re.MULTILINE)
    return {name.strip(" *") for entry in entries for name in entry.split(",")} - {"self", "cls"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_an_args_section_names_the_arguments_that_there_are(path: Path) -> None:
    faults = {}
    for name, docstring, parameters in documented(ast.parse(path.read_text(encoding="utf-8"))):
        if explained(docstring) != parameters:
            wrong, missing = explained(docstring) - parameters, parameters - explained(docstring)
            faults[name] = f"does not exist: {sorted(wrong)}, not explained: {sorted(missing)}"
    assert not faults


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_a_docstring_begins_with_a_verb_or_a_noun_phrase(path: Path) -> None:
    nodes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, WITH_DOCSTRING)]
    docstrings = [ast.get_docstring(node) or "" for node in nodes]
    assert not [text for text in docstrings if re.match(r"(What|Whether|How|Where|Within)\b", text)]


def test_the_check_sees_arguments_of_every_form() -> None:
    source = '''
def f(a, /, b, *rest, c=1, **more):
    """Do it.

    Args:
        a: first.
        b, c: others,
            on two lines: with a colon.
        rest: the rest.
        more: and more.

    Returns:
        x: y.
    """
'''
    ((_, docstring, parameters),) = documented(ast.parse(source))
    assert explained(docstring) == parameters == {"a", "b", "rest", "c", "more"}
