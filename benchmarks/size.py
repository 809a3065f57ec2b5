"""Print the size of the package and fail above the budget in ``pyproject.toml``: ``python benchmarks/size.py``."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main() -> int:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    budget = re.search(r"^\[tool\.zoo-size\]\nmax_lines = (\d+)$", text, re.MULTILINE)
    if budget is None:
        print("pyproject.toml: expected [tool.zoo-size] with max_lines", file=sys.stderr)
        return 1
    files = [path.read_text(encoding="utf-8") for path in (ROOT / "zoo").rglob("*.py")]
    num_lines, max_lines = sum(text.count("\n") for text in files), int(budget[1])
    print(f"zoo/: {num_lines:,} lines in {len(files)} files, budget {max_lines:,}")
    return int(num_lines > max_lines)


if __name__ == "__main__":
    sys.exit(main())
