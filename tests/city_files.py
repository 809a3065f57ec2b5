"""A small road network in the format of City-Networks: tensors as ``torch.save`` writes them, in a gzipped archive."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.data.datasets import load_graph
from zoo.data.graph import directed_edges

X, ROADS, Y = "node_features_augmented", "edge_indices", "10-chunk_16-hop_node_labels"
MASKS = ("train_mask", "valid_mask", "test_mask")


def city_tensors(num_nodes: int = 100, hops: int = 3) -> dict[str, Tensor]:
    """The tensors of a generated network by file stem, made as the authors' code makes those of a city."""
    graph = load_graph("road", generated={"range": hops, "num_nodes": num_nodes})
    generator = torch.Generator().manual_seed(0)
    edges, length = directed_edges(graph)
    assert length is not None
    edges, length = edges.long(), 60 * length
    order = torch.argsort(edges[0] * num_nodes + edges[1])
    # A road is the same in both directions.
    kinds = torch.randint(6, (graph.num_edges,), generator=generator).repeat_interleave(2)
    speed = torch.tensor([20, 30, 30, 50, 70, 90])[kinds, None]
    codes = torch.nn.functional.one_hot(4 * kinds, 23)
    roads = torch.cat([length, speed, codes], 1)[order]
    edges = edges[:, order]
    use = torch.nn.functional.one_hot(torch.randint(9, (num_nodes,), generator=generator), 9)
    degree = torch.bincount(edges[1], minlength=num_nodes)[:, None]
    place = torch.tensor([2.35, 48.86]) + 0.01 * torch.randn(num_nodes, 2, generator=generator)
    junctions = torch.cat([place, degree, use], 1)
    means = torch.zeros(num_nodes, 25).index_add_(0, edges[1], roads) / degree
    masks = torch.zeros(3, num_nodes, dtype=torch.bool)
    first, second = num_nodes // 10, num_nodes // 5
    for mask, nodes in zip(
        masks, torch.randperm(num_nodes, generator=generator).tensor_split((first, second)), strict=True
    ):
        mask[nodes] = True
    return {
        "node_features": junctions,
        X: torch.cat([junctions, means], 1),
        ROADS: edges,
        "edge_features": roads,
        Y: graph.y,
        **{name: mask.clone() for name, mask in zip(MASKS, masks, strict=True)},
    }


def saved(value: Any) -> bytes:
    """The file that ``torch.save`` writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def write_city(folder: Path, name: str, tensors: Mapping[str, Any], *others: tarfile.TarInfo) -> Path:
    """Write NAME.tar.gz; bytes stand for the whole content of a file, and other members come first."""
    path = folder / f"{name}.tar.gz"
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        top = tarfile.TarInfo(name)
        top.type = tarfile.DIRTYPE
        for member in (top, *others):
            archive.addfile(member)
        for stem, tensor in {"map": b"a picture", **tensors}.items():
            content = tensor if isinstance(tensor, bytes) else saved(tensor)
            member = tarfile.TarInfo(f"{name}/{stem}.{'jpg' if stem == 'map' else 'pt'}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path
