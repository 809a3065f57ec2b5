"""The data of a recipe, and the shapes of graphs; those of named data sets are known before any data are there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, get_args

from pydantic import Field, ValidationInfo, field_validator, model_validator
from typing_extensions import Self

from zoo.spec.base import DATA_NAME_PATTERN, Spec
from zoo.spec.plugins import Installed, Plugin, Table

if TYPE_CHECKING:
    from zoo.spec.recipe import Recipe

MAX_WIDTH = 1_000_000
MAX_EDGE_FEATURES = 65_536


class GraphShape(Spec):
    """The sizes of a graph that decide the sizes of a model.

    Attributes:
        num_node_features: columns of x.
        num_node_categories: how many of the last columns of x are a one-hot code of a category; 0 if none.
        num_edge_features: columns of edge_attr; 0 if the edges carry no features.
        num_tasks: outputs per node.
    """

    num_node_features: int = Field(ge=1, le=MAX_WIDTH)
    num_node_categories: int = Field(default=0, ge=0, le=MAX_WIDTH)
    num_edge_features: int = Field(default=0, ge=0, le=MAX_EDGE_FEATURES)
    num_tasks: int = Field(ge=1, le=MAX_WIDTH)

    @model_validator(mode="after")
    def _categories(self) -> Self:
        # The linear encoder beside the one-hot code needs at least one column.
        if self.num_node_categories >= self.num_node_features and self.num_node_categories:
            raise ValueError(
                f"num_node_categories ({self.num_node_categories}) must be less than "
                f"num_node_features ({self.num_node_features})"
            )
        return self


class GeneratedSpec(Spec):
    """The data sets that are generated: how far a node has to look, and how much data there is."""

    range: int = Field(
        default=16,
        ge=2,
        le=10_000,
        description="hops between source and target (graph-transfer), across a graph at most (shortest-path, "
        "eccentricity, diameter), or of the neighborhood that a label speaks of (road)",
    )
    num_nodes: int = Field(
        default=3000, ge=100, le=10_000_000, description="of all graphs together; whole graphs may add some"
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="another one gives other graphs")


class Widths(NamedTuple):
    """Columns of a data set's node features and edge features, number of node categories, outputs per node."""

    node: int
    edge: int
    categories: int
    tasks: int


GeneratedName = Literal[
    "graph-transfer-line",
    "graph-transfer-ring",
    "graph-transfer-crossed-ring",
    "shortest-path",
    "eccentricity",
    "diameter",
    "road",
]
CityName = Literal["paris", "shanghai", "la", "london"]
DatasetName = Literal[
    "ogbn-proteins",
    "ogbn-arxiv",
    "ogbn-products",
    "ogbn-papers100M",
    "digits",
    "minesweeper",
    "roman-empire",
    "amazon-ratings",
    "tolokers",
    "questions",
    "chameleon-filtered",
    "squirrel-filtered",
    "amazon-photo",
    "amazon-computers",
    "coauthor-cs",
    "coauthor-physics",
    "wikics",
    "cora",
    "citeseer",
    "pubmed",
    CityName,
    GeneratedName,
    "file",
]
NodeFeature = Literal["node", "edge_sum", "species_one_hot", "degree", "laplacian", "constant"]


def _widths(plugin: Plugin, name: str) -> Widths:
    if plugin.widths is None:
        raise KeyError(name)
    return plugin.widths


DATASET_WIDTHS: Mapping[str, Widths] = Table(
    {
        "ogbn-proteins": Widths(0, 8, 8, 112),
        "ogbn-arxiv": Widths(128, 0, 0, 40),
        "ogbn-products": Widths(100, 0, 0, 47),
        "ogbn-papers100M": Widths(128, 0, 0, 172),
        "digits": Widths(64, 5, 0, 10),
        "minesweeper": Widths(7, 0, 0, 1),
        "roman-empire": Widths(300, 0, 0, 18),
        "amazon-ratings": Widths(300, 0, 0, 5),
        "tolokers": Widths(10, 0, 0, 1),
        "questions": Widths(301, 0, 0, 1),
        "chameleon-filtered": Widths(2325, 0, 0, 5),
        "squirrel-filtered": Widths(2089, 0, 0, 5),
        "amazon-photo": Widths(745, 0, 0, 8),
        "amazon-computers": Widths(767, 0, 0, 10),
        "coauthor-cs": Widths(6805, 0, 0, 15),
        "coauthor-physics": Widths(8415, 0, 0, 5),
        "wikics": Widths(300, 0, 0, 10),
        "cora": Widths(1433, 0, 0, 7),
        "citeseer": Widths(3703, 0, 0, 6),
        "pubmed": Widths(500, 0, 0, 3),
        **dict.fromkeys(get_args(CityName), Widths(37, 25, 0, 10)),
        "graph-transfer-line": Widths(7, 0, 0, 5),
        "graph-transfer-ring": Widths(7, 0, 0, 5),
        "graph-transfer-crossed-ring": Widths(7, 0, 0, 5),
        "shortest-path": Widths(1, 0, 0, 1),
        "eccentricity": Widths(0, 0, 0, 1),
        "diameter": Widths(0, 0, 0, 1),
        "road": Widths(0, 1, 0, 10),
    },
    "datasets",
    _widths,
)
_LAPLACIAN_WIDTH = 32


def input_shape(recipe: Recipe, graph: GraphShape) -> GraphShape:
    """The shape that a recipe's model reads of its graph: under label reuse, a column more for each class."""
    if recipe.train.label_reuse is None:
        return graph
    return graph.model_copy(update={"num_node_features": graph.num_node_features + graph.num_tasks})


def known_shape(recipe: Recipe) -> GraphShape | None:
    """The shape that a recipe's model reads; None for a graph of the user's own, whose files decide."""
    widths = DATASET_WIDTHS.get(recipe.data.dataset)
    if widths is None:
        return None
    names = recipe.data.node_features
    columns = feature_columns(widths)
    # A model that reads no edges is built as for a graph without edge features, so that parts need not gather them.
    graph = GraphShape(
        num_node_features=sum(columns[name] for name in names),
        num_node_categories=widths.categories if "species_one_hot" in names else 0,
        num_edge_features=widths.edge if recipe.model.reads_edges else 0,
        num_tasks=widths.tasks,
    )
    return input_shape(recipe, graph)


def check_features(dataset: str, names: Sequence[str]) -> None:
    """Refuse node features that would leave the model without input columns.

    Raises:
        ValueError: if a feature is named twice or has no columns in the data set, or the category stands alone.
    """
    if len(set(names)) < len(names):
        raise ValueError(f"a feature is named twice in {', '.join(names)}")
    # Of a file nothing is known yet; missing columns are noticed when it is loaded.
    widths = DATASET_WIDTHS.get(dataset)
    columns: Mapping[str, int] = {} if widths is None else feature_columns(widths)
    for name in names:
        if columns.get(name) == 0:
            others = ", ".join(repr(other) for other, width in columns.items() if width and other not in names)
            raise ValueError(f"{name!r} has no columns in {dataset}; use {others}")
    # The category goes through its own encoder; the linear encoder beside it would be left without columns.
    if list(names) == ["species_one_hot"]:
        raise ValueError("'species_one_hot' needs another node feature beside it, such as 'degree'")


def feature_columns(widths: Widths) -> Mapping[str, int]:
    """The number of columns of each node feature in a data set."""
    return {
        "node": widths.node,
        "edge_sum": widths.edge,
        "species_one_hot": widths.categories,
        "degree": 1,
        "laplacian": _LAPLACIAN_WIDTH,
        "constant": 1,
    }


class DataSpec(Spec):
    """The graph and the node features the model sees."""

    dataset: Annotated[DatasetName, Installed("datasets")]
    generated: GeneratedSpec | None = Field(
        default=None, validate_default=True, description="data sets that are generated only"
    )
    path: str = Field(default="", description="dataset 'file' only: a .npz file or a folder of .npy files")
    name: str | None = Field(
        default=None,
        pattern=DATA_NAME_PATTERN,
        description="dataset 'file' only: what its owner calls it, in cards; left out: its file",
    )
    split: int = Field(default=0, ge=0, description="which of the data set's splits")
    node_features: tuple[NodeFeature, ...] = Field(default=("node",), min_length=1, validate_default=True)
    undirected: bool = Field(default=False, description="add the reverse of every edge of a directed graph")
    self_loops: bool = Field(default=False, description="every node gets exactly one edge from itself to itself")

    @field_validator("generated")
    @classmethod
    def _of_generated(cls, generated: GeneratedSpec | None, info: ValidationInfo) -> GeneratedSpec | None:
        names, dataset = get_args(GeneratedName), info.data.get("dataset")
        if generated is not None and dataset not in (*names, None):
            raise ValueError(f"it goes with {', '.join(names)}, not with {dataset!r}")
        # Filled in, because a bundle spells out every default.
        return GeneratedSpec() if generated is None and dataset in names else generated

    @model_validator(mode="after")
    def _path(self) -> Self:
        if (self.dataset == "file") != bool(self.path):
            raise ValueError("path goes with dataset 'file', and only with it")
        if self.name is not None and self.dataset != "file":
            raise ValueError("name goes with dataset 'file' only; others have one")
        return self

    @property
    def title(self) -> str:
        """The name of the data set, in cards."""
        if self.dataset != "file":
            return self.dataset
        # Of a path that somebody else wrote, no markup.
        stem = self.path.rpartition(".")[0] or self.path
        return self.name or re.sub(r"[^\w./ -]", "_", stem)

    @field_validator("node_features")
    @classmethod
    def _columns(cls, names: tuple[NodeFeature, ...], info: ValidationInfo) -> tuple[NodeFeature, ...]:
        if "dataset" in info.data:  # else it is at fault itself
            check_features(info.data["dataset"], names)
        return names
