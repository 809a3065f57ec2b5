"""Checks of Triton kernels under Triton's interpreter, which is chosen for a whole process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def assert_checks_pass(test_file: str, name: str) -> None:
    """Run the file ``name`` beside a test file in a process of its own: all its checks pass, and none is skipped."""
    checks = Path(test_file).with_name(name)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(checks)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[1]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=root)
    assert result.returncode == 0, result.stdout[-4000:]
    assert "passed" in result.stdout
    assert "skipped" not in result.stdout
