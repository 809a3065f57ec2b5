"""Recorded work never waits for the GPU; run by test_interpreted.py."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.layers.capture.recorders import CallRecorder
from tests.layers.graphs import gradients, stack_inputs
from zoo.layers.block import Block
from zoo.layers.capture import capture_layers, capture_report
from zoo.layers.conv import GENConv
from zoo.layers.reversible import ReversibleStack
from zoo.ops import triton_launch
from zoo.ops.dispatch import use_backend

aten = torch.ops.aten
# What makes the CPU wait for the GPU, to learn a number or a size.
WAITING = {
    aten._local_scalar_dense.default,
    aten.is_nonzero.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.unique_consecutive.default,
    aten._unique2.default,
    aten.bincount.default,
    aten.repeat_interleave.Tensor,
}

INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


def is_mask(index):
    return index is not None and index.dtype == torch.bool


class NoWaiting(TorchDispatchMode):
    """Fails where recorded work would wait, or copy between devices."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.seen.add(func)
        if func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is not None:
            return func(*args, **kwargs)
        assert func not in WAITING, f"recorded work calls {func}"
        assert not any(is_mask(index) for index in (args[1] if func in INDEXING else ())), (
            "recorded work selects by mask"
        )
        assert func is not aten._to_copy.default or "device" not in kwargs, "recorded work copies between devices"
        return func(*args, **kwargs)


class StrictRecorder(CallRecorder):
    """Repeats work only, and without waiting, as a graph would: kernels are known and plans are made before."""

    def __init__(self):
        self.modes = []

    def record(self, work, device):
        work()

        def replay():
            with NoWaiting() as mode:
                work()
            self.modes.append(mode)

        return replay


@pytest.fixture(autouse=True)
def triton_in_small_pieces(monkeypatch):
    monkeypatch.setattr(triton_launch, "MAX_SEGMENT_EDGES", 16)
    torch.set_num_threads(1)
    with use_backend("triton"):
        yield


def make_stack(aggr, num_steps):
    torch.manual_seed(0)
    options = {"learn_temperature": aggr == "softmax"}
    layers = [[Block(4, GENConv(4, aggr=aggr, embedding_channels=8, **options)) for _ in range(2)]]
    return ReversibleStack(layers, num_steps=num_steps)


@pytest.mark.parametrize(("aggr", "num_steps"), [("max", 2), ("softmax", 1)])
def test_replays_do_not_wait_and_give_the_same(aggr, num_steps):
    stack, recorder = make_stack(aggr, num_steps), StrictRecorder()
    found = []
    for replayed in (False, True):
        if replayed:
            capture_layers(stack, recorder=recorder)
        found.append([])
        for num_nodes in (5, 4):
            x, inputs = stack_inputs(num_nodes, dtype=torch.float32)
            weight = inputs.edges.weight.clone().requires_grad_()
            x.requires_grad_()
            out = stack(x, inputs._replace(edges=inputs.edges._replace(weight=weight)))
            out.square().sum().backward()
            found[-1].append({"out": out.detach(), "x": x.grad, "weight": weight.grad, **gradients(stack)})
    assert capture_report(stack) == {"": "captured"}
    assert len(recorder.modes) == 2 * 2 * num_steps
    assert {aten.mm.default, aten.addmm.default} & recorder.modes[-1].seen
    for one, other in zip(*found, strict=True):
        scale = max(float(value.abs().max()) for value in one.values())
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-4 * scale, msg=name)


def test_waiting_is_noticed():
    for wait in (lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: torch.repeat_interleave(x.long())):
        with pytest.raises(AssertionError, match="recorded work"), NoWaiting():
            wait(torch.ones(3))
