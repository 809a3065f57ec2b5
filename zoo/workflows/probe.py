"""The probe of a bundle: a small random graph, and the logits that the weights have to give on it anywhere.

Weights may be stored whole and the model still compute something else: with other kernels, on another device, or by a
version of a package that has changed the meaning of a layer. A probe notices all of these.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from zoo.errors import BundleError, ZooWarning
from zoo.hub.bundle import differences
from zoo.hub.config import CONFIG_FILE, PROBE_FILE, BundleConfig, read_config
from zoo.ops.dispatch import backend_for, use_backend
from zoo.spec.recipe import Recipe
from zoo.spec.shape import GraphShape
from zoo.tensor_file import Shapes, first_nonfinite, read_tensors
from zoo.workflows import session
from zoo.workflows.create import info_of

# Features are whole numbers of 1 / 64, so that one byte holds each exactly.
_UNITS = 64
# Models with many inputs or outputs get fewer nodes, so that the file stays about as small as this.
_MAX_NODES, _EDGES_PER_NODE, _TARGET_BYTES = 32, 4, 24_000
# Other kernels round in another order; their errors are of the size of those measured where the probe was made.
_MARGIN = 16


@dataclass(frozen=True)
class Verified:
    """A model that passed its probe.

    Attributes:
        deviation: largest difference of a logit from the float64 reference.
        float32_deviation: largest difference from the float32 logits of the machine that wrote the bundle.
        tolerance: the largest ``deviation`` that the bundle allows.
        device, backend: that computed.
    """

    deviation: float
    float32_deviation: float
    tolerance: float
    device: str
    backend: str

    def __str__(self) -> str:
        return (
            f"logits differ by up to {self.deviation:.1e} from the float64 reference, tolerance {self.tolerance:.1e}, "
            f"on {self.device}, backend {self.backend}"
        )


def make_probe(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a probe of a model on the CPU, in evaluation mode, which is left behind in float64.

    Raises:
        BundleError: if a logit is NaN or infinite.
    """
    recipe = info_of(model).recipe
    probe = _random_graph(recipe, info_of(model).shape)
    with use_backend(None):
        fastest = _logits(model, probe, torch.float32)
    with use_backend("reference"):
        float32 = _logits(model, probe, torch.float32)
        reference = _logits(model.double(), probe, torch.float64)
    probe |= {"logits_float32": float32.float(), "logits_float64": reference}
    if name := first_nonfinite({**probe, "logits": fastest}):
        raise BundleError(f"{recipe.name}: fails its probe: {name} are NaN or infinite on a graph of random features")
    scale, deviation = float(reference.abs().max()), max(_deviation(run, reference) for run in (float32, fastest))
    if deviation > scale / _MARGIN:
        text = f"{recipe.name}: in float32 its logits are off by {deviation:.1e}; its probe tells coarse errors alone"
        warnings.warn(text, ZooWarning, stacklevel=2)
    tolerance = _MARGIN * max(deviation, torch.finfo(torch.float32).eps * scale)
    return {**probe, "tolerance": torch.tensor(tolerance, dtype=torch.float64)}


def read_probe(folder: Path, config: BundleConfig) -> dict[str, Tensor]:
    """Read the probe of a bundle that has one; a BundleError if it is damaged, or not the one of ``config``."""
    path = folder / PROBE_FILE

    def check(found: Shapes) -> None:
        # What has other dimensions differs from the expected shapes below.
        (num_nodes, *_), (*_, num_edges) = (found.get(k, ((), None))[0] or (0,) for k in ("x", "edge_index"))
        if faults := differences(found, _empty(config.recipe, config.shape, num_nodes, num_edges)):
            raise BundleError(f"{path}: does not fit {CONFIG_FILE}: {faults}")

    file = read_tensors(path, BundleError, max_header_bytes=4096, check=check)
    if config.probe is None or file.sha256 != config.probe.sha256:
        raise BundleError(f"{path}: damaged or changed: its SHA-256 is not the one that {CONFIG_FILE} states")
    num_nodes, edges = len(file.tensors["x"]), file.tensors["edge_index"]
    if not num_nodes or first_nonfinite(file.tensors) or bool(((edges < 0) | (edges >= num_nodes)).any()):
        raise BundleError(f"{path}: no nodes, edges to nodes that are not there, or logits that are not finite")
    return file.tensors


def check_model(model: nn.Module, folder: Path) -> Verified:
    """Verify a model, where it is, by the probe of the bundle that it was loaded from.

    Raises:
        BundleError: if there is no probe, or the model does not give the logits that it must.
    """
    config, device = read_config(folder), next(model.parameters()).device
    if config.probe is None:
        raise BundleError(f"{folder}: carries no probe to verify it by; add one: revgnn-zoo verify {folder} --renew")
    probe = read_probe(folder, config)
    logits = _logits(model, probe, torch.float32)
    verified = Verified(
        deviation=_deviation(logits, probe["logits_float64"]),
        float32_deviation=_deviation(logits, probe["logits_float32"]),
        tolerance=float(probe["tolerance"]),
        device=session.device_name(device),
        backend=backend_for(device)[0],
    )
    # NaN is not within either.
    if not verified.deviation <= verified.tolerance:
        raise BundleError(f"{folder}: fails its probe: {verified}; compare --device cpu and ZOO_BACKEND=reference")
    return verified


def _random_graph(recipe: Recipe, shape: GraphShape) -> dict[str, Tensor]:
    num_nodes = min(max(_TARGET_BYTES // (shape.num_node_features + 12 * shape.num_tasks), 4), _MAX_NODES)
    bounds = dict.fromkeys(("x", "edge_attr"), (-_UNITS, _UNITS + 1))
    bounds |= {"edge_index": (0, num_nodes), "edge_weight": (1, _UNITS + 1)}
    generator = session.generator(0, "probe")
    graph = {
        name: torch.randint(*bounds[name], tensor.shape, dtype=tensor.dtype, generator=generator)
        for name, tensor in _empty(recipe, shape, num_nodes, num_nodes * _EDGES_PER_NODE).items()
        if name in bounds
    }
    if categories := shape.num_node_categories:
        code = torch.arange(num_nodes) % categories
        graph["x"][:, -categories:] = _UNITS * nn.functional.one_hot(code, categories)
    return graph


def _empty(recipe: Recipe, shape: GraphShape, num_nodes: int, num_edges: int) -> dict[str, Tensor]:
    """Names, shapes and types of a probe's tensors, as meta tensors."""
    sizes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "x": ((num_nodes, shape.num_node_features), torch.int8),
        "edge_index": ((2, num_edges), torch.int32),
        "logits_float32": ((num_nodes, shape.num_tasks), torch.float32),
        "logits_float64": ((num_nodes, shape.num_tasks), torch.float64),
        "tolerance": ((), torch.float64),
    }
    if shape.num_edge_features and recipe.model.reads_edges:
        sizes["edge_attr"] = (num_edges, shape.num_edge_features), torch.int8
    if recipe.model.reads_edge_weight:
        sizes["edge_weight"] = (num_edges,), torch.int8
    return {name: torch.empty(size, dtype=dtype, device="meta") for name, (size, dtype) in sizes.items()}


@torch.no_grad()
def _logits(model: nn.Module, probe: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """[N, T] float64 on the CPU."""
    device, names = next(model.parameters()).device, ("x", "edge_attr", "edge_weight")
    x, *edges = (probe[name].to(device, dtype) / _UNITS if name in probe else None for name in names)
    with warnings.catch_warnings():
        # A solver that does not converge on random features may well do so on the data.
        warnings.simplefilter("ignore", ZooWarning)
        logits: Tensor = model(x, probe["edge_index"].long().to(device), *edges)
    return logits.double().cpu()


def _deviation(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())
