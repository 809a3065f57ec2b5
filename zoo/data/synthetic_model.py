"""The random model behind the synthetic ogbn-proteins: proteins, links, evidence and labels.

Proteins belong to hidden functional modules that exist in every species. A module has its own mix of evidence
channels; most edges are background. A label depends on the modules of the protein and of the proteins one and two
strong links away (much experimental, database or homology evidence). So a model has to read the edge features, to
pass messages more than once, and to carry that over to species without training labels.

The sizes, the species, the channels and the spread of the scores are those of the real data set; the wiring and the
labels are invented.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

CHANNELS = (
    "homology",
    "neighborhood",
    "fusion",
    "cooccurence",
    "coexpression",
    "experimental",
    "database",
    "textmining",
)
HOMOLOGY, NEIGHBORHOOD, FUSION, COOCCURENCE, COEXPRESSION, EXPERIMENTAL, DATABASE, TEXTMINING = range(8)
FULL_NODES, FULL_EDGES, NUM_TASKS = 132_534, 39_561_252, 112

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
NUM_SPECIES = len(SPECIES)

# Edge kinds.
MODULE, BACKGROUND, HOMOLOGOUS = range(3)
KIND_SHARES = (0.30, 0.65, 0.05)

# How often a channel has evidence, in the order of CHANNELS.
_BACKGROUND_RATES = np.array([0, 0.035, 0.002, 0.006, 0.48, 0.24, 0.03, 0.70])
_MODULE_RATES = np.array([0, 0.060, 0.004, 0.012, 0.55, 0.32, 0.12, 0.62])
_DATABASE_SCORES = np.array([360, 540, 600, 650, 720, 800, 900])
_DATABASE_RATES = np.array([0.011, 0.028, 0.048, 0.022, 0.014, 0.016, 0.861])
# Mean above the least score, and the top score, of the channels whose scores fall off exponentially.
_SCORE_SCALES = {NEIGHBORHOOD: 55, COOCCURENCE: 110, COEXPRESSION: 105, EXPERIMENTAL: 150, TEXTMINING: 150}
_SCORE_TOPS = {NEIGHBORHOOD: 325, COOCCURENCE: 434, COEXPRESSION: 997, EXPERIMENTAL: 998, TEXTMINING: 987}
_MAX_DRAWS = 16_000_000


@dataclass(frozen=True)
class Proteins:
    """The nodes.

    Attributes:
        species: [N] 0 .. 7, ascending.
        activity: [N] how many links a protein tends to have.
        module: [N] its main module.
        second_module: [N] another one, or -1.
        membership: [N, M] float32 how much it belongs to each module.
        fame: [N] how well it is studied.
    """

    species: Array
    activity: Array
    module: Array
    second_module: Array
    membership: Array
    fame: Array

    @property
    def num_modules(self) -> int:
        """Number of modules M."""
        return int(self.membership.shape[1])


@dataclass(frozen=True)
class Evidence:
    """How evidence differs between modules and species.

    Attributes:
        module_gain: [M, 8] factor on a channel's rate inside a module.
        species_gain: [8, 8] factor on a channel's rate in a species.
    """

    module_gain: Array
    species_gain: Array


def species_sizes(num_nodes: int) -> Array:
    """[8] nodes per species, in the proportions of the full data set, at least 4 each where they fit."""
    full = np.array([nodes for _, nodes, _ in SPECIES], float)
    share = full * num_nodes / FULL_NODES
    size = np.maximum(np.floor(share), 4).astype(int)
    order = np.argsort(-(share - size), kind="stable")
    for i in range(abs(num_nodes - size.sum())):
        size[order[i % NUM_SPECIES]] += 1 if num_nodes > size.sum() else -1
    return size


def draw_proteins(rng: np.random.Generator, num_nodes: int, num_modules: int) -> Proteins:
    """Draw the nodes: activity with a heavy tail, one main module, often a second one."""
    n = num_nodes
    species = np.repeat(np.arange(NUM_SPECIES), species_sizes(n))
    activity = (1 - rng.random(n)) ** (-1 / 1.8) * rng.lognormal(0, 0.7, n)
    activity = np.minimum(activity, 14 * activity.mean())
    popularity = 1 / (np.arange(num_modules) + 4.0)
    popularity /= popularity.sum()
    # A second module is usually a neighbour of the first on a ring, as in a hierarchy of functions.
    ring = rng.permutation(num_modules)
    place = np.empty(num_modules, int)
    place[ring] = np.arange(num_modules)
    module = rng.choice(num_modules, n, p=popularity)
    step = rng.choice([-2, -1, 1, 2], n)
    near = rng.random(n) < 0.7
    second = np.where(near, ring[(place[module] + step) % num_modules], rng.choice(num_modules, n, p=popularity))
    membership = np.zeros((n, num_modules), np.float32)
    membership[np.arange(n), module] = 1.0
    has_second = rng.random(n) < 0.45
    rows = np.flatnonzero(has_second)
    membership[rows, second[rows]] = np.maximum(membership[rows, second[rows]], 0.6)
    fame = rng.normal(0, 1, n)
    return Proteins(species, activity, module, np.where(has_second, second, -1), membership, fame)


def draw_evidence(rng: np.random.Generator, num_modules: int) -> Evidence:
    """Draw how the channels differ between modules and species."""
    module_gain = np.ones((num_modules, 8))
    module_gain[:, 1:] = np.clip(rng.lognormal(0, 1.0, (num_modules, 7)), 0.1, 8)
    species_gain = np.exp(rng.normal(0, 0.22, (NUM_SPECIES, 8)))
    # Context of genes tells much in bacteria; mouse and fish have fewer experiments.
    species_gain[5, [NEIGHBORHOOD, FUSION, COOCCURENCE]] *= 6
    species_gain[6:, EXPERIMENTAL] *= 0.8
    return Evidence(module_gain, species_gain)


class _Groups:
    """Draws nodes in proportion to their activity inside groups, many groups at once."""

    def __init__(self, node: Array, group: Array, activity: Array, num_groups: int) -> None:
        order = np.lexsort((node, group))
        self.node = node[order]
        self.cumulative = np.concatenate([[0.0], np.cumsum(activity[self.node])])
        self.start = np.searchsorted(group[order], np.arange(num_groups + 1))
        self.mass = self.cumulative[self.start[1:]] - self.cumulative[self.start[:-1]]
        count = np.diff(self.start)
        self.room = count * (count - 1) / 2.0  # how many edges fit into a group

    def draw(self, rng: np.random.Generator, group: Array) -> Array:
        """One node of each of the groups asked for."""
        x = self.cumulative[self.start[group]] + rng.random(len(group)) * self.mass[group]
        i = np.searchsorted(self.cumulative, x, side="right") - 1
        drawn: Array = self.node[np.clip(i, self.start[group], self.start[group + 1] - 1)]
        return drawn


class _Pairs:
    """Draws candidate pairs of one kind."""

    def __init__(self, proteins: Proteins, num_edges: int) -> None:
        n, m = len(proteins.species), proteins.num_modules
        self.num_modules = m
        self.by_species = _Groups(np.arange(n), proteins.species, proteins.activity, NUM_SPECIES)
        second = proteins.second_module
        node = np.concatenate([np.arange(n), np.flatnonzero(second >= 0)])
        module = np.concatenate([proteins.module, second[second >= 0]])
        # A cell is a module in a species.
        self.by_cell = _Groups(node, proteins.species[node] * m + module, proteins.activity, NUM_SPECIES * m)
        # Edges inside a cell grow faster than its mass, as in a real complex, but not beyond what fits.
        weight = np.where(self.by_cell.room > 0, self.by_cell.mass**1.15, 0)
        self.p_cell = np.minimum(KIND_SHARES[MODULE] * num_edges * weight / weight.sum(), 0.25 * self.by_cell.room)
        self.p_cell /= self.p_cell.sum()
        mass = self.by_species.mass
        want = (1 - KIND_SHARES[MODULE]) * num_edges * mass / mass.sum()
        self.p_species = np.minimum(want, 0.35 * self.by_species.room)
        self.p_species /= self.p_species.sum()
        cells = self.by_cell.mass.reshape(NUM_SPECIES, m)
        self.p_module = cells.sum(0) / cells.sum(0).sum()
        self.species_in_module = np.cumsum(cells / cells.sum(0), 0)

    def draw(self, rng: np.random.Generator, kind: int, size: int) -> tuple[Array, Array]:
        """Up to ``size`` pairs, repeated ones and self-loops included."""
        if kind == MODULE:
            cell = rng.choice(len(self.p_cell), size, p=self.p_cell)
            return self.by_cell.draw(rng, cell), self.by_cell.draw(rng, cell)
        if kind == BACKGROUND:
            species = rng.choice(NUM_SPECIES, size, p=self.p_species)
            return self.by_species.draw(rng, species), self.by_species.draw(rng, species)
        # Homologous: the same module in two species.
        module = rng.choice(self.num_modules, size, p=self.p_module)
        one = (rng.random(size) > self.species_in_module[:, module]).sum(0).clip(0, NUM_SPECIES - 1)
        two = (rng.random(size) > self.species_in_module[:, module]).sum(0).clip(0, NUM_SPECIES - 1)
        one, two, differ = one * self.num_modules + module, two * self.num_modules + module, one != two
        usable = differ & (self.by_cell.mass[one] > 0) & (self.by_cell.mass[two] > 0)
        return self.by_cell.draw(rng, one[usable]), self.by_cell.draw(rng, two[usable])


def draw_edges(rng: np.random.Generator, proteins: Proteins, num_edges: int) -> tuple[Array, Array]:
    """Draw the undirected edges.

    Args:
        rng: decides.
        proteins: the nodes.
        num_edges: E; fewer come back only if the graph is too dense to hold them.

    Returns:
        [E] int64 keys ``u * N + v`` with u < v, ascending without repeats, and [E] uint8 kinds.
    """
    n = len(proteins.species)
    pairs = _Pairs(proteins, num_edges)
    target = np.round(np.array(KIND_SHARES) * num_edges).astype(np.int64)
    target[BACKGROUND] += num_edges - target.sum()
    found: dict[int, Array] = {}
    for kind in (MODULE, HOMOLOGOUS, BACKGROUND):
        have, rate = np.empty(0, np.int64), 1.0
        for _ in range(40):
            need = int(target[kind] - len(have))
            # The first two kinds may end a little short: background makes up for it.
            if need <= (0 if kind == BACKGROUND else target[kind] // 200):
                break
            size = int(min(max(need / max(rate, 0.05) * 1.05 + 64, 4096), _MAX_DRAWS))
            u, v = pairs.draw(rng, kind, size)
            keys = (np.minimum(u, v) * n + np.maximum(u, v))[u != v]
            keys.sort()
            keys = keys[np.append(True, keys[1:] != keys[:-1])]
            # An edge is of the first kind that drew it.
            for old in (have, *found.values()):
                keys = keys[~_contains(old, keys)]
            rate = len(keys) / size
            have = np.sort(np.concatenate([have, keys]), kind="stable") if len(have) else keys
        if len(have) > target[kind]:
            keep = np.ones(len(have), bool)
            keep[rng.choice(len(have), len(have) - int(target[kind]), replace=False)] = False
            have = have[keep]
        elif kind != BACKGROUND:
            target[BACKGROUND] += target[kind] - len(have)
        found[kind] = have
    keys = np.concatenate(list(found.values()))
    kinds = np.repeat(np.array(list(found), np.uint8), [len(part) for part in found.values()])
    found.clear()
    order = np.argsort(keys, kind="stable")
    return keys[order], kinds[order]


def _contains(sorted_keys: Array, sorted_queries: Array) -> Array:
    """[q] whether each query is among the keys."""
    if not len(sorted_keys):
        return np.zeros(len(sorted_queries), bool)
    i = np.searchsorted(sorted_keys, sorted_queries)
    i[i == len(sorted_keys)] = 0
    present: Array = sorted_keys[i] == sorted_queries
    return present


def draw_edge_features(
    rng: np.random.Generator, proteins: Proteins, evidence: Evidence, u: Array, v: Array, kind: Array
) -> Array:
    """Draw what is known about each edge.

    Args:
        rng: decides.
        proteins: the nodes.
        evidence: how channels differ.
        u: [E] one end.
        v: [E] the other end.
        kind: [E] edge kinds.

    Returns:
        [E, 8] uint16 thousandths; 1 where there is no evidence.
    """
    num_edges = len(u)
    features = np.ones((num_edges, 8), np.uint16)
    homologous, inside = kind == HOMOLOGOUS, kind == MODULE
    module = _shared_module(proteins, u, v)
    species = proteins.species[u]
    fame = np.exp(0.45 * (proteins.fame[u] + proteins.fame[v]) / np.sqrt(2))
    for channel in range(1, 8):
        rate = np.where(
            inside, _MODULE_RATES[channel] * evidence.module_gain[module, channel], _BACKGROUND_RATES[channel]
        )
        rate = rate * evidence.species_gain[species, channel]
        if channel in (TEXTMINING, EXPERIMENTAL):
            rate = rate * fame
        rows = np.flatnonzero((rng.random(num_edges) < np.minimum(rate, 0.97)) & ~homologous)
        features[rows, channel] = 1 + _draw_scores(rng, channel, len(rows), inside[rows])
    features[homologous, HOMOLOGY] = 501
    # No edge is listed without any evidence: give the empty ones a weak hint.
    empty = np.flatnonzero((features == 1).all(1))
    channel_of = np.where(rng.random(len(empty)) < 0.6, TEXTMINING, COEXPRESSION)
    features[empty, channel_of] = 1 + 150 + np.minimum(rng.exponential(40, len(empty)), 200).astype(int)
    return features


def _shared_module(proteins: Proteins, u: Array, v: Array) -> Array:
    """[E] the module that both ends of an edge inside a module have in common."""
    one, two = proteins.module, proteins.second_module
    crossed = np.where(one[u] == two[v], one[u], np.maximum(two[u], 0))
    return np.where(one[u] == one[v], one[u], np.where(two[u] == one[v], one[v], crossed))


def _draw_scores(rng: np.random.Generator, channel: int, size: int, inside: Array) -> Array:
    """[size] scores in thousandths, higher inside a module."""
    if channel == DATABASE:
        database: Array = rng.choice(_DATABASE_SCORES, size, p=_DATABASE_RATES)
        return database
    if channel == FUSION:
        fusion: Array = np.minimum(1 + rng.exponential(60, size), 718)
        return fusion.astype(int)
    scale = _SCORE_SCALES[channel] * np.where(inside, 1.7, 1.0)
    other: Array = np.minimum(41 + rng.exponential(1.0, size) * scale, _SCORE_TOPS[channel])
    return other.astype(int)


def is_strong(features: Array) -> Array:
    """[E] whether an edge carries the evidence that labels depend on."""
    strong: Array = (features[:, EXPERIMENTAL] > 300) | (features[:, DATABASE] > 500) | (features[:, HOMOLOGY] > 1)
    return strong


def draw_labels(rng: np.random.Generator, proteins: Proteins, one_hop: Array, two_hops: Array) -> Array:
    """Draw the labels.

    Args:
        rng: decides.
        proteins: the nodes.
        one_hop: [N, M] mean modules one strong link away; a row sums to 1, or to 0 without links.
        two_hops: [N, M] the same two strong links away.

    Returns:
        [N, 112] uint8 zeros and ones.
    """
    n, num_modules = proteins.membership.shape
    labels = np.zeros((n, NUM_TASKS), np.uint8)
    density = np.exp(rng.uniform(np.log(0.015), np.log(0.30), NUM_TASKS))
    for task in range(NUM_TASKS):
        own = np.zeros(num_modules)
        chosen = rng.choice(num_modules, rng.integers(1, 4), replace=False)
        own[chosen] = rng.uniform(0.6, 1.4, len(chosen))
        near = np.zeros(num_modules)
        near[rng.choice(num_modules, 2, replace=False)] = 1.0
        signal = np.zeros(n)
        terms = ((1.0, proteins.membership @ own), (1.0, one_hop @ (own + 0.7 * near)), (0.8, two_hops @ (own + near)))
        for weight, term in terms:
            signal = signal + weight * (term - term.mean()) / (term.std() + 1e-9)
        score = signal + 0.25 * proteins.fame + rng.logistic(0, 0.55, n)
        labels[:, task] = score > np.quantile(score, 1 - density[task])
    return labels
