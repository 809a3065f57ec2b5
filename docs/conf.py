"""Settings of Sphinx. ``make docs`` builds the pages into build/docs."""

import posixpath
import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # Sphinx needs it there

DOCS = Path(__file__).parent
ROOT = DOCS.parent
# The pages' own generators, and the package of this checkout.
sys.path[:0] = [str(DOCS), str(ROOT)]

import generate  # noqa: E402

import zoo  # noqa: E402

METADATA = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = METADATA["urls"]["Repository"]

project = "revgnn-zoo"
author = copyright = METADATA["authors"][0]["name"]
release = version = zoo.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["README.md"]
source_suffix = {".md": "markdown"}
# A page that is not there yet is no fault of the list that would hold it.
suppress_warnings = ["toc.empty_glob"]

myst_enable_extensions = ["attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_ivar, napoleon_use_rtype = True, False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
copybutton_prompt_text = ">>> "
copybutton_only_copy_prompt_lines = False

html_theme = "furo"
html_title = f"revgnn-zoo {release}"
html_static_path = ["_static"]
html_css_files = ["zoo.css"]
html_theme_options = {
    "source_repository": f"{REPOSITORY}/",
    "source_branch": "main",
    "source_directory": "docs/",
    "light_css_variables": {"color-brand-primary": "#1f5f86", "color-brand-content": "#1f5f86"},
    "dark_css_variables": {"color-brand-primary": "#8cc4e6", "color-brand-content": "#8cc4e6"},
}
# External addresses are looked at by `make docs-links` only.
linkcheck_timeout = 20


def _read(app: Sphinx, page: str, content: list[str]) -> None:
    """Put generated text in its place, and turn links to files of the repository into addresses."""
    text = re.sub(r"^<!-- generated: (\w+) -->$", lambda found: generate.PAGES[found[1]](), content[0], flags=re.M)
    folder = posixpath.dirname(page)

    def address(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", folder, found[2]))
        if path.startswith("docs/") or found[1].startswith("!"):
            return found[0]
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"{found[1]}({REPOSITORY}/{kind}/main/{path})"

    content[0] = re.sub(r"(!?\[[^\]]*\])\(((?:\.\./)+[^)\s]+)\)", address, text)


def setup(app: Sphinx) -> None:
    app.connect("source-read", _read)
