"""What an H200 should need, from bytes and launches, beside what was measured on one if it was.

    python benchmarks/estimate.py > benchmarks/gpu.md

Every number of the estimates follows from the constants below. What was measured comes from
benchmarks/results/gpu_true_size.json, which `make bench-gpu` writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from zoo.spec.recipe import read_recipe
from zoo.spec.shape import GraphShape
from zoo.spec.shipped import recipe_path
from zoo.spec.size import count_parameters

# The machine.
HBM_BYTES_PER_S = 4.3e12
L2_BYTES_PER_S = 6e12
LAUNCH_S = 7e-6  # of a kernel from Python
GRAPH_KERNEL_S = 2.5e-6  # of a small kernel inside a CUDA graph
# What the aggregation reaches of the rate at which rows can be gathered.
GATHER_EFFICIENCY = 0.65
# Small kernels of one group of one layer: a forward pass without gradients, one with, a backward pass.
SMALL_FORWARD, SMALL_BACKWARD = 12, 24
# The same if linear layers and sums were fused with norm, ReLU and mask, which are one kernel already: a bound.
FUSED_FORWARD, FUSED_BACKWARD = 4, 10
# A backward of the aggregation visits winners alone.
BACKWARD_PER_FORWARD = 0.5
# How often PyG reads or writes a tensor with a row for each edge: in one evaluation, of which it makes three, and in a
# backward pass.
PYG_FORWARD_PASSES, PYG_EVALUATIONS, PYG_BACKWARD_PASSES = 16, 3, 30
# Tensors [N, C] that a step holds at its peak; on the CPU it is 14.
STATES = 15
# Bytes for every stored edge that finding and sorting the edges of all parts moves, and kernels launched for it.
PARTITION_BYTES, PARTITION_LAUNCHES = 200, 350

NUM_NODES, NUM_EDGES, NUM_EDGE_FEATURES, NUM_NODE_FEATURES = 132_534, 79_122_504, 8, 16
SHAPE = GraphShape(
    num_node_features=NUM_NODE_FEATURES, num_node_categories=8, num_edge_features=NUM_EDGE_FEATURES, num_tasks=112
)
GROUPS, GB = 2, 1e9
RESULTS = Path(__file__).parent / "results" / "gpu_true_size.json"
CAPTURED = RESULTS.with_name("gpu_true_size_capture.json")


class Setting(NamedTuple):
    """A model and the size of what a step sees."""

    recipe: str
    num_parts: int

    @property
    def model(self) -> Any:
        """The model of the recipe."""
        return read_recipe(recipe_path(self.recipe)).model

    @property
    def num_nodes(self) -> float:
        """Nodes of a part."""
        return NUM_NODES / self.num_parts

    @property
    def num_edges(self) -> float:
        """Directed edges of a part: both ends of an edge must fall into it."""
        return NUM_EDGES / self.num_parts**2

    def unit_s(self, small: int, small_s: float, aggregations: float) -> float:
        """Seconds of one group of one layer: its small kernels and its aggregations."""
        width = self.model.hidden_channels / GROUPS * 4
        kernel_s = max(small_s, 3 * self.num_nodes * width / HBM_BYTES_PER_S)
        gather_s = self.num_edges * width / L2_BYTES_PER_S / GATHER_EFFICIENCY
        return small * kernel_s + aggregations * gather_s

    def epoch_s(self, unit_s: float) -> float:
        """Seconds of all units of all parts."""
        return self.model.num_layers * GROUPS * self.num_parts * unit_s

    def train_s(self, *, forward: int, backward: int, small_s: float) -> float:
        """Seconds of an epoch: forward without gradients, forward with, backward."""
        return self.epoch_s(self.unit_s(2 * forward + backward, small_s, 2 + BACKWARD_PER_FORWARD))

    def pyg_s(self) -> float:
        """Seconds of an epoch in PyG, which is bound by its tensors with a row for each edge."""
        width = self.model.hidden_channels / GROUPS * 4
        passes = PYG_FORWARD_PASSES * PYG_EVALUATIONS + PYG_BACKWARD_PASSES
        return self.epoch_s(passes * self.num_edges * width / HBM_BYTES_PER_S)

    def evaluate_s(self) -> float:
        """Seconds of an evaluation without CUDA graphs."""
        return self.epoch_s(self.unit_s(SMALL_FORWARD, LAUNCH_S, 1))

    def step_gb(self, *, feature_bytes: int = 4) -> float:
        """Parameters, gradients, two moments of Adam; the part; the states of the step."""
        weights = 16 * count_parameters(self.model, SHAPE)
        part = self.num_edges * (4 + feature_bytes * NUM_EDGE_FEATURES) + self.num_nodes * 4 * NUM_NODE_FEATURES
        return (weights + part + STATES * self.num_nodes * self.model.hidden_channels * 4) / GB


def partition_s() -> float:
    """Seconds in which all parts of an epoch are made on the GPU."""
    return NUM_EDGES / 2 * PARTITION_BYTES / HBM_BYTES_PER_S + PARTITION_LAUNCHES * LAUNCH_S


def measured(
    implementation: str, recipe: str, num_parts: int, work: str = "train", *, captured: bool = False
) -> dict[str, Any] | None:
    """What was measured of a case, or None."""
    results = CAPTURED if captured else RESULTS
    if not results.exists():
        return None
    for row in json.loads(results.read_text())["cases"]:
        key = (row["implementation"], row["recipe"], row["num_parts"], row["work"])
        if key == (implementation, recipe, num_parts, work):
            return dict(row)
    return None


def shown(row: dict[str, Any] | None, figure: str) -> str:
    """A figure of a measured case in words."""
    if row is None or "failed" in row:
        return "not measured" if row is None else str(row["failed"])
    if figure == "step_gb":
        return f"{sum(row[key] for key in ('state_bytes', 'part_bytes', 'peak_bytes')) / GB:.2f} GB"
    if figure == "share":
        return f"{row['partition_s'] / row['epoch_s']:.2%}"
    return f"{row[figure]:.2f} s"


def table() -> str:
    """The table as Markdown."""
    deep, wide, whole = Setting("rev_deep", 10), Setting("rev_wide", 10), Setting("rev_deep", 1)
    eager = deep.train_s(forward=SMALL_FORWARD, backward=SMALL_BACKWARD, small_s=LAUNCH_S)
    graphs = deep.train_s(forward=SMALL_FORWARD, backward=SMALL_BACKWARD, small_s=GRAPH_KERNEL_S)
    fused = deep.train_s(forward=FUSED_FORWARD, backward=FUSED_BACKWARD, small_s=GRAPH_KERNEL_S)
    whole_s = whole.train_s(forward=SMALL_FORWARD, backward=SMALL_BACKWARD, small_s=LAUNCH_S)
    ours, theirs = measured("zoo", "rev_deep", 10), measured("pyg", "rev_deep", 10)
    captured = measured("zoo", "rev_deep", 10, captured=True)
    in_one, judged = measured("zoo", "rev_deep", 1), measured("zoo", "rev_deep", 1, "evaluate")
    speedup = "not measured"
    if ours and theirs and "failed" not in ours and "failed" not in theirs:
        speedup = f"{theirs['epoch_s'] / ours['epoch_s']:.1f} x"
    whole_gb = f"{whole.step_gb():.2f} GB; {whole.step_gb(feature_bytes=2):.2f} GB with edge features in 16 bits"
    rows = [
        ("RevGNN-Deep, training epoch, 10 parts", f"{eager:.1f} s", "6 s, aim 3 s", shown(ours, "epoch_s")),
        ("the same inside CUDA graphs", f"{graphs:.1f} s", "6 s, aim 3 s", shown(captured, "epoch_s")),
        ("the same, if linear layers and sums were fused too", f"{fused:.1f} s", "6 s, aim 3 s", "not measured"),
        ("the same in PyG", f"{deep.pyg_s():.0f} s", "-", shown(theirs, "epoch_s")),
        ("PyG over ours", f"{deep.pyg_s() / eager:.0f} x to {deep.pyg_s() / graphs:.0f} x", "10 x, aim 20 x", speedup),
        ("share of partitioning", f"{partition_s() / eager:.2%}", "5 %", shown(ours, "share")),
        ("RevGNN-Deep, memory of a step", f"{deep.step_gb():.2f} GB", "0.8 GB, aim 0.5 GB", shown(ours, "step_gb")),
        (
            "RevGNN-Wide, memory of a step",
            f"{wide.step_gb():.2f} GB",
            "2.0 GB, aim 1.4 GB",
            shown(measured("zoo", "rev_wide", 10), "step_gb"),
        ),
        ("RevGNN-Deep, whole graph in one part, memory", whole_gb, "6 GB, aim 4 GB", shown(in_one, "step_gb")),
        ("the same, seconds of a step", f"{whole_s:.0f} s", "-", shown(in_one, "epoch_s")),
        ("evaluation of the whole graph in one part", f"{whole.evaluate_s():.1f} s", "-", shown(judged, "epoch_s")),
    ]
    lines = [
        "# One H200: measured, and estimated from bytes and launches",
        "",
        "Written by `python benchmarks/estimate.py`; `make bench-gpu` measures. An estimate is no measurement: it says",
        "what the constants at the top of that script lead to, none of which was read off a run of this code on a GPU.",
        "Seconds are those of the layers' kernels: the optimizer, and handing the gradients of RevGNN-Deep's 20,000",
        "parameter tensors to it, come on top.",
        "A graph of ogbn-proteins' size: 132,534 nodes, 79,122,504 directed edges. Memory is that of parameters,",
        "gradients, optimizer, one part and the step; the whole graph, where it stays on the card, takes 1.6 GB more.",
        "",
        "| | estimate | wanted | measured |",
        "| --- | --- | --- | --- |",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        "| assumption | |",
        "| --- | --- |",
        f"| memory bandwidth | {HBM_BYTES_PER_S / 1e12:.1f} TB/s |",
        f"| rows gathered from L2 | {L2_BYTES_PER_S / 1e12:.0f} TB/s, of which {GATHER_EFFICIENCY:.0%} are reached |",
        f"| a launch from Python | {LAUNCH_S * 1e6:g} us |",
        f"| a small kernel inside a CUDA graph | {GRAPH_KERNEL_S * 1e6:g} us |",
        f"| small kernels, forward and backward | {SMALL_FORWARD} and {SMALL_BACKWARD}; "
        f"if more were fused {FUSED_FORWARD} and {FUSED_BACKWARD} |",
        f"| PyG's passes over a tensor of all edges | {PYG_EVALUATIONS} times {PYG_FORWARD_PASSES} forward, "
        f"{PYG_BACKWARD_PASSES} backward |",
        f"| tensors [N, C] at the peak of a step | {STATES} |",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
