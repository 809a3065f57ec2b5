"""Tensor subclasses are read as plain tensors, and no kernel starts on a null address."""

import warnings

import pytest
import torch

from tests.ops.cases import assert_close, make_case, run
from zoo.errors import BackendError
from zoo.ops.csr import CSR, as_csr, csr_from_edge_index
from zoo.ops.dispatch import address, plain, use_backend
from zoo.ops.gen_aggregate import gen_aggregate
from zoo.ops.norm_relu import norm_relu
from zoo.ops.weighted_sum import weighted_sum

with warnings.catch_warnings():
    # PyTorch Geometric calls what newer PyTorch warns about.
    warnings.simplefilter("ignore", DeprecationWarning)
    from torch_geometric import EdgeIndex


class Named(torch.Tensor):
    """A subclass as PyTorch's own documentation makes one."""


@pytest.mark.parametrize("build", [csr_from_edge_index, as_csr])
def test_an_edge_index_of_torch_geometric_gives_the_rows_of_a_plain_one(build):
    edges = torch.randint(9, (2, 40), generator=torch.Generator().manual_seed(0))
    (csr, perm), (expected, order) = (build(each, 9) for each in (EdgeIndex(edges, sparse_size=(9, 9)), edges))
    for found, right in ((csr.rowptr, expected.rowptr), (csr.col, expected.col), (perm, order)):
        assert type(found) is torch.Tensor
        assert torch.equal(found, right)
    x = torch.randn(9, 8)
    with use_backend("numba"):
        assert torch.equal(gen_aggregate(x, csr), gen_aggregate(x, expected))


@pytest.mark.parametrize("backend", ["chunked", "numba", "reference"])
def test_operators_read_subclasses_as_plain_tensors(backend):
    case = make_case(C=8)
    wrapped = case._replace(x=case.x.as_subclass(Named), edge_attr=case.edge_attr.as_subclass(Named))
    assert_close(run(wrapped, backend, "max"), run(case, backend, "max"), 0)
    with use_backend(backend):
        assert type(weighted_sum(wrapped.x, case.csr)) is torch.Tensor
        assert type(norm_relu(wrapped.x, torch.ones(8), torch.zeros(8), wrapped.x)) is torch.Tensor


def test_parameters_keep_their_gradients():
    weight = torch.nn.Parameter(torch.ones(3, 2))
    assert plain(weight) is weight


def test_rows_without_memory_are_refused_before_a_kernel_starts():
    edges = EdgeIndex(torch.tensor([[0, 1, 2], [1, 2, 0]], dtype=torch.int32), sparse_size=(3, 3))
    csr = CSR(torch.arange(4), edges[0])
    with use_backend("numba"), pytest.raises(BackendError, match=r"an? Index of shape \[3\] has no memory") as caught:
        gen_aggregate(torch.ones(3, 8), csr)
    assert "\n" not in str(caught.value)


def test_only_an_empty_tensor_may_have_no_address():
    assert address(torch.empty(0, 8)) == 0
    with pytest.raises(BackendError, match=r"Tensor of shape \[2\]"):
        address(torch.empty(2, device="meta"))
