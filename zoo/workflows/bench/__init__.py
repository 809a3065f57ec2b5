"""Benchmarks of whole training steps: time and memory, beside plain autograd and beside PyTorch Geometric."""

from zoo.workflows.bench.run import SUITES, run_suite

__all__ = ["SUITES", "run_suite"]
