"""What stands at the door: the citation names this version and this repository."""

from __future__ import annotations

import sys

from tests.docs.pages import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_citation_is_of_this_version_and_repository() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {PROJECT['version']}\n" in text
    assert f"\nrepository-code: {PROJECT['urls']['Repository']}\n" in text
    assert f"\nlicense: {PROJECT['license']}\n" in text
