"""The GPU kernels without a GPU, in whole models: interpreted they give the numbers recorded from the authors' code."""

import os
import subprocess
import sys
from pathlib import Path


def test_interpreted_kernels_give_the_recorded_numbers() -> None:
    checks = Path(__file__).with_name("parity_triton_checks.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(checks)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=checks.parents[2])
    assert result.returncode == 0, result.stdout[-4000:]
    assert "passed" in result.stdout
    assert "skipped" not in result.stdout
