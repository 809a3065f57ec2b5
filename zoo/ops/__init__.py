"""Functions on tensors: graph rows and the fused aggregations."""
