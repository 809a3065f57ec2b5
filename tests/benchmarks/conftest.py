import warnings

with warnings.catch_warnings():
    # PyTorch Geometric uses what PyTorch has deprecated, and warnings are errors here.
    warnings.simplefilter("ignore", DeprecationWarning)
    import torch_geometric.nn  # noqa: F401
