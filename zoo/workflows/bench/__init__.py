"""Benchmarks of whole training steps: time and memory, beside plain autograd and beside PyTorch Geometric."""

from zoo.workflows.bench.run import base_case, run_suite
from zoo.workflows.bench.suites import SUITES

__all__ = ["SUITES", "base_case", "run_suite"]
