import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent.parent


def test_every_package_is_in_the_wheel() -> None:
    # The list is written out, because recipes, cards and bundles are mapped into the package.
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    on_disk = {".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("zoo/**/__init__.py")}
    shipped = {f"zoo.shipped.{kind}" for kind in ("recipes", "model_cards", "bundles")}
    assert set(settings["packages"]) == on_disk | shipped
    for kind in ("recipes", "model_cards", "bundles"):
        assert settings["package-dir"][f"zoo.shipped.{kind}"] == kind
        assert f"zoo.shipped.{kind}" in settings["package-data"]
