"""A synthetic stand-in for ogbn-proteins at any scale, as a graph or as files in OGB's raw format.

Proteins belong to hidden functional modules that exist in every species. A module has its own mix of evidence
channels; most edges are background. A label depends on the modules of the protein and of the proteins one and two
strong links away (much experimental, database or homology evidence). So a model has to read the edge features, to
pass messages more than once, and to carry that over to species without training labels.

The sizes, the species, the channels and the spread of the scores are those of the real data set; the wiring and the
labels are invented.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from zoo.data.download import check_free_space
from zoo.data.graph import Array, Graph, Split
from zoo.errors import DataError
from zoo.files import make_folder

MIN_NODES = 64
FULL_NODES, FULL_EDGES, NUM_TASKS = 132_534, 39_561_252, 112
SPLITS = ("train", "valid", "test")
# Taxonomy id, nodes at full scale, split. How the train nodes divide over the species is an approximation.
SPECIES = (
    (3702, 25_449, "train"),
    (4932, 6_574, "train"),
    (6239, 17_500, "train"),
    (7227, 13_615, "train"),
    (9606, 19_354, "train"),
    (511145, 4_127, "train"),
    (10090, 21_236, "valid"),
    (7955, 24_679, "test"),
)


class Channel(NamedTuple):
    """A kind of evidence for a link."""

    background_rate: float  # how often an edge outside a module has some
    module_rate: float  # how often an edge inside a module has some
    scale: float  # mean of a score above the least one, in thousandths
    top: int  # the highest score, in thousandths


CHANNELS = {
    "homology": Channel(0.0, 0.0, 0, 0),
    "neighborhood": Channel(0.035, 0.060, 55, 325),
    "fusion": Channel(0.002, 0.004, 60, 718),
    "cooccurence": Channel(0.006, 0.012, 110, 434),
    "coexpression": Channel(0.48, 0.55, 105, 997),
    "experimental": Channel(0.24, 0.32, 150, 998),
    "database": Channel(0.03, 0.12, 0, 900),
    "textmining": Channel(0.70, 0.62, 150, 987),
}
HOMOLOGY, NEIGHBORHOOD, FUSION, COOCCURENCE, COEXPRESSION, EXPERIMENTAL, DATABASE, TEXTMINING = range(len(CHANNELS))
_DATABASE_SCORES = np.array([360, 540, 600, 650, 720, 800, 900])
_DATABASE_RATES = np.array([0.011, 0.028, 0.048, 0.022, 0.014, 0.016, 0.861])

# Kinds of edges and their shares; a pair that is sampled as two kinds is of the first.
MODULE, HOMOLOGOUS, BACKGROUND = range(3)
_KIND_SHARES = (0.30, 0.05, 0.65)
# Bounds the memory of one round of sampling, and the rounds where a graph is too dense to hold all edges.
_MAX_CANDIDATES, _MAX_ROUNDS = 1 << 22, 200
_CHUNK_ROWS = 1 << 20
_MILLI = np.frombuffer(b"".join(b"%.3f," % (value / 1000) for value in range(1001)), np.uint8).reshape(1001, 6)


def synthetic_graph(num_nodes: int, num_edges: int, *, seed: int = 0) -> Graph:
    """Sample a graph of N nodes like ogbn-proteins; the same arguments give the same graph.

    Returns:
        A graph with edge features and without node features, which are built from these, and with fewer than
        ``num_edges`` stored undirected edges only if so few nodes cannot have them.

    Raises:
        DataError: if an argument does not fit; N is at least 64.
    """
    n, mean_degree = num_nodes, 2 * num_edges / max(num_nodes, 1)
    if n < MIN_NODES:
        raise DataError(f"a synthetic ogbn-proteins needs at least {MIN_NODES} nodes, not {n}")
    if seed < 0:
        raise DataError(f"seed must not be negative, not {seed}")
    if not 1 <= mean_degree <= n / 4:
        raise DataError(f"the mean degree must lie in 1 .. {n / 4:g} (a quarter of the nodes), not {mean_degree:g}")
    rng = np.random.default_rng(seed)
    nodes = _sample_nodes(rng, n)
    edge_index, kind = _sample_edges(rng, nodes, num_edges)
    gains = _sample_gains(rng, nodes.membership.shape[1])
    edge_attr = np.empty((len(kind), len(CHANNELS)), np.float32)
    strong = np.empty(len(kind), bool)
    for start in range(0, len(kind), _CHUNK_ROWS):
        rows = slice(start, start + _CHUNK_ROWS)
        evidence = _sample_evidence(rng, nodes, gains, edge_index[:, rows], kind[rows])
        edge_attr[rows] = evidence / np.float32(1000)
        strong[rows] = (evidence[:, [EXPERIMENTAL, DATABASE, HOMOLOGY]] > (300, 500, 1)).any(1)
    labels = _sample_labels(rng, nodes, edge_index[:, strong])
    split = np.array([name for _, _, name in SPECIES])[nodes.species]
    return Graph(
        name="synthetic",
        edge_index=torch.from_numpy(edge_index).int(),
        undirected=True,
        num_nodes=n,
        categories=torch.from_numpy(nodes.species),
        edge_attr=torch.from_numpy(edge_attr),
        y=torch.from_numpy(labels).float(),
        splits=(Split(*(torch.from_numpy(np.flatnonzero(split == name)) for name in SPLITS)),),
        task="multilabel",
        num_tasks=NUM_TASKS,
    )


def write_synthetic_proteins(
    root: str | Path, num_nodes: int = 13_000, *, mean_degree: float | None = None, seed: int = 0
) -> Path:
    """Write a synthetic graph in the raw format of ogbn-proteins; the same arguments give the same bytes.

    Do not mistake scores on it for scores on the real one.

    Args:
        root: gets the folder ``ogbn_proteins``, which must not exist.
        num_nodes: at least 64; 132,534 is full scale.
        mean_degree: messages per node; by default 597 at full scale, shrinking with the square root of the nodes.
        seed: of all random numbers.

    Raises:
        DataError: if an argument does not fit or the folder exists.
    """
    folder = Path(root).expanduser() / "ogbn_proteins"
    if folder.exists():
        raise DataError(f"{folder}: exists already; remove it or choose another root")
    if mean_degree is None:
        mean_degree = 2 * FULL_EDGES / FULL_NODES * min(1.0, (num_nodes / FULL_NODES) ** 0.5)
    if not math.isfinite(mean_degree):
        raise DataError(f"the mean degree must be a number, not {mean_degree}")
    graph = synthetic_graph(num_nodes, round(num_nodes * mean_degree / 2), seed=seed)
    for part in ("raw", "split/species", "mapping", "processed"):
        make_folder(folder / part, DataError)
    check_free_space(folder, graph.num_edges * 16, "the synthetic data")
    raw, species = folder / "raw", graph.categories
    _write(raw / "edge.csv.gz", graph.edge_index.T)
    _write(raw / "edge-feat.csv.gz", graph.edge_attr, format_rows=csv_milli)
    _write(raw / "node_species.csv.gz", torch.tensor([taxon for taxon, _, _ in SPECIES])[species])
    _write(raw / "node-label.csv.gz", graph.y)
    _write(raw / "num-node-list.csv.gz", torch.tensor([num_nodes]))
    _write(raw / "num-edge-list.csv.gz", torch.tensor([graph.num_edges]))
    for name in SPLITS:
        _write(folder / "split" / "species" / f"{name}.csv.gz", getattr(graph.splits[0], name))
    about = "A synthetic stand-in for ogbn-proteins in the raw format of v1: random numbers, not real data.\n"
    sizes = f"num_nodes={num_nodes} mean_degree={mean_degree} seed={seed}\nEdge features: {', '.join(CHANNELS)}\n"
    (folder / "SYNTHETIC.txt").write_text(about + sizes, encoding="utf-8")
    # Written last, because readers take a release file to mean that the folder is complete.
    (folder / "RELEASE_v1.txt").write_text(about, encoding="utf-8")
    return folder


def species_sizes(num_nodes: int) -> Array:
    """[8] nodes per species, in the proportions of the full data set."""
    full = np.cumsum([0, *(nodes for _, nodes, _ in SPECIES)])
    return np.diff(full * num_nodes // FULL_NODES)


def csv_ints(values: Array) -> bytes:
    """Format whole numbers, [rows, columns], as CSV."""
    line = ",".join(["%d"] * values.shape[1]) + "\n"
    return (line * len(values) % tuple(values.ravel().tolist())).encode("ascii")


def csv_milli(values: Array) -> bytes:
    """Format numbers, [rows, columns] in 0 .. 1, as CSV with three decimals; they are looked up in a table."""
    text = _MILLI[np.rint(values * 1000).astype(int)].reshape(len(values), -1)
    text[:, -1] = ord("\n")
    rows: bytes = text.tobytes()
    return rows


class _Nodes(NamedTuple):
    """The proteins: hidden causes of edges and labels, all [N] but for membership."""

    species: Array
    activity: Array  # how many links a protein tends to have
    module: Array
    second_module: Array  # another one, or -1
    membership: Array  # [N, M] float32, how much a protein belongs to each module
    fame: Array  # how well it is studied


class _Sampler:
    """Samples nodes from groups in proportion to their activity.

    Args:
        nodes: [M] node ids; a node may stand in several groups.
        groups: [M] the group of each, 0 .. G - 1.
        activity: [N] weights.
    """

    def __init__(self, nodes: Array, groups: Array, activity: Array) -> None:
        order = np.argsort(groups, kind="stable")
        self._nodes = nodes[order]
        self._cumulative = np.concatenate([[0.0], np.cumsum(activity[self._nodes])])
        self._start = np.searchsorted(groups[order], np.arange(groups.max() + 2))

    def sample(self, rng: np.random.Generator, groups: Array) -> Array:
        """One node of each of the groups asked for, none of which may be empty."""
        first, last = self._start[groups], self._start[groups + 1]
        low, high = self._cumulative[first], self._cumulative[last]
        index = np.searchsorted(self._cumulative, low + rng.random(len(groups)) * (high - low), side="right") - 1
        # Rounding can lead to the node beside a group.
        sampled: Array = self._nodes[np.clip(index, first, last - 1)]
        return sampled


def _sample_nodes(rng: np.random.Generator, num_nodes: int) -> _Nodes:
    n, num_modules = num_nodes, int(np.clip(round(12 * (num_nodes / 1000) ** 0.3), 8, 60))
    species = np.repeat(np.arange(len(SPECIES)), species_sizes(n))
    # A heavy tail, as in protein networks, without single nodes that are linked to everything.
    activity = (1 - rng.random(n)) ** (-1 / 1.8) * rng.lognormal(0, 0.7, n)
    activity = np.minimum(activity, 14 * activity.mean())
    popularity = 1 / (np.arange(num_modules) + 4.0)
    popularity /= popularity.sum()
    module, far = rng.choice(num_modules, (2, n), p=popularity)
    # A second module is usually next to the first on a ring, as in a hierarchy of functions.
    near = (module + rng.choice([-2, -1, 1, 2], n)) % num_modules
    second = np.where(rng.random(n) < 0.7, near, far)
    has_second = rng.random(n) < 0.45
    membership = np.zeros((n, num_modules), np.float32)
    rows = np.flatnonzero(has_second)
    membership[rows, second[rows]] = 0.6
    membership[np.arange(n), module] = 1.0
    return _Nodes(species, activity, module, np.where(has_second, second, -1), membership, rng.normal(0, 1, n))


def _sample_edges(rng: np.random.Generator, nodes: _Nodes, num_edges: int) -> tuple[Array, Array]:
    """Sample [2, E] int64 undirected edges with source < target, sorted, and [E] their kinds."""
    species, second, n = nodes.species, nodes.second_module, len(nodes.species)
    everybody, extra = np.arange(n), np.flatnonzero(second >= 0)
    member, module = np.concatenate([everybody, extra]), np.concatenate([nodes.module, second[extra]])
    sources = _Sampler(everybody, np.zeros(n, int), nodes.activity)
    samplers = {
        MODULE: _Sampler(member, module * len(SPECIES) + species[member], nodes.activity),
        HOMOLOGOUS: _Sampler(member, module, nodes.activity),
        BACKGROUND: _Sampler(everybody, species, nodes.activity),
    }
    # One whole number holds an edge and its kind, so that sorting finds what was sampled twice.
    codes = np.empty(0, np.int64)
    for _ in range(_MAX_ROUNDS):
        if len(codes) >= num_edges:
            break
        size = min(int(1.2 * (num_edges - len(codes))) + 64, _MAX_CANDIDATES)
        source = sources.sample(rng, np.zeros(size, int))
        kind = rng.choice(len(_KIND_SHARES), size, p=_KIND_SHARES)
        shared = np.where((rng.random(size) < 0.5) & (second[source] >= 0), second[source], nodes.module[source])
        groups = {MODULE: shared * len(SPECIES) + species[source], HOMOLOGOUS: shared, BACKGROUND: species[source]}
        target = np.empty_like(source)
        for key, sampler in samplers.items():
            rows = np.flatnonzero(kind == key)
            target[rows] = sampler.sample(rng, groups[key][rows])
        usable = (source != target) & ((kind != HOMOLOGOUS) | (species[source] != species[target]))
        pair = np.minimum(source, target) * n + np.maximum(source, target)
        codes = np.sort(np.concatenate([codes, (pair * len(samplers) + kind)[usable]]))
        first = np.ones(len(codes), bool)
        first[1:] = codes[1:] // len(samplers) != codes[:-1] // len(samplers)
        codes = codes[first]
    if len(codes) > num_edges:
        codes = np.delete(codes, rng.choice(len(codes), len(codes) - num_edges, replace=False))
    pair, kind = np.divmod(codes, len(samplers))
    return np.stack(np.divmod(pair, n)), kind


def _sample_gains(rng: np.random.Generator, num_modules: int) -> tuple[Array, Array]:
    """Sample factors on the rates of the channels, [M, 8] of the modules and [8, 8] of the species."""
    module = np.clip(rng.lognormal(0, 1.0, (num_modules, len(CHANNELS))), 0.1, 8)
    species = np.exp(rng.normal(0, 0.22, (len(SPECIES), len(CHANNELS))))
    # The context of genes is informative in bacteria; mouse and fish have fewer experiments.
    species[5, [NEIGHBORHOOD, FUSION, COOCCURENCE]] *= 6
    species[6:, EXPERIMENTAL] *= 0.8
    return module, species


def _sample_evidence(
    rng: np.random.Generator, nodes: _Nodes, gains: tuple[Array, Array], edge_index: Array, kind: Array
) -> Array:
    """Sample [E, 8] evidence for edges in thousandths, 1 where there is none."""
    (u, v), (module_gain, species_gain) = edge_index, gains
    evidence = np.ones((len(u), len(CHANNELS)), np.uint16)
    inside, one, two = kind == MODULE, nodes.module, nodes.second_module
    # The module that both ends belong to; outside modules it plays no part.
    module = np.where((one[u] == one[v]) | (one[u] == two[v]), one[u], np.where(two[u] == one[v], one[v], two[u]))
    fame = np.exp(0.45 * (nodes.fame[u] + nodes.fame[v]) / np.sqrt(2))
    for index, channel in enumerate(CHANNELS.values()):
        rate = np.where(inside, channel.module_rate * module_gain[module, index], channel.background_rate)
        rate *= species_gain[nodes.species[u], index]
        if index in (EXPERIMENTAL, TEXTMINING):
            rate *= fame
        rows = np.flatnonzero((rng.random(len(u)) < np.minimum(rate, 0.97)) & (kind != HOMOLOGOUS))
        if index == DATABASE:
            scores = rng.choice(_DATABASE_SCORES, len(rows), p=_DATABASE_RATES)
        else:
            scores = 41 + rng.exponential(channel.scale, len(rows)) * np.where(inside[rows], 1.7, 1.0)
        evidence[rows, index] = 1 + np.minimum(scores, channel.top).astype(int)
    evidence[kind == HOMOLOGOUS, HOMOLOGY] = 501
    # No edge is listed without any evidence: give the empty ones a weak hint.
    empty = np.flatnonzero((evidence == 1).all(1))
    hinted = np.where(rng.random(len(empty)) < 0.6, TEXTMINING, COEXPRESSION)
    evidence[empty, hinted] = 151 + np.minimum(rng.exponential(40, len(empty)), 200).astype(int)
    return evidence


def _sample_labels(rng: np.random.Generator, nodes: _Nodes, strong: Array) -> Array:
    """Sample [N, 112] labels that depend on the modules up to two of the strong edges [2, S] away."""
    import scipy.sparse

    n, num_modules = nodes.membership.shape
    links = scipy.sparse.csr_matrix((np.ones(strong.shape[1], np.float32), tuple(strong)), shape=(n, n))
    links = links + links.T
    scale = 1 / np.maximum(np.asarray(links.sum(1)), 1e-9)
    one_hop = scale * (links @ (nodes.membership / nodes.membership.sum(1, keepdims=True)))
    two_hops = scale * (links @ one_hop)
    labels = np.zeros((n, NUM_TASKS), np.uint8)
    for task, density in enumerate(np.exp(rng.uniform(np.log(0.015), np.log(0.30), NUM_TASKS))):
        own, near = np.zeros((2, num_modules))
        chosen = rng.choice(num_modules, rng.integers(1, 4), replace=False)
        own[chosen] = rng.uniform(0.6, 1.4, len(chosen))
        near[rng.choice(num_modules, 2, replace=False)] = 1.0
        terms = ((1.0, nodes.membership @ own), (1.0, one_hop @ (own + 0.7 * near)), (0.8, two_hops @ (own + near)))
        signal = sum(weight * (term - term.mean()) / (term.std() + 1e-9) for weight, term in terms)
        score = signal + 0.25 * nodes.fame + rng.logistic(0, 0.55, n)
        labels[:, task] = score > np.quantile(score, 1 - density)
    return labels


def _write(path: Path, tensor: Any, format_rows: Callable[[Array], bytes] = csv_ints) -> None:
    """Write a tensor as gzipped CSV, one row per line; a vector becomes one column."""
    values = tensor.reshape(len(tensor), -1).numpy()
    # Neither name nor time in the header, so that the bytes depend on the content alone.
    with open(path, "wb") as file, gzip.GzipFile("", "wb", 1, file, mtime=0) as writer:
        for start in range(0, len(values), _CHUNK_ROWS):
            writer.write(format_rows(values[start : start + _CHUNK_ROWS]))
