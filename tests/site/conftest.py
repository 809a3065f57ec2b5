"""The site, built once for all tests of it."""

from pathlib import Path

import pytest

from gallery.pages import write_site


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    write_site(out)
    return out
