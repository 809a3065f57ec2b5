import importlib
import os
import subprocess
import sys

import pytest
import torch

from zoo.errors import BackendError, DataError
from zoo.ops import dispatch
from zoo.ops.csr import CSR
from zoo.ops.dispatch import BACKENDS, backend_for, describe, named_backend, set_backend, use_backend
from zoo.ops.edges import EdgeInput
from zoo.ops.gen_aggregate import gen_aggregate

CSR_ONE_EDGE = CSR(torch.tensor([0, 1, 1]), torch.tensor([1]))


@pytest.fixture(autouse=True)
def fresh_choice():
    set_backend(None)
    dispatch._choose.cache_clear()
    yield
    set_backend(None)
    dispatch._choose.cache_clear()


def test_numba_is_chosen_on_the_cpu_where_it_is_installed():
    name, reason = backend_for("cpu")
    assert name == "numba"
    assert "cpu" in reason


def test_devices_without_kernels_get_plain_pytorch():
    assert backend_for("meta")[0] == "chunked"


def test_where_numba_must_not_compile_plain_pytorch_takes_over(monkeypatch):
    monkeypatch.setattr(importlib.import_module("numba").config, "DISABLE_JIT", 1)
    assert backend_for("cpu") == ("chunked", "backend 'numba' compiles its kernels, which NUMBA_DISABLE_JIT forbids")
    with pytest.raises(BackendError, match="NUMBA_DISABLE_JIT"):
        set_backend("numba")


def test_without_numba_plain_pytorch_takes_over_and_says_why(monkeypatch):
    real_import = dispatch.importlib.import_module

    def no_numba(name, *args):
        if name == "numba":
            raise ImportError("No module named 'numba'")
        return real_import(name, *args)

    monkeypatch.setattr(dispatch.importlib, "import_module", no_numba)
    name, reason = backend_for("cpu")
    assert name == "chunked"
    assert "pip install numba" in reason
    with pytest.raises(BackendError, match="No module named 'numba'"):
        set_backend("numba")
    out = gen_aggregate(torch.ones(2, 3), CSR_ONE_EDGE, eps=0.0)
    assert out.tolist() == [[1.0] * 3, [0.0] * 3]


def test_a_named_backend_holds_within_its_block_only():
    with use_backend("reference"):
        assert backend_for("cpu") == ("reference", "named by the user")
        with use_backend(None):
            assert backend_for("cpu")[0] == "numba"
        assert named_backend() == "reference"
    assert named_backend() is None


def test_an_error_inside_the_block_ends_it_too():
    with pytest.raises(KeyError), use_backend("chunked"):
        raise KeyError
    assert named_backend() is None


def test_a_typo_is_answered_with_the_choices():
    with pytest.raises(BackendError, match="expected one of reference, chunked, numba, triton, got 'nunba'"):
        set_backend("nunba")
    assert named_backend() is None


@pytest.mark.parametrize(("name", "kind"), [("triton", "cpu"), ("numba", "cuda"), ("numba", "meta")])
def test_a_backend_for_another_device_is_refused(name, kind):
    with use_backend(name), pytest.raises(BackendError, match=f"'{name}' serves .* these are on {kind}"):
        backend_for(kind)


def test_the_environment_names_a_backend_and_importing_the_op_imports_no_kernels():
    code = (
        "import sys, zoo.ops.gen_aggregate; from zoo.ops.dispatch import backend_for; "
        "print(backend_for('cpu')[0], 'numba' in sys.modules)"
    )
    environment = {**os.environ, "ZOO_BACKEND": "chunked"}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["chunked", "False"]


def test_a_typo_in_the_environment_is_an_error_of_one_line(monkeypatch):
    monkeypatch.setattr(dispatch, "_named", "tritn")
    with pytest.raises(BackendError, match=r"ZOO_BACKEND: expected one of .*, got 'tritn'") as caught:
        gen_aggregate(torch.ones(2, 3), CSR_ONE_EDGE)
    assert "\n" not in str(caught.value)


def test_the_description_names_backend_reason_and_versions():
    report = describe()
    assert report["cpu"]["backend"] == "numba"
    assert report["cpu"]["reason"]
    assert report["versions"]["torch"] == str(torch.__version__)
    assert set(report["versions"]) == {"torch", "numba", "triton"}


@pytest.mark.parametrize("name", ["reference", "chunked", "numba"])
def test_every_backend_that_serves_the_cpu_is_known(name):
    assert name in BACKENDS
    with use_backend(name):
        assert gen_aggregate(torch.ones(2, 3), CSR_ONE_EDGE, eps=0.0)[0].tolist() == [1.0] * 3


EDGES = EdgeInput(torch.ones(1, 4), torch.ones(3, 4), torch.ones(3))


def _call(**changes):
    arguments = {
        "x": torch.ones(2, 3),
        "csr": CSR_ONE_EDGE,
        "edges": EDGES,
        **changes,
    }
    return gen_aggregate(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"aggr": "maximum"}, "aggr: expected one of max, mean, sum, softmax, powermean, got 'maximum'"),
        ({"x": torch.ones(3, 3)}, "x: expected .N, C. with N = 2 as in the CSR, got .3, 3."),
        ({"x": torch.ones(3)}, "x: expected"),
        ({"x": torch.ones(2, 3, dtype=torch.int64)}, "x: expected floating point numbers, got torch.int64"),
        ({"edges": EDGES._replace(attr=torch.ones(2, 4))}, "edges.attr: expected .1, 4. to fit .* got .2, 4."),
        ({"edges": EDGES._replace(weight=None)}, "edges.attr: expected .1, 3. to fit .* got .1, 4."),
        (
            {"edges": EDGES._replace(weight=torch.ones(4, 3))},
            "edges.weight: expected .C, D. with C = 3 as in x, got .4, 3.",
        ),
        ({"edges": EDGES._replace(bias=torch.ones(4))}, "edges.bias: expected .C. with C = 3 as in x, got .4."),
        (
            {"aggr": "softmax", "temperature": torch.ones(3)},
            "temperature: expected one number, got a tensor of shape .3.",
        ),
        ({"aggr": "powermean", "power": torch.ones(2)}, "power: expected one number"),
        ({"x": torch.ones(2, 3, device="meta")}, "x is on meta and the CSR on cpu; expected one device"),
        ({"csr": CSR(torch.tensor([0, 1, 1]), torch.tensor([2]))}, "col: node 2 does not exist; expected 0 to 1"),
    ],
)
def test_arguments_that_do_not_fit_are_named(changes, message):
    with pytest.raises(DataError, match=message) as caught:
        _call(**changes)
    assert "\n" not in str(caught.value)
