"""Replayed layers are the layers: whatever the parts, the parameters and the order of the calls."""

import contextlib
import copy
import gc
import pickle
import re
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.layers.capture.recorders import CallRecorder
from tests.layers.graphs import gen_stack, gradients, stack_inputs
from zoo.errors import DataError, ZooWarning
from zoo.layers.block import Block
from zoo.layers.capture import MAX_RECORDINGS, NUM_WARM_UPS, GraphRecorder, capture_layers, capture_report
from zoo.layers.capture.recording import round_up
from zoo.layers.conv import GATConv, GENConv
from zoo.layers.inputs import BlockInputs
from zoo.layers.reversible import ReversibleStack
from zoo.ops.csr import CSR, copy_into, empty_csr
from zoo.ops.dispatch import use_backend
from zoo.ops.edges import EdgeInput

SIZES = (12, 9, 13, 12, 31, 11)


class CountingRecorder(CallRecorder):
    """Counts what is recorded and how often it is replayed."""

    def __init__(self):
        self.num_recorded = self.num_replayed = 0

    def record(self, work, device):
        self.num_recorded += 1

        def replay():
            self.num_replayed += 1
            work()

        return replay


def twins(stack=None, recorder=None, **options):
    """A stack whose layers are replayed, and the same stack as it is."""
    stack = gen_stack(**options).double() if stack is None else stack
    twin = copy.deepcopy(stack)
    capture_layers(stack, recorder=recorder or CallRecorder())
    return stack, twin


def gen_layers(num_layers=3, **options):
    torch.manual_seed(0)
    return [[Block(4, GENConv(4, embedding_channels=8, **options)) for _ in range(2)] for _ in range(num_layers)]


def run(stack, x, inputs):
    """Output and all gradients of a step."""
    x = x.clone().requires_grad_()
    leaves = [None if leaf is None else leaf.clone().requires_grad_() for leaf in (*(inputs.edges or ()), inputs.mask)]
    edges = None if inputs.edges is None else EdgeInput(*leaves[:3])
    out = stack(x, inputs._replace(edges=edges, mask=leaves[-1]))
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    found = {f"leaf {index}": leaf.grad for index, leaf in enumerate(leaves) if leaf is not None}
    return {"out": out.detach(), "x": x.grad, **found, **gradients(stack)}


def assert_same(actual, expected, rtol=1e-10):
    assert actual.keys() == expected.keys()
    atol = rtol * max(float(value.abs().max()) for value in expected.values() if value is not None)
    for name, value in expected.items():
        assert (value is None) == (actual[name] is None), name
        if value is not None:
            torch.testing.assert_close(actual[name], value, rtol=rtol, atol=atol, msg=name)


def padded(x, inputs):
    """The same graph with the nodes and edges that a recording adds."""
    csr = empty_csr(round_up(len(x) + 1), round_up(inputs.csr.num_edges), inputs.csr)
    copy_into(csr, inputs.csr)
    nodes, edges = csr.num_nodes - len(x), csr.num_edges - inputs.csr.num_edges
    attr = functional.pad(inputs.edges.attr, (0, 0, 0, edges))
    mask = functional.pad(inputs.mask, (0, 0, 0, nodes))
    return functional.pad(x, (0, 0, 0, nodes)), BlockInputs(csr, inputs.edges._replace(attr=attr), mask)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_groups": 4},
        {"num_layers": 5, "num_distinct": 2},
        {"num_layers": 3, "num_distinct": 1},
        {"num_layers": 2, "num_distinct": 3},
    ],
)
def test_values_and_gradients_of_parts_of_many_sizes_equal_the_stack(options):
    stack, twin = twins(**options)
    for num_nodes in SIZES:
        x, inputs = stack_inputs(num_nodes, seed=num_nodes)
        assert_same(run(stack, x, inputs), run(twin, x, inputs))
        assert capture_report(stack) == {"": "captured"}


@pytest.mark.parametrize("autocast", [False, True])
def test_the_arithmetic_is_that_of_the_stack_to_the_last_bit(autocast):
    stack = gen_stack()
    twin = copy.deepcopy(stack)
    capture_layers(stack, recorder=CallRecorder())
    x, inputs = stack_inputs(dtype=torch.float32)
    found = []
    for module, (state, given) in ((stack, (x, inputs)), (twin, padded(x, inputs))):
        state = state.clone().requires_grad_()
        weight = given.edges.weight.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            out = module(state, given._replace(edges=given.edges._replace(weight=weight)))[: len(x)]
        out.square().sum().backward()
        found.append({"out": out, "x": state.grad[: len(x)], "weight": weight.grad, **gradients(module)})
    assert all(torch.equal(found[0][name], value) for name, value in found[1].items())


@pytest.mark.parametrize("missing", ["mask", "edges", "weight", "bias"])
def test_what_the_blocks_read_may_be_missing(missing):
    x, inputs = stack_inputs()
    edges = inputs.edges
    given = {
        "mask": inputs._replace(mask=None),
        "edges": inputs._replace(edges=None),
        "weight": inputs._replace(edges=EdgeInput(torch.rand(60, 8, dtype=x.dtype))),
        "bias": inputs._replace(edges=edges._replace(bias=None)),
    }[missing]
    stack, twin = twins()
    assert_same(run(stack, x, given), run(twin, x, given))
    assert_same(run(stack, x, inputs), run(twin, x, inputs))


def test_groups_may_read_slices_of_the_edges():
    torch.manual_seed(0)
    layers = [[Block(4, GENConv(4)) for _ in range(2)] for _ in range(3)]
    stack, twin = twins(ReversibleStack(layers, slice_edges=True).double())
    for num_nodes in (12, 7):
        x, inputs = stack_inputs(num_nodes)
        assert_same(run(stack, x, inputs), run(twin, x, inputs))
        given = inputs._replace(edges=EdgeInput(torch.rand(5 * num_nodes, 8, dtype=x.dtype)))
        assert_same(run(stack, x, given), run(twin, x, given))


@pytest.mark.parametrize(
    "options",
    [
        {"aggr": "softmax", "learn_temperature": True, "norm": "layer", "num_mlp_layers": 3},
        {"aggr": "powermean", "learn_power": True, "power": 1.5},
        {"aggr": "mean", "message_norm": True, "learn_message_scale": True},
        {"aggr": "sum", "scale_by_degree": True, "learn_degree_logit": True, "num_mlp_layers": 1},
    ],
)
def test_every_kind_of_aggregation(options):
    stack, twin = twins(ReversibleStack(gen_layers(**options)).double())
    for num_nodes in (12, 7):
        x, inputs = stack_inputs(num_nodes)
        assert_same(run(stack, x, inputs), run(twin, x, inputs))
    assert capture_report(stack) == {"": "captured"}


def test_frozen_parameters_get_no_gradient():
    stack, twin = twins()
    x, inputs = stack_inputs()
    for frozen in (stack.layers[0].parameters(), [layer[1].norm.weight for layer in stack.layers], stack.parameters()):
        for parameter in frozen:
            parameter.requires_grad_(False)
        for one, other in zip(stack.parameters(), twin.parameters(), strict=True):
            other.requires_grad_(one.requires_grad)
        assert_same(run(stack, x, inputs), run(twin, x, inputs))


def test_a_parameter_may_stand_in_several_places():
    layers = gen_layers()
    layers[1][0].conv.mlp[0].weight = layers[0][1].conv.mlp[0].weight
    layers[2][1] = layers[2][0]
    stack, twin = twins(ReversibleStack(layers).double())
    x, inputs = stack_inputs()
    assert_same(run(stack, x, inputs), run(twin, x, inputs))


def test_calls_may_be_mixed_and_backward_may_be_repeated():
    stack, twin = twins()
    cases = [stack_inputs(num_nodes, seed=seed) for seed, num_nodes in enumerate((12, 9, 12))]

    def step(module):
        states = [x.clone().requires_grad_() for x, _ in cases]
        outs = [module(state, inputs) for state, (_, inputs) in zip(states, cases, strict=True)]
        with torch.no_grad():
            module(*cases[1])
        for index in (1, 0, 2, 1):
            outs[index].square().sum().backward(retain_graph=True)
        return {**{str(index): state.grad for index, state in enumerate(states)}, **gradients(module)}

    assert_same(step(stack), step(twin))


def test_weights_may_change_between_calls_but_not_before_backward():
    stack, twin = twins()
    for module in (stack, twin):
        optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
        for num_nodes in SIZES:
            optimizer.zero_grad()
            module(*stack_inputs(num_nodes, seed=num_nodes)).square().mean().backward()
            optimizer.step()
    assert_same(stack.state_dict(), twin.state_dict(), 1e-8)
    x, inputs = stack_inputs()
    for module in (stack, twin):
        module.layers[1][0].conv.mlp[0].weight = nn.Parameter(torch.ones(8, 4, dtype=x.dtype))
    assert_same(run(stack, x, inputs), run(twin, x, inputs))
    out = stack(x, inputs).sum()
    with torch.no_grad():
        stack.layers[0][0].norm.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_graphs_may_change_in_place_between_calls():
    stack, twin = twins()
    x, inputs = stack_inputs()
    for _ in range(2):
        assert_same(run(stack, x, inputs), run(twin, x, inputs))
        inputs.csr.col.copy_(inputs.csr.col.flip(0))
        inputs.edges.attr.neg_()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_inference_records_no_backward(context):
    recorder = CountingRecorder()
    stack, twin = twins(recorder=recorder)
    for num_nodes in (12, 9):
        with context():
            x, inputs = stack_inputs(num_nodes)
            out = stack.eval()(x, inputs._replace(mask=None))
            torch.testing.assert_close(out, twin(x, inputs._replace(mask=None)), rtol=1e-12, atol=1e-12)
    assert (recorder.num_recorded, recorder.num_replayed) == (1, 8)
    x, inputs = stack_inputs()
    assert_same(run(stack, x, inputs), run(twin, x, inputs))


def test_depth_is_replayed_and_not_recorded():
    for num_layers in (2, 9):
        recorder = CountingRecorder()
        stack, _ = twins(recorder=recorder, num_layers=num_layers)
        for _ in range(2):
            run(stack, *stack_inputs())
        assert (recorder.num_recorded, recorder.num_replayed) == (2, 4 * num_layers)


def test_only_parts_that_do_not_fit_are_recorded_anew():
    recorder = CountingRecorder()
    stack, _ = twins(recorder=recorder)
    counts = []
    for num_nodes in (100, 98, 101, 40, 100, 39, 104, 99, 1000, 41, 100):
        with torch.no_grad():
            stack(*stack_inputs(num_nodes))
        counts.append(recorder.num_recorded)
    recordings = stack.executor._recordings
    assert counts == [1, 1, 1, 2, 2, 2, 3, 3, 4, 5, 5]
    assert sorted(recording.num_nodes for recording in recordings) == [42, 108, 1024]
    for num_nodes in (2000, 4000, 8000):
        with torch.no_grad():
            stack(*stack_inputs(num_nodes))
    assert len(stack.executor._recordings) == MAX_RECORDINGS


def test_the_example_of_the_page_runs():
    page = (Path(__file__).parents[3] / "docs" / "capture.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.S)
    names: dict = {}
    exec(example, names)
    assert list(capture_report(names["model"]).values()) == ["not called yet"]


def test_a_damaged_graph_is_refused_each_time():
    stack, twin = twins()
    x, inputs = stack_inputs()
    stack(x, inputs)
    damaged = inputs._replace(csr=CSR(inputs.csr.rowptr, inputs.csr.col + len(x)))
    for _ in range(2):
        with pytest.raises(DataError, match="does not exist"):
            stack(x, damaged)
    assert_same(run(stack, x, inputs), run(twin, x, inputs))


def test_what_was_nan_in_one_part_is_not_in_the_next():
    stack, twin = twins()
    x, inputs = stack_inputs(15)
    stack(x * torch.nan, inputs._replace(edges=inputs.edges._replace(attr=inputs.edges.attr * torch.nan)))
    x, inputs = stack_inputs(14)
    assert_same(run(stack, x, inputs), run(twin, x, inputs))


class Noise(nn.Module):
    def forward(self, x, inputs):
        return x + torch.rand_like(x)


def hooked():
    layers = gen_layers()
    layers[1][0].norm.register_forward_hook(lambda *args: None)
    return layers


def different():
    layers = gen_layers()
    layers[2][0].conv.mlp[1].eps = 0.5
    return layers


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        (lambda: [[Block(4, GATConv(4)) for _ in range(2)]], "GATConv is not known to do the same work each time"),
        (lambda: gen_layers(norm="batch"), "BatchNorm1d is not known to do the same work each time"),
        (lambda: [[Block(4, Noise()) for _ in range(2)]], "Noise is not known to do the same work each time"),
        (hooked, "a LayerNorm of layer 1 has hooks, or a forward of its own"),
        (different, "layer 2 is built in another way than layer 0"),
    ],
)
def test_layers_that_cannot_be_replayed_run_as_before(layers, reason):
    stack, twin = twins(ReversibleStack(layers()).double())
    assert capture_report(stack) == {"": reason}
    x, inputs = stack_inputs()
    found = []
    for module in (stack, twin):
        torch.manual_seed(0)
        with pytest.warns(ZooWarning, match=reason) if module is stack else contextlib.nullcontext():
            found.append(run(module, x, inputs))
    assert_same(found[0], found[1], 0)
    assert capture_report(stack) == {"": reason}


def test_calls_that_cannot_be_replayed_run_as_before():
    stack, twin = twins()
    x, inputs = stack_inputs()
    kept = inputs._replace(kept=torch.ones(4, 60, dtype=torch.bool))
    with pytest.warns(ZooWarning, match="attends to other edges"):
        assert torch.equal(stack(x, kept), twin(x, kept))
    assert capture_report(stack) == {"": "every layer attends to other edges"}
    nobody = BlockInputs(CSR(torch.zeros(1, dtype=torch.int64), inputs.csr.col[:0]))
    with pytest.warns(ZooWarning, match="there are no nodes"):
        assert stack(x[:0], nobody).shape == (0, 8)
    assert capture_report(stack) == {"": "there are no nodes"}
    hook = torch.nn.modules.module.register_module_forward_hook(lambda *args: None)
    with hook, pytest.warns(ZooWarning, match="all modules have a hook"):
        stack(x, inputs)
    assert capture_report(stack) == {"": "all modules have a hook"}
    stack(x, inputs)
    assert capture_report(stack) == {"": "captured"}
    assert capture_report(twin) == {"": "not asked for"}


def test_without_a_gpu_graphs_are_not_recorded():
    stack = gen_stack().double()
    capture_layers(stack)
    x, inputs = stack_inputs()
    expected = run(copy.deepcopy(stack), x, inputs)
    with pytest.warns(ZooWarning, match="the layers are not captured: the states are on the cpu"):
        assert_same(run(stack, x, inputs), expected, 0)
    # The second time without a warning.
    assert_same(run(stack, x, inputs), expected, 0)
    assert capture_report(stack) == {"": "the states are on the cpu, and CUDA graphs need a GPU"}


def test_a_captured_stack_is_copied_saved_and_forgotten_like_any_other():
    stack, _ = twins()
    run(stack, *stack_inputs())
    for copied in (copy.deepcopy(stack), pickle.loads(pickle.dumps(stack))):
        assert capture_report(copied) == {"": "not asked for"}
        assert copied.state_dict().keys() == stack.state_dict().keys()
    gone = weakref.ref(stack)
    del stack, copied
    gc.collect()
    assert gone() is None


def test_graphs_are_recorded_after_warming_up_and_share_the_memory_of_those_alive(monkeypatch):
    pools = []

    class Stream:
        def wait_stream(self, other):
            pass

    class Graph:
        def pool(self):
            return id(self)

        def replay(self):
            pass

    @contextlib.contextmanager
    def recording(graph, pool, stream, capture_error_mode):
        pools.append(pool)
        yield

    names = {"device": contextlib.nullcontext, "stream": contextlib.nullcontext, "Stream": Stream}
    names |= {"current_stream": Stream, "CUDAGraph": Graph, "graph": recording}
    for name, value in names.items():
        monkeypatch.setattr(torch.cuda, name, value)
    recorder, done = GraphRecorder(), []
    first = recorder.record(lambda: done.append(1), torch.device("cuda"))
    assert len(done) == NUM_WARM_UPS + 1
    second = recorder.record(lambda: None, torch.device("cuda"))
    assert pools == [None, id(first.__self__)]
    del first, second
    gc.collect()
    recorder.record(lambda: None, torch.device("cuda"))
    assert pools[2] is None


def test_work_that_a_graph_cannot_hold_is_refused(monkeypatch):
    on_gpu = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)
    recorder = GraphRecorder()
    inputs, convs = stack_inputs()[1], [GENConv(4, embedding_channels=8)]

    def refusal(x=on_gpu, inputs=inputs, convs=convs):
        return recorder.refusal(x, inputs, convs)

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert refusal() is None
    with use_backend("chunked"):
        assert "the backend 'chunked' (named by the user) reads sizes back" in refusal()
    assert "float64" in refusal(SimpleNamespace(device=on_gpu.device, dtype=torch.float64))
    assert "aggregation 'mean' has no kernel" in refusal(convs=[GENConv(4, aggr="mean")])
    for edges in (
        EdgeInput(inputs.edges.attr.clone().requires_grad_(), inputs.edges.weight),
        EdgeInput(torch.ones(60, 4)),
    ):
        assert "have no kernel" in refusal(inputs=inputs._replace(edges=edges), convs=[GENConv(4)])
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert "deterministic" in refusal()
