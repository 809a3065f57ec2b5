"""Reversible layers as CUDA graphs: one layer is recorded and replayed for all. Opt-in, by :func:`capture_layers`.

A layer is some fifty small kernels, and launching them one by one from Python takes longer than running them. All
layers of a stack do the same work on other numbers: so ONE graph of a layer forward and ONE of a layer backward (each
block evaluated once with the tape on, its input restored, its gradients) are recorded on tensors that stay where they
are. Before each replay the parameters of its layer are copied there, after each backward replay their gradients are
copied out. Neither recording nor memory depends on depth, and layers that share parameters add up their gradients.

Parts of a graph differ in size. A recording has room for a few more nodes and edges than it was made for; nodes
beyond the part's own are no source of the part's nodes, give them no gradient, and are never returned.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zoo.layers.block import Block, is_plain
from zoo.layers.conv import MLP, GENConv
from zoo.layers.coupling import join_groups
from zoo.layers.inputs import BlockInputs
from zoo.layers.recorder import GraphRecorder, Recorder
from zoo.layers.recording import Kind, Recording, Template, leaves_of, roomy, with_leaves
from zoo.layers.replay import Slot, collect, exclusive
from zoo.layers.reversible import ReversibleStack, run_by, runner_of
from zoo.ops.csr import CSR

_LOGGER = logging.getLogger(__name__)

# What these do is the same each time: no random numbers, no statistics over nodes, nothing read back from the GPU.
REPEATABLE: frozenset[type[nn.Module]] = frozenset({Block, GENConv, MLP, nn.LayerNorm, nn.Linear, nn.ReLU})
# Parts to learn from and parts to evaluate on, and one of each that did not fit.
MAX_RECORDINGS = 4


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
        run_by(stack, Captured(stack, recorder or GraphRecorder()))


def capture_report(model: nn.Module) -> dict[str, str]:
    """By the name of each reversible stack in a model: ``captured``, or why its last call was not."""
    report = {}
    for name, stack in _stacks(model).items():
        runner = runner_of(stack)
        report[name] = runner.status if isinstance(runner, Captured) else "not asked for"
    return report


def _stacks(model: nn.Module) -> dict[str, ReversibleStack]:
    return {name: module for name, module in model.named_modules() if isinstance(module, ReversibleStack)}


class Captured:
    """The runner of one stack: its recordings, each recorded for a kind of input and a size.

    Args:
        stack: whose layers are recorded; they are kept, the stack is not.
        recorder: how.

    Attributes:
        status: ``captured``, or why the last call was not; before the first call why none will be.
    """

    def __init__(self, stack: ReversibleStack, recorder: Recorder) -> None:
        layers = [list(cast(nn.ModuleList, layer)) for layer in stack.layers]
        self._unfit = _unfit(layers) if stack.reversible else "the stack is not reversible"
        self.status, self._warned = self._unfit or "not called yet", False
        self._recorder = recorder
        self._places = [_places(layer) for layer in layers]
        slots = [[place for place in self._places[0] if place.group == group] for group in range(stack.num_groups)]
        self._template = Template(layers[0], [[place.slot for place in places] for places in slots], stack.slice_edges)
        self._recordings: list[Recording] = []

    def __call__(self, stack: ReversibleStack, x: Tensor, inputs: BlockInputs) -> Tensor | None:
        """See ``reversible.Runner``."""
        reason = self._unfit or self._recorder.refusal(x) or _refusal(x, inputs)
        if reason is not None:
            if self.status != reason or not self._warned:
                _LOGGER.warning("the layers are not captured: %s", reason)
            self.status, self._warned = reason, True
            return None
        self.status = "captured"
        layers = [_values(places) for places in self._places]
        leaves = leaves_of(inputs)
        tensors = [x, *(leaf for leaf in leaves if leaf is not None), *(value for layer in layers for value in layer)]
        with_tape = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        learned = [any(layer[k].requires_grad for layer in layers) for k in range(len(layers[0]))]
        kind = Kind(
            states=(x.dtype, x.device, x.size(1)),
            leaves=tuple(None if leaf is None else _form(leaf, index in (0, 3)) for index, leaf in enumerate(leaves)),
            col=inputs.csr.col.dtype,
            parameters=tuple(_form(value) for value in layers[0]),
            autocast=(torch.is_autocast_enabled(x.device.type), torch.get_autocast_dtype(x.device.type)),
            wanted_leaves=tuple(with_tape and leaf is not None and leaf.requires_grad for leaf in leaves),
            wanted=tuple(with_tape and wanted for wanted in learned),
            with_tape=with_tape,
        )
        recording = self._recording(kind, x, inputs, layers[0])
        if not with_tape:
            return join_groups(recording.advance(x, inputs, layers, stack.num_steps), x.dtype)
        distinct, positions = _distinct(layers)
        call = _Call(stack, recording, positions)
        return cast(Tensor, _Replay.apply(call, x, *inputs.csr, *leaves, *distinct))  # type: ignore[no-untyped-call]

    def _recording(self, kind: Kind, x: Tensor, inputs: BlockInputs, values: Sequence[Tensor]) -> Recording:
        """The smallest recording that serves the graph, or a new one."""
        n, num_edges = inputs.csr.num_nodes, inputs.csr.num_edges
        same = [recording for recording in self._recordings if recording.kind == kind]
        able = [recording for recording in same if recording.serves(n, num_edges)]
        if able:
            recording = min(able, key=lambda recording: (recording.num_edges, recording.num_nodes))
            self._recordings.remove(recording)
        else:
            near = [recording for recording in same if recording.resembles(n, num_edges)]
            size = (
                max([roomy(n + 1), *(recording.num_nodes for recording in near)]),
                max([roomy(num_edges), *(recording.num_edges for recording in near)]),
            )
            # Parameters and states may have been made in inference mode; what is recorded serves training too.
            with torch.inference_mode(False), torch.no_grad():
                recording = Recording(self._template, kind, size, x, inputs, values, self._recorder)
            self._recordings = [other for other in self._recordings if other not in near][1 - MAX_RECORDINGS :]
        self._recordings.append(recording)
        return recording


class _Call(NamedTuple):
    """What the Function needs to know besides tensors; ``positions[d][k]`` is parameter k of distinct layer d."""

    stack: ReversibleStack
    recording: Recording
    positions: list[list[int]]


class _Replay(torch.autograd.Function):
    """As ``reversible._Reverse``, with layers that are recorded.

    Saved are the final stream, the stack's inputs and the parameters, the last two by reference.
    """

    @staticmethod
    def forward(ctx: Any, call: _Call, x: Tensor, *tensors: Any) -> Tensor:
        inputs, layers = _unpack(call, tensors)
        stream = call.recording.advance(x, inputs, layers, call.stack.num_steps)
        ctx.call = call
        ctx.save_for_backward(*stream, *tensors)
        return join_groups(stream, x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        call: _Call = ctx.call
        saved: list[Any] = list(ctx.saved_tensors)  # raises if anything was changed in place
        num_groups = call.stack.num_groups
        inputs, layers = _unpack(call, saved[num_groups:])
        with exclusive(call.stack):
            grad_x, leaves, parameters = call.recording.retreat(
                saved[:num_groups], grad, inputs, layers, call.stack.num_steps
            )
        total: list[Tensor | None] = [None] * (len(saved) - num_groups - NUM_INPUTS)
        for found, positions in zip(parameters, call.positions, strict=False):
            for gradient, which in zip(found, positions, strict=True):
                known = total[which]
                total[which] = gradient if known is None or gradient is None else known + gradient
        grads = (None, grad_x, None, None, *leaves, *total)
        return tuple(gradient if needed else None for gradient, needed in zip(grads, ctx.needs_input_grad, strict=True))


# Tensors of a call before the parameters: rowptr, col and the leaves.
NUM_INPUTS = 6


def _unpack(call: _Call, tensors: Sequence[Any]) -> tuple[BlockInputs, list[list[Tensor]]]:
    """The inputs of the blocks, and the parameters of each distinct layer."""
    rowptr, col, *leaves = tensors[:NUM_INPUTS]
    values = tensors[NUM_INPUTS:]
    inputs = with_leaves(BlockInputs(CSR(rowptr, col)), leaves)
    return inputs, [[values[which] for which in layer] for layer in call.positions]


class _Place(NamedTuple):
    """Where a block keeps a parameter: its group, and the slot, counted within the layer."""

    group: int
    slot: Slot


def _places(blocks: Sequence[nn.Module]) -> list[_Place]:
    """All places of the parameters of a layer."""
    places: list[_Place] = []
    count = 0
    for group, block in enumerate(blocks):
        values, slots = collect([block], "_parameters")
        places += [_Place(group, slot._replace(which=slot.which + count)) for slot in slots]
        count += len(values)
    return places


def _values(places: Sequence[_Place]) -> list[Tensor]:
    """The parameters that stand there now."""
    values = {slot.which: slot.holder[slot.name] for _, slot in places}
    return cast("list[Tensor]", [values[which] for which in range(len(values))])


def _distinct(layers: Sequence[Sequence[Tensor]]) -> tuple[list[Tensor], list[list[int]]]:
    """Every parameter once, and which stands where."""
    distinct = list({id(value): value for layer in layers for value in layer}.values())
    where = {id(value): which for which, value in enumerate(distinct)}
    return distinct, [[where[id(value)] for value in layer] for layer in layers]


def _form(tensor: Tensor, per_item: bool = False) -> tuple[torch.dtype, tuple[int, ...]]:
    """Precision and shape, without the number of nodes or edges."""
    return tensor.dtype, tuple(tensor.shape)[1:] if per_item else tuple(tensor.shape)


def _refusal(x: Tensor, inputs: BlockInputs) -> str | None:
    """Why a call cannot be replayed."""
    if inputs.kept is not None:
        return "every layer attends to other edges"
    if not x.size(0):
        return "there are no nodes"
    if torch._C._are_functorch_transforms_active():
        return "a torch.func transform is at work"
    if torch.nn.modules.module._has_any_global_hook():  # type: ignore[no-untyped-call]
        return "all modules have a hook"
    return None


def _unfit(layers: Sequence[Sequence[nn.Module]]) -> str | None:
    """Why layers cannot be replayed, or not one for another."""
    for number, blocks in enumerate(layers):
        for module in (module for block in blocks for module in block.modules()):
            name = type(module).__name__
            if type(module) not in REPEATABLE:
                return f"{name} is not known to do the same work each time"
            if not is_plain(module):
                return f"a {name} of layer {number} has hooks, or a forward of its own"
        if len({value.dtype for value in _values(_places(blocks))}) > 1:
            return f"the parameters of layer {number} are of several precisions"
        if _structure(blocks) != _structure(layers[0]):
            return f"layer {number} is built in another way than layer 0"
    return None


def _structure(blocks: Sequence[nn.Module]) -> Any:
    """What two layers that do the same work have in common."""
    modules = [
        (type(module), {name: value for name, value in vars(module).items() if name[0] != "_" and name != "training"})
        for block in blocks
        for module in block.modules()
    ]
    places = _places(blocks)
    shapes = [_form(value) for value in _values(places)]
    return modules, [(group, slot.name, slot.which) for group, slot in places], shapes
