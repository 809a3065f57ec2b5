"""Build the gallery: ``make site``, or PYTHONPATH=site python -m gallery [--out FOLDER]."""

from __future__ import annotations

import argparse
from pathlib import Path

from gallery.pages import write_site


def main() -> None:
    """Read the command line and write the site."""
    parser = argparse.ArgumentParser(prog="gallery", description="Write the gallery of models as a static site.")
    parser.add_argument("--out", type=Path, default=Path("build/site"), help="the folder (default: %(default)s)")
    out = parser.parse_args().out
    pages = write_site(out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{len(pages)} pages, {size / 1e6:.1f} MB: {out / 'index.html'}")


if __name__ == "__main__":
    main()
