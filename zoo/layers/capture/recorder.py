"""Record a function on static buffers once, replay it many times (CUDA graphs)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol
from weakref import WeakSet

import torch
from torch import Tensor

from zoo.layers.conv import GENConv
from zoo.layers.inputs import BlockInputs
from zoo.ops.dispatch import backend_for

Work = Callable[[], None]

# Kernels are compiled, and libraries take their workspaces, before the work is recorded.
NUM_WARM_UPS = 3


class Recorder(Protocol):
    """Turns work into a function that repeats it."""

    def refusal(self, x: Tensor, inputs: BlockInputs, convs: Sequence[GENConv]) -> str | None:
        """The reason why convolutions of states like ``x`` cannot be recorded; None if they can."""

    def record(self, work: Work, device: torch.device) -> Work:
        """A function that repeats ``work``, which may be called any number of times to record it."""


class GraphRecorder:
    """Records CUDA graphs: all kernels of the work are launched at once, and no Python runs.

    All graphs of a recorder share their memory, so they must be replayed one after the other, in one stream.
    """

    def __init__(self) -> None:
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()

    def refusal(self, x: Tensor, inputs: BlockInputs, convs: Sequence[GENConv]) -> str | None:
        """See ``Recorder``."""
        if x.device.type != "cuda":
            return f"the states are on the {x.device.type}, and CUDA graphs need a GPU"
        if x.dtype == torch.float64:
            return "float64 is computed by a backend that reads sizes back from the GPU"
        if torch.are_deterministic_algorithms_enabled():
            return "deterministic algorithms are asked for, which read sizes back from the GPU"
        name, reason = backend_for(x.device)
        if name != "triton":
            return f"the backend {name!r} ({reason}) reads sizes back from the GPU"
        others = {conv.aggr for conv in convs} - {"max", "softmax"}
        if others:
            return f"the aggregation {min(others)!r} has no kernel and reads sizes back from the GPU"
        edges = inputs.edges
        if edges is not None and (
            edges.attr.requires_grad or (edges.weight is None and any(conv.edge_linear is None for conv in convs))
        ):
            return "edge features with a gradient, or without a projection, have no kernel"
        if torch.cuda.is_current_stream_capturing():
            return "the caller records a CUDA graph already"
        return None

    def record(self, work: Work, device: torch.device) -> Work:
        """See ``Recorder``."""
        with torch.cuda.device(device):
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(NUM_WARM_UPS):
                    work()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Memory can only be shared with a graph that still exists.
            pool = next((other.pool() for other in self._graphs), None)
            # Other threads, such as a data loader's, may allocate meanwhile.
            with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
                work()
        self._graphs.add(graph)
        return graph.replay
