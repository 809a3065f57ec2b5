"""Text of pages that is made from the package: recipe keys, commands, exit codes, models, the notebook."""

from __future__ import annotations

import base64
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import tables  # noqa: E402
from zoo import errors  # noqa: E402
from zoo.cli import COMMANDS, cli  # noqa: E402
from zoo.spec.recipe import recipe_schema  # noqa: E402

NOTEBOOK = ROOT / "examples" / "depth.ipynb"
RANGES = {"minimum": "at least", "maximum": "at most", "exclusiveMinimum": "above", "exclusiveMaximum": "below"}

Json = Mapping[str, Any]


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table; line breaks and bars in cells are taken care of."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(" ".join(c.replace("|", "\\|").split()) for c in line) + " |" for line in lines)


# Recipe keys


def recipe_keys() -> str:
    """Every key of a recipe with its values, default and meaning, section by section."""
    schema = recipe_schema()
    return "\n\n".join(_sections(schema["$defs"], schema))


def _sections(defs: Json, root: Json) -> Iterator[str]:
    waiting: list[tuple[str, list[Json]]] = [("recipe", [root])]
    done: set[str] = set()
    while waiting:
        path, specs = waiting.pop(0)
        yield f"(key-{path})=\n## `{path}`"
        for spec in specs:
            properties = spec.get("properties", {})
            if len(specs) > 1:
                yield "### " + " or ".join(f"`{name}`" for name in _constants(properties["type"]))
            yield _text(spec.get("description", ""))
            rows = []
            for key, value in properties.items():
                if key == "$schema" or (key == "type" and len(specs) > 1):
                    continue
                place = key if path == "recipe" else f"{path}.{key}"
                names = _references(value)
                if names and place not in done:
                    done.add(place)
                    waiting.append((place, [defs[name] for name in names]))
                rows.append((f"`{key}`", _values(value, place), _default(spec, key, value), _meaning(value)))
            if rows:
                yield table(("key", "value", "default", "meaning"), rows)


def _references(schema: Json) -> list[str]:
    """Names of the objects that a value may be."""
    if "$ref" in schema:
        return [schema["$ref"].rpartition("/")[2]]
    inner = [*schema.get("oneOf", ()), *schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else ())]
    return list(dict.fromkeys(name for each in inner for name in _references(each)))


def _constants(schema: Json) -> list[str]:
    return [str(each) for each in schema.get("enum", [schema["const"]] if "const" in schema else [])]


def _values(schema: Json, place: str) -> str:
    """The values that a key may have, in words."""
    if _references(schema):
        many = " (a list)" if schema.get("type") == "array" else ""
        return f"[object](#key-{place}){many}"
    if constants := _constants(schema):
        return ", ".join(f"`{each}`" for each in constants)
    choices = [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]
    if choices:
        return "; or ".join(_values(each, place) for each in choices)
    if schema.get("type") == "array":
        return f"list of {_values(schema['items'], place)}"
    bounds = [f"{words} {schema[key]:g}" for key, words in RANGES.items() if key in schema]
    return ", ".join([schema.get("type", "any"), *bounds])


def _default(spec: Json, key: str, schema: Json) -> str:
    if key in spec.get("required", ()):
        return "required"
    default = schema.get("default")
    return "" if default in (None, "") else f"`{json.dumps(default)}`"


def _meaning(schema: Json) -> str:
    return str(schema.get("description", ""))


def _text(docstring: str) -> str:
    """A docstring as Markdown."""
    return inspect.cleandoc(docstring).replace("``", "`")


# Commands


def commands() -> str:
    """Every command with its usage, text, options and example, as ``--help`` has them."""
    context = click.Context(cli, info_name="revgnn-zoo")
    return "\n\n".join(text for name in COMMANDS for text in _command(name, context))


def _command(name: str, parent: click.Context) -> Iterator[str]:
    command = cli.get_command(parent, name)
    assert command is not None
    context = click.Context(command, info_name=name, parent=parent)
    yield f"(command-{name})=\n## `{name}`"
    yield f"```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```"
    yield _text(command.help or "").replace("\b\n", "")
    records = [p.get_help_record(context) for p in command.get_params(context) if isinstance(p, click.Option)]
    rows = [(f"`{record[0]}`", record[1]) for record in records if record]
    yield table(("option", "meaning"), [row for row in rows if "--help" not in row[0]])
    example = (command.epilog or "").partition("Example:\n")[2]
    if example:
        yield f"```sh\n{inspect.cleandoc(example)}\n```"


# Exit codes


def exit_codes() -> str:
    """The exit code of each error of the package."""
    found = [each for each in vars(errors).values() if inspect.isclass(each) and issubclass(each, errors.ZooError)]
    rows = [
        (f"{each.exit_code}", f"`{each.__name__}`", inspect.cleandoc(each.__doc__ or "").partition("\n")[0])
        for each in sorted(found, key=lambda each: each.exit_code)
    ]
    return table(("code", "error", "when"), rows)


# Pages that stand elsewhere in the repository


def _section(path: Path, title: str) -> str:
    """The text below a heading of the second level, up to the next one, its headings one level higher."""
    text = path.read_text(encoding="utf-8").partition(f"\n## {title}\n")[2]
    return re.sub(r"^##(#*) ", r"#\1 ", text.partition("\n## ")[0].strip(), flags=re.M)


def adding() -> str:
    """How to add things, from CONTRIBUTING.md."""
    return re.sub(
        r"^# ", "## ", _section(ROOT / "CONTRIBUTING.md", "Adding things").replace("\n### ", "\n# "), flags=re.M
    )


def changelog() -> str:
    """CHANGELOG.md without its title."""
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").partition("\n")[2]


# The notebook


def notebook() -> str:
    """The cells of the notebook with the outputs that it was saved with."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join(text for cell in cells for text in _cell(cell))


def _cell(cell: Json) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            folder = Path(__file__).parent / "_static" / "notebook"
            folder.mkdir(exist_ok=True)
            name = f"{cell['id']}.png"
            (folder / name).write_bytes(base64.b64decode("".join(data["image/png"])))
            yield f"![Output of the cell above](../_static/notebook/{name})"
        elif text := "".join(output.get("text", data.get("text/plain", []))):
            yield f"```text\n{text.rstrip()}\n```"


PAGES: dict[str, Callable[[], str]] = {
    "recipe_keys": recipe_keys,
    "commands": commands,
    "exit_codes": exit_codes,
    "adding": adding,
    "changelog": changelog,
    "notebook": notebook,
    "results": tables.results,
    "models": tables.models,
    "depth_reversible": partial(tables.depth, "minesweeper_rev_1001"),
    "depth_equilibrium": partial(tables.depth, "minesweeper_rev_deq"),
    "depth_stacks": tables.stacks,
    "range_road": tables.roads,
    "more_steps": tables.more_steps,
    "depth_tied": partial(tables.depth, "minesweeper_tied_1004"),
    "recipes": tables.recipes,
}
