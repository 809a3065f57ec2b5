"""Run the layers of a reversible stack as CUDA graphs. Opt-in, by :func:`capture_layers`.

All layers of a stack do the same work on other numbers: ONE graph of a layer forward and ONE of a layer backward are
recorded on static buffers and replayed for each layer, after its parameters have been copied there. The whole of it is
explained in ``docs/capture.md``.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from typing import Any, Protocol, cast
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zoo.errors import ZooWarning
from zoo.layers.block import Block, is_plain
from zoo.layers.capture.recording import (
    NUM_LEAVES,
    Layer,
    Recording,
    Signature,
    Work,
    form,
    leaves_of,
    round_up,
    with_leaves,
)
from zoo.layers.conv import MLP, GENConv
from zoo.layers.coupling import join_groups
from zoo.layers.inputs import BlockInputs
from zoo.layers.replay import exclusive
from zoo.layers.reversible import ReversibleStack
from zoo.ops.csr import CSR
from zoo.ops.dispatch import backend_for

__all__ = ["capture_layers", "capture_report"]

# These modules do the same work each time: no random numbers, no statistics over nodes, nothing read back from the GPU.
REPEATABLE: frozenset[type[nn.Module]] = frozenset({Block, GENConv, MLP, nn.LayerNorm, nn.Linear, nn.ReLU})
# Parts to learn from and parts to evaluate on, and one of each that did not fit.
MAX_RECORDINGS = 4
# Kernels are compiled, and libraries take their workspaces, before the work is recorded.
NUM_WARM_UPS = 3


def capture_layers(model: nn.Module, *, recorder: Recorder | None = None) -> None:
    """From now on replay the layers of every reversible stack in a model, where that is possible.

    Where it is not, the stack runs as before; a warning and :func:`capture_report` say why. Layers are looked at now:
    hooks or other modules put into them later are not seen; call this again. New values of parameters, and new
    parameters, are. Plain attributes (temperature, eps) and PyTorch's precision of matrix products, if changed later,
    are not seen either.

    Args:
        model: any; copies made of it later start without.
        recorder: None: CUDA graphs.
    """
    for stack in _stacks(model).values():
        stack.executor = CaptureExecutor(stack, recorder or GraphRecorder())


def capture_report(model: nn.Module) -> dict[str, str]:
    """By the name of each reversible stack in a model: ``captured``, or why its last call was not."""
    return {
        name: stack.executor.status if isinstance(stack.executor, CaptureExecutor) else "not asked for"
        for name, stack in _stacks(model).items()
    }


def _stacks(model: nn.Module) -> dict[str, ReversibleStack]:
    return {name: module for name, module in model.named_modules() if isinstance(module, ReversibleStack)}


class CaptureExecutor:
    """The executor of one stack: its recordings, each for a signature and a size. The stack itself is not kept.

    Attributes:
        status: ``captured``, or why the last call was not; before the first call why none will be.
    """

    def __init__(self, stack: ReversibleStack, recorder: Recorder) -> None:
        self._layers = [Layer.of(list(cast(nn.ModuleList, layer))) for layer in stack.layers]
        self._convs = [module for module in stack.modules() if isinstance(module, GENConv)]
        self._unfit = _unfit(self._layers) if stack.reversible else "the stack is not reversible"
        self.status, self._warned = self._unfit or "not called yet", False
        self._recorder, self._slice_edges = recorder, stack.slice_edges
        self._recordings: list[Recording] = []

    def __call__(self, stack: ReversibleStack, x: Tensor, inputs: BlockInputs) -> Tensor | None:
        """See ``reversible.Executor``."""
        reason = self._unfit or self._recorder.refusal(x, inputs, self._convs) or _refusal(x, inputs)
        if reason is not None:
            is_news = self.status != reason or not self._warned
            self.status, self._warned = reason, True
            if is_news:
                warnings.warn(f"the layers are not captured: {reason}", ZooWarning, stacklevel=4)
            return None
        self.status = "captured"
        layers = [layer.parameters() for layer in self._layers]
        signature = Signature.of(x, inputs, layers)
        recording = self._recording(signature, inputs, layers[0])
        if not signature.has_backward:
            return join_groups(recording.forward(x, inputs, layers, stack.num_steps), x.dtype)
        tensors = *inputs.csr, *leaves_of(inputs), *itertools.chain.from_iterable(layers)
        return cast(Tensor, _Replay.apply(stack, recording, x, *tensors))  # type: ignore[no-untyped-call]

    def _recording(self, signature: Signature, inputs: BlockInputs, parameters: Sequence[Tensor]) -> Recording:
        """The smallest recording that serves the graph, or a new one."""
        num_nodes, num_edges = inputs.csr.num_nodes, inputs.csr.num_edges
        same = [recording for recording in self._recordings if recording.signature == signature]
        able = [recording for recording in same if recording.serves(num_nodes, num_edges)]
        if able:
            recording = min(able, key=lambda recording: (recording.num_edges, recording.num_nodes))
            self._recordings.remove(recording)
        else:
            near = [recording for recording in same if recording.is_near(num_nodes, num_edges)]
            size = (
                max([round_up(num_nodes + 1), *(recording.num_nodes for recording in near)]),
                max([round_up(num_edges), *(recording.num_edges for recording in near)]),
            )
            # Parameters and states may have been made in inference mode; what is recorded serves training too.
            with torch.inference_mode(False), torch.no_grad():
                recording = Recording(
                    self._layers[0], self._slice_edges, signature, size, inputs, parameters, self._recorder.record
                )
            self._recordings = [other for other in self._recordings if other not in near][1 - MAX_RECORDINGS :]
        self._recordings.append(recording)
        return recording


class _Replay(torch.autograd.Function):
    """As ``reversible._Reverse``, with layers that are recorded.

    Saved are the final stream, the stack's inputs and the parameters, the last two by reference.
    """

    @staticmethod
    def forward(ctx: Any, stack: ReversibleStack, recording: Recording, x: Tensor, *tensors: Any) -> Tensor:
        inputs, layers = _unpack(tensors, len(stack.layers))
        stream = recording.forward(x, inputs, layers, stack.num_steps)
        ctx.stack, ctx.recording = stack, recording
        ctx.save_for_backward(*stream, *tensors)
        return join_groups(stream, x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        stack: ReversibleStack = ctx.stack
        saved: list[Any] = list(ctx.saved_tensors)  # raises if anything was changed in place
        stream, tensors = saved[: stack.num_groups], saved[stack.num_groups :]
        inputs, layers = _unpack(tensors, len(stack.layers))
        with exclusive(stack):
            grad_x, leaves, parameters = ctx.recording.backward(stream, grad, inputs, layers, stack.num_steps)
        # A parameter of several layers was passed in several times: autograd adds up its gradients.
        # Distinct layers beyond the last step come last and get none.
        grads = (None, None, grad_x, None, None, *leaves, *parameters)
        pairs = itertools.zip_longest(grads, ctx.needs_input_grad)
        return tuple(gradient if needed else None for gradient, needed in pairs)


def _unpack(tensors: Sequence[Any], num_layers: int) -> tuple[BlockInputs, list[list[Tensor]]]:
    """The inputs of the blocks, and the parameters of each distinct layer."""
    rowptr, col, *rest = tensors
    leaves, parameters = rest[:NUM_LEAVES], rest[NUM_LEAVES:]
    count = len(parameters) // num_layers
    layers = [parameters[start : start + count] for start in range(0, len(parameters), count)]
    return with_leaves(BlockInputs(CSR(rowptr, col)), leaves), layers


def _refusal(x: Tensor, inputs: BlockInputs) -> str | None:
    """The reason why a call cannot be replayed."""
    if inputs.kept is not None:
        return "every layer attends to other edges"
    if inputs.edge_weight is not None:
        return "edges have weights"
    if not x.size(0):
        return "there are no nodes"
    if torch._C._are_functorch_transforms_active():
        return "a torch.func transform is at work"
    if torch.nn.modules.module._has_any_global_hook():  # type: ignore[no-untyped-call]
        return "all modules have a hook"
    return None


def _unfit(layers: Sequence[Layer]) -> str | None:
    """The reason why layers cannot be replayed, or not one for another."""
    for number, layer in enumerate(layers):
        for module in (module for block in layer.blocks for module in block.modules()):
            name = type(module).__name__
            if type(module) not in REPEATABLE:
                return f"{name} is not known to do the same work each time"
            if not is_plain(module):
                return f"a {name} of layer {number} has hooks, or a forward of its own"
        if len({parameter.dtype for parameter in layer.parameters()}) > 1:
            return f"the parameters of layer {number} are of several precisions"
        if _structure(layer) != _structure(layers[0]):
            return f"layer {number} is built in another way than layer 0"
    return None


def _structure(layer: Layer) -> Any:
    """Everything that is equal in layers that do the same work."""
    modules = [
        (type(module), {name: value for name, value in vars(module).items() if name[0] != "_" and name != "training"})
        for block in layer.blocks
        for module in block.modules()
    ]
    places = [[(slot.name, slot.which) for slot in slots] for slots in layer.slots]
    return modules, places, [form(parameter) for parameter in layer.parameters()]


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
