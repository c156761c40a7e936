"""Figures for the page: a table, a plot of intervals, differences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zeroshot.datasets.protocols import HEADLINE
from zeroshot.metrics.statistics import LOWER_IS_BETTER, to_table_units
from zeroshot.report.result_files import Group

CALLED = {
    "acc1": "accuracy",
    "acc5": "among 5",
    "mean_per_class_recall": "recall per class",
    "mean_average_precision": "mAP",
    "micro_average_precision": "micro AP",
    "f1_macro": "F1 per label",
    "f1_micro": "F1 of all",
    "precision_micro": "precision",
    "recall_micro": "recall",
    "nll": "NLL",
    "ece": "ECE",
    "adaptive_ece": "adaptive ECE",
    "auroc": "AUROC",
    "average_precision": "AP",
    "aurc": "AURC",
    **{f"Bleu_{n}": f"BLEU-{n}" for n in (1, 2, 3, 4)},
    "ROUGE_L": "ROUGE-L",
    "CIDEr": "CIDEr",
    "CLIPScore": "CLIPScore",
    "RefCLIPScore": "RefCLIPScore",
    "words": "words",
    **{f"rep_{n}": f"rep-{n}" for n in (2, 3, 4)},
    "diversity": "diversity",
    **{f"distinct_{n}": f"distinct-{n}" for n in (1, 2)},
    **{f"text_retrieval_recall@{k}": f"text R@{k}" for k in (1, 5, 10)},
    "text_retrieval_median_rank": "text median rank",
    **{f"image_retrieval_recall@{k}": f"image R@{k}" for k in (1, 5, 10)},
    "image_retrieval_median_rank": "image median rank",
}
"""Figures in the order of a table's columns, with their names there."""
LEFT_OUT = {"Bleu_2", "Bleu_3", "rep_3", "rep_4", "distinct_1", "adaptive_ece"}
SHOWN = [name for name in CALLED if name not in LEFT_OUT]
"""The figures that fit on a laptop's screen; the details have the others."""
NEUTRAL = frozenset({"words"})


@dataclass(frozen=True)
class FigureCell:
    """A figure as printed, with the ends of its interval."""

    value: str
    low: str
    high: str
    best: bool


@dataclass(frozen=True)
class FigureTable:
    """Methods by figures."""

    columns: Sequence[str]
    lower: Sequence[bool]
    rows: Sequence[tuple[str, Sequence[FigureCell | None], str]]
    """name, cells, seconds"""


def table(group: Group) -> FigureTable | None:
    """All figures of a group; None if none was measured."""
    measured = [(m.name, m.result) for m in group.methods if m.result is not None]
    if not measured:
        return None
    names = [n for n in SHOWN if any(n in r["metrics"] for _, r in measured)]
    best = {n: _best(n, [r["metrics"][n] for _, r in measured if n in r["metrics"]]) for n in names}
    rows = []
    for name, result in measured:
        cells = [_cell(n, result, best[n] if len(measured) > 1 else None) for n in names]
        seconds = result.get("seconds")
        rows.append((name, cells, f"{seconds:.1f}" if isinstance(seconds, int | float) else ""))
    return FigureTable([CALLED[n] for n in names], [n in LOWER_IS_BETTER for n in names], rows)


def _best(name: str, values: Sequence[float]) -> float | None:
    if name in NEUTRAL or len(set(values)) == 1:
        return None
    return min(values) if name in LOWER_IS_BETTER else max(values)


def _cell(name: str, result: Mapping[str, Any], best: float | None) -> FigureCell | None:
    if name not in result["metrics"]:
        return None
    value, ends = result["metrics"][name], result["intervals"][name]
    low, high = ("", "") if ends is None else (_printed(name, end) for end in ends)
    return FigureCell(_printed(name, value), low, high, value == best)


def _printed(name: str, value: float) -> str:
    return f"{to_table_units(name, value):.{_digits(name)}f}"


def _digits(name: str) -> int:
    if name.endswith(("median_rank", "words")):
        return 1
    return 3 if to_table_units(name, 1) == 1 else 2


@dataclass(frozen=True)
class Whisker:
    """A method's interval, with positions from 0 to 100 along an axis."""

    name: str
    value: str
    at: float
    low: float
    high: float
    kind: str = ""
    """a class of the page's style"""


@dataclass(frozen=True)
class Axis:
    """An axis with round ticks; positions are from 0 to 100."""

    first: float
    span: float
    ticks: Sequence[tuple[float, str]]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Axis":
        """The axis that holds these values."""
        step = _step(max(values) - min(values))
        first, last = math.floor(min(values) / step) * step, math.ceil(max(values) / step) * step
        span = max(last - first, step)
        ticks = [
            (round(100 * (tick - first) / span, 2), f"{tick:g}")
            for tick in np.round(np.arange(first, first + span + step / 2, step), 6)
        ]
        return cls(first, span, ticks)

    def at(self, value: float) -> float:
        """Where a value is."""
        return round(100 * (value - self.first) / self.span, 2)


@dataclass(frozen=True)
class Plot:
    """Intervals of one figure, one below another."""

    figure: str
    ticks: Sequence[tuple[float, str]]
    whiskers: Sequence[Whisker]


def plot(group: Group) -> Plot | None:
    """Intervals of the task's main figure; None for fewer than two methods."""
    name = HEADLINE[group.task]
    measured = [
        (m.name, m.result["metrics"][name], m.result["intervals"][name])
        for m in group.methods
        if m.result is not None and m.result["intervals"].get(name)
    ]
    if len(measured) < 2:
        return None
    axis = Axis.of([to_table_units(name, end) for _, _, pair in measured for end in pair])

    def at(value: float) -> float:
        return axis.at(to_table_units(name, value))

    whiskers = [
        Whisker(own, _printed(name, value), at(value), at(low), at(high))
        for own, value, (low, high) in measured
    ]
    return Plot(CALLED[name], axis.ticks, whiskers)


def _step(span: float) -> float:
    """1, 2 or 5 times a power of ten, so that about five steps fit into the span."""
    rough = max(span, 1e-3) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * m for m in (1, 2, 5, 10, 20) if power * m >= rough)


@dataclass(frozen=True)
class DifferenceCell:
    """A method's figure minus that of the first method."""

    method: str
    figure: str
    difference: str
    low: str
    high: str
    p: str
    kind: str
    """`best` or `worse` if the interval excludes zero and Holm's p-value is small, else empty"""


def differences(group: Group, confidence: float) -> list[DifferenceCell]:
    """The differences of the comparison, in the order of a table's columns."""
    compared = (group.comparison or {}).get("methods", {})
    cells = []
    for method, figures in compared.items():
        for name in SHOWN:
            match figures.get(name) if isinstance(figures, dict) else None:
                case {
                    "difference": float(d) | int(d),
                    "interval": [float(low) | int(low), float(high) | int(high)],
                    "p_holm": float(p) | int(p),
                }:
                    clear = (low > 0 or high < 0) and p < 1 - confidence
                    better = (d < 0) == (name in LOWER_IS_BETTER)
                    cells.append(
                        DifferenceCell(
                            method,
                            CALLED[name],
                            _signed(name, d),
                            _signed(name, low),
                            _signed(name, high),
                            f"{p:.3f}",
                            "" if not clear or name in NEUTRAL else "best" if better else "worse",
                        )
                    )
    return cells


def _signed(name: str, value: float) -> str:
    return f"{to_table_units(name, value):+.{_digits(name)}f}"
