"""Compare measured figures with published ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zoo.hub.config import CONFIG_FILE
from zoo.spec.recipe import Recipe
from zoo.spec.results import Measured, ReportedResult
from zoo.spec.train import lower_is_better

# Another device or library may round a sum otherwise and so turn a few predictions over.
_ROUNDING = 5e-4
_NUM_FLIPS = 2
# A published mean stands for runs of several seeds; two deviations hold 95 % of them.
_NUM_DEVIATIONS = 2.0
_UNSTATED_DEVIATION = 0.005


@dataclass(frozen=True)
class Comparison:
    """A measured figure and the published one.

    Attributes:
        figure: what was measured.
        published: the figure under the same protocol; None: there is none.
        tolerance: how far off it may be.
        origin: who published it: "config.json" or the source that the recipe names.
        elsewhere: what was published of this split and metric under other protocols, if nothing under this one.
        commit: of the model that was measured; empty if it does not come from the Hub.
    """

    figure: Measured
    published: float | None = None
    tolerance: float = 0.0
    origin: str = ""
    elsewhere: tuple[ReportedResult, ...] = ()
    commit: str = ""

    @property
    def is_within(self) -> bool:
        """True if the figure is close enough to the published one, or none was published."""
        return self.published is None or abs(self.figure.value - self.published) <= self.tolerance

    @property
    def is_regression(self) -> bool:
        """True if the figure is not the one recorded with these very weights.

        A source speaks of other weights, perhaps trained for longer: its figures are shown and decide nothing.
        """
        return self.origin == CONFIG_FILE and not self.is_within


def compare_with_published(
    figures: Sequence[Measured], recorded: Sequence[Measured], recipe: Recipe, sizes: Mapping[str, int]
) -> list[Comparison]:
    """Find what was published for each figure, under the same protocol.

    What is recorded with the weights comes first: the same weights on the same partitions must give it again, but for
    rounding and two nodes of the split. Else the recipe's source is quoted, which reports the mean of several runs: its
    figure may be two standard deviations off.

    Args:
        figures: what was measured.
        recorded: what ``config.json`` holds; empty if there is none.
        recipe: for what its source reports.
        sizes: number of nodes by split.
    """
    return [_compare(figure, recorded, recipe, sizes[figure.split]) for figure in figures]


def _compare(figure: Measured, recorded: Sequence[Measured], recipe: Recipe, num_nodes: int) -> Comparison:
    protocol = (figure.split, figure.metric, figure.num_views, figure.num_parts)
    for record in recorded:
        if (record.split, record.metric, record.num_views, record.num_parts) == protocol:
            flips = _NUM_FLIPS / max(num_nodes, 1)
            # An error has the unit of the labels, of which only a share can be said to be small.
            is_error = lower_is_better(figure.metric)
            tolerance = _ROUNDING * abs(record.value) if is_error else max(_ROUNDING, flips)
            return Comparison(figure, record.value, tolerance, CONFIG_FILE)
    reported = [
        other
        for other in (recipe.source.reported if recipe.source else ())
        if (other.split, other.metric) == (figure.split, figure.metric)
    ]
    for other in reported:
        # A number that the source does not state is None here and equals none.
        if (other.num_views, other.num_parts) == (figure.num_views, figure.num_parts):
            deviation = _UNSTATED_DEVIATION if other.std is None else other.std
            return Comparison(figure, other.mean, _NUM_DEVIATIONS * deviation, other.source)
    return Comparison(figure, elsewhere=tuple(reported))
