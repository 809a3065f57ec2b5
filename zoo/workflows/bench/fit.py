"""Straight lines through measurements."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from zoo.workflows.bench.suites import Trend


def fit_lines(rows: Sequence[Mapping[str, Any]], trend: Trend) -> list[dict[str, Any]]:
    """The line of least squares through the cases of each implementation.

    Args:
        rows: cases with what was measured; those that failed are left out.
        trend: what follows what.

    Returns:
        One object for each implementation with at least three different values of ``over``: what the line is of, its
        ``slope`` per ``per`` units of ``over``, its ``intercept``, and ``r2``, the share of the variance that it
        explains (1 where there is none).
    """
    fits = []
    for implementation in dict.fromkeys(row["implementation"] for row in rows):
        points = [
            (row[trend.over] / trend.per, row[trend.of])
            for row in rows
            if row["implementation"] == implementation and row.get(trend.of) is not None
        ]
        if len({x for x, _ in points}) < 3:
            continue
        xs, ys = zip(*points, strict=True)
        slope, intercept = statistics.linear_regression(xs, ys)
        mean = statistics.fmean(ys)
        total = sum((y - mean) ** 2 for y in ys)
        rest = sum((y - intercept - slope * x) ** 2 for x, y in points)
        fits.append(
            {
                "implementation": implementation,
                **trend._asdict(),
                "slope": slope,
                "intercept": intercept,
                "r2": 1 - rest / total if total else 1.0,
            }
        )
    return fits
