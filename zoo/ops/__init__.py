"""Functions on tensors: graph rows and the fused operators on them."""

from zoo.ops.csr import CSR, as_csr, csr_from_edge_index
from zoo.ops.dispatch import backend_for, set_backend, use_backend
from zoo.ops.edges import EdgeInput
from zoo.ops.gen_aggregate import AGGREGATIONS, gen_aggregate
from zoo.ops.norm_relu import norm_relu
from zoo.ops.weighted_sum import weighted_sum

__all__ = [
    "AGGREGATIONS",
    "CSR",
    "EdgeInput",
    "as_csr",
    "backend_for",
    "csr_from_edge_index",
    "gen_aggregate",
    "norm_relu",
    "set_backend",
    "use_backend",
    "weighted_sum",
]
