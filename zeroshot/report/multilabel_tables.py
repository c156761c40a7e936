"""The best and worst labels of methods that score several labels per image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from zeroshot.metrics.classification import average_precision
from zeroshot.output.formats import Row
from zeroshot.report.figures import FigureCell
from zeroshot.report.label_tables import MISTAKES, Mistake
from zeroshot.report.result_files import Group
from zeroshot.report.thumbnails import thumbnail

LABELS = 100
"""Labels that are shown, the hardest ones."""


@dataclass(frozen=True)
class LabelRow:
    """One label's average precision by each method."""

    label: str
    images: int
    cells: Sequence[FigureCell | None]


@dataclass(frozen=True)
class LabelTable:
    """Labels by methods."""

    methods: Sequence[str]
    rows: Sequence[LabelRow]
    left_out: int


def table(group: Group) -> LabelTable | None:
    """The labels by their mean over the methods, the lowest first; None if none was measured.

    A label that holds of no image has no row.
    """
    measured = [(m.name, m.result["labels"]) for m in group.methods if m.result is not None]
    if not measured:
        return None
    names = dict.fromkeys(name for _, labels in measured for name in labels)
    rows = []
    for name in names:
        own = [labels.get(name) for _, labels in measured]
        values = [x["average_precision"] for x in own if x is not None]
        best = max(values) if min(values) < max(values) else None
        images = max(x["pictures"] for x in own if x is not None)
        cells = [None if x is None else _cell(x, best) for x in own]
        rows.append((float(np.mean(values)), LabelRow(name, images, cells)))
    ordered = [row for _, row in sorted(rows, key=lambda pair: pair[0])]
    return LabelTable([n for n, _ in measured], ordered[:LABELS], len(ordered[LABELS:]))


def _cell(own: dict[str, Any], best: float | None) -> FigureCell:
    low, high = (f"{100 * end:.1f}" for end in own["interval"]) if own["interval"] else ("", "")
    value = own["average_precision"]
    return FigureCell(f"{100 * value:.1f}", low, high, value == best)


def worst(group: Group) -> list[tuple[str, list[Mistake], int]]:
    """Of each method, the images whose true labels are ranked worst, and the number of images
    whose true labels are not all ranked first."""
    tables = []
    for method in group.methods:
        ranked = []
        for row in method.rows:
            truth = group.truth.get(str(row["path"]), {}).get("labels", ())
            if row.get("error") or not truth:
                continue
            score = _ranked(row, truth)
            if score < 1:
                ranked.append((score, row, truth))
        ranked.sort(key=lambda one: one[0])
        worst = [_mistake(row, truth) for _, row, truth in ranked[:MISTAKES]]
        tables.append((method.name, worst, len(ranked)))
    return tables


def _ranked(row: Row, truth: Sequence[str]) -> float:
    """The average precision of one image's labels."""
    scores = np.array([float(x["score"]) for x in row["labels"]])
    return average_precision(scores, np.array([x["label"] in truth for x in row["labels"]]))


def _mistake(row: Row, truth: Sequence[str]) -> Mistake:
    predicted = [(str(x["label"]), f"{x['score']:.2f}") for x in row["labels"][: len(truth) + 1]]
    path = str(row["path"])
    return Mistake(PurePath(path).name, thumbnail(path), ", ".join(truth), predicted)
