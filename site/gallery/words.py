"""Figures and names as a reader sees them."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from zoo.spec.model import Model
from zoo.spec.train import METRIC_FACTS

DASH = "–"
FAMILIES = {
    "rev": "reversible",
    "res": "residual",
    "deq": "equilibrium",
    "oscillator": "oscillators",
    "gcnii": "GCNII",
    "rev_gat": "reversible attention",
}
METRICS = {
    "rocauc": "ROC-AUC",
    "average_precision": "average precision",
    "micro_f1": "micro F1",
    "macro_f1": "macro F1",
    "mcc": "Matthews correlation",
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
    "r2": "R²",
}


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what is shown.
        sort: what it is sorted by; empty: it stands last.
        title: how the figure came about or, if there is none, why.
        note: a second, smaller line.
    """

    text: str
    sort: str = ""
    title: str = ""
    note: str = ""

    @property
    def is_missing(self) -> bool:
        """True if there is no figure to show."""
        return self.text == DASH


def missing(why: str) -> Cell:
    """A dash in place of a figure, and the reason."""
    return Cell(DASH, title=why)


def family_in_words(model: Model) -> str:
    """The family of a model, and that its layers share weights where they do."""
    name = FAMILIES.get(model.type, model.type)
    distinct = getattr(model, "num_distinct_layers", None)
    return name if distinct is None else f"{name}, weight-tied"


def metric_name(metric: str) -> str:
    """The name of a metric."""
    return METRICS.get(metric, metric)


def is_in_percent(metric: str) -> bool:
    """True if values of a metric are shares, which are shown in percent."""
    facts = METRIC_FACTS.get(metric)
    return facts is not None and (facts.low, facts.high) in ((0, 1), (-1, 1))


def value_in_words(metric: str, value: str | float) -> str:
    """A value with the digits of results.csv: four places of a share, shown as percent.

    >>> value_in_words("accuracy", 0.96859)
    '96.86'
    """
    number = Decimal(value).quantize(Decimal("0.0001")) if isinstance(value, float) else Decimal(value)
    return f"{number.scaleb(2):f}" if is_in_percent(metric) else f"{number:f}"


def mean_in_words(metric: str, mean: str | float, std: str | float | None) -> str:
    """A mean and, where it is known, the standard deviation."""
    text = value_in_words(metric, mean)
    return text if std in (None, "") else f"{text} ± {value_in_words(metric, std)}"


def count(number: int, word: str) -> str:
    """A number of things, in words."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def bytes_in_words(number: int) -> str:
    """A size of a file.

    >>> bytes_in_words(1662500)
    '1.7 MB'
    """
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= size:
            share = number / size
            return f"{share:.0f} {unit}" if share >= 10 else f"{share:.1f} {unit}"
    return f"{number} bytes"
