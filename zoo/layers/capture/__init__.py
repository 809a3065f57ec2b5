"""CUDA graphs of the layers of a reversible stack. Opt-in; ``docs/capture.md`` explains when and how."""

from zoo.layers.capture.executor import capture_layers, capture_report

__all__ = ["capture_layers", "capture_report"]
