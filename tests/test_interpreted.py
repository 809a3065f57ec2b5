"""Triton kernels without a GPU, under its interpreter, which is chosen for a whole process: one runs all checks."""

import os
import subprocess
import sys
from pathlib import Path

CHECKS = (
    "tests/layers/capture/waiting_checks.py",
    "tests/models/parity_triton_checks.py",
    "tests/ops/norm_relu_triton_checks.py",
    "tests/ops/triton_checks.py",
    "tests/ops/weighted_sum_triton_checks.py",
)


def test_interpreted_kernels_pass_all_their_checks() -> None:
    root = Path(__file__).parents[1]
    assert sorted(CHECKS) == sorted(str(path.relative_to(root)) for path in root.glob("tests/**/*_checks.py"))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *CHECKS]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=root)
    assert result.returncode == 0, result.stdout[-4000:]
    assert [name for name in CHECKS if f"\n{name} ." not in result.stdout] == [], "files without a check"
    assert "skipped" not in result.stdout
