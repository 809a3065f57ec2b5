"""Models outside Python: as programs of ``torch.export``, and as ONNX files."""

from __future__ import annotations

import copy
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from zoo.errors import RunError
from zoo.files import atomic_path
from zoo.layers.block import Block
from zoo.layers.conv import GCNConv, GENConv, SAGEConv
from zoo.layers.residual import ResidualStack
from zoo.layers.reversible import ReversibleStack
from zoo.models.gnn import GNN

ONNX_FILE = "model.onnx"
# Sizes of the graph that is traced. They stand for any, so that they must differ from each other and from 0 and 1.
_NUM_NODES, _NUM_EDGES = 5, 12


def export_program(model: nn.Module) -> ExportedProgram:
    """A model of family rev or res with GEN, GCN or SAGE as a program of PyTorch, for graphs of any size.

    It computes in float32 and evaluation mode; the model itself stays as it is. Call ``program.module()(x,
    edge_index)``, with ``edge_attr`` after them if the model reads edge features. The program cannot check node ids:
    they must be in 0 .. N - 1.

    >>> import zoo
    >>> shape = zoo.GraphShape(num_node_features=16, num_tasks=3)
    >>> program = export_program(zoo.build_model("small_rev", shape))
    >>> edge_index = torch.tensor([[0, 1, 2], [1, 2, 3]])
    >>> program.module()(torch.rand(4, 16), edge_index).shape
    torch.Size([4, 3])

    Raises:
        RunError: if the model is of another kind.
    """
    if not isinstance(model, GNN) or not isinstance(model.stack, ReversibleStack | ResidualStack):
        raise RunError(
            f"export: {type(getattr(model, 'stack', model)).__name__} cannot be exported; expected family rev or res"
        )
    for block in model.modules():
        # Other convolutions reduce by operators that ONNX lacks.
        if isinstance(block, Block) and not isinstance(block.conv, GENConv | GCNConv | SAGEConv):
            raise RunError(f"export: {type(block.conv).__name__} cannot be exported; expected GEN, GCN or SAGE")
    model = copy.deepcopy(model).to("cpu", torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    nodes, edges = Dim("num_nodes"), Dim("num_edges")
    inputs = {
        "x": torch.zeros(_NUM_NODES, model.node_encoder.linear.in_features),
        "edge_index": torch.randint(_NUM_NODES, (2, _NUM_EDGES), generator=generator),
    }
    dynamic = {"x": {0: nodes}, "edge_index": {1: edges}}
    if model.edge_encoder is not None:
        inputs["edge_attr"] = torch.zeros(_NUM_EDGES, model.edge_encoder.in_features)
        dynamic["edge_attr"] = {0: edges}
    with torch.no_grad():
        return torch.export.export(model, tuple(inputs.values()), dynamic_shapes=dynamic, strict=False)


def export_onnx(model: nn.Module, path: Path) -> None:
    """Write a model of :func:`export_program` as an ONNX file of standard operators, for graphs of any size.

    Its inputs are ``x`` [N, F], ``edge_index`` [2, E] int64 and, if the model reads edge features, ``edge_attr`` [E,
    D]; its output is ``logits`` [N, T].

    Raises:
        RunError: if the model is of another kind, a package is missing, or the file cannot be written.
    """
    check_packages()
    program = export_program(model)
    names = [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
    with _quiet():
        onnx_program = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=names, output_names=["logits"]
        )
    if onnx_program is None:
        raise RunError(f"{path}: PyTorch {torch.__version__} made no ONNX model of it")
    with atomic_path(path, RunError) as temporary:
        onnx_program.save(temporary)


def check_packages() -> None:
    """Raise a RunError if a package which writes ONNX is missing."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise RunError(f'ONNX needs {" and ".join(missing)}, not installed here; pip install "revgnn-zoo[onnx]"')


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence remarks of the exporter on its own code and on packages that no model here needs."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(disabled)
