"""Mistakes of methods that classify or retrieve, and how well their confidence is calibrated."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

from zeroshot.output.formats import Row
from zeroshot.report.result_files import Group
from zeroshot.report.thumbnails import thumbnail

BINS = 10
CLASSES = 16
"""Classes in a confusion matrix, the most frequent ones."""
MISTAKES = 18


@dataclass(frozen=True)
class Bin:
    """Images of similar confidence; all shares are from 0 to 100."""

    left: float
    confidence: float
    accuracy: float
    count: int
    share: float
    """of the fullest bin"""


@dataclass(frozen=True)
class Confusion:
    """Truth by label; a cell is the share of its row, from 0 to 100, and the count."""

    labels: Sequence[str]
    rows: Sequence[Sequence[tuple[float, int]]]
    left_out: int


@dataclass(frozen=True)
class Mistake:
    """An image with a wrong label or caption."""

    name: str
    thumbnail: str
    truth: str
    predicted: Sequence[tuple[str, str]]
    """the best labels and their scores"""


@dataclass(frozen=True)
class Labels:
    """One method's calibration, confusions and mistakes."""

    method: str
    reliability: Sequence[Bin]
    confusion: Confusion
    mistakes: Sequence[Mistake]
    wrong: int


MethodRows = list[tuple[Row, str]]
"""Rows of `classify`, each with its true label."""


def labels(group: Group) -> list[Labels]:
    """Calibration, confusions and mistakes of each method that classifies."""
    tables = []
    for method in group.methods:
        rows = [
            (row, str(group.truth[str(row["path"])].get("label")))
            for row in method.rows
            if not row.get("error") and str(row["path"]) in group.truth
        ]
        if rows:
            tables.append(labels_of(method.name, rows))
    return tables


def labels_of(name: str, rows: MethodRows) -> Labels:
    """The same of one method."""
    wrong = sorted(
        ((row, truth) for row, truth in rows if row["labels"][0]["label"] != truth),
        key=lambda pair: -pair[0]["labels"][0]["score"],
    )
    worst = [_mistake(row, truth) for row, truth in wrong[:MISTAKES]]
    return Labels(name, _reliability(rows), _confusion(rows), worst, len(wrong))


def misses(group: Group) -> list[tuple[str, list[Mistake], int]]:
    """Of each method that retrieves, the images whose best caption is another image's."""
    tables = []
    for method in group.methods:
        wrong = []
        for row in method.rows:
            own = group.truth.get(str(row["path"]), {}).get("references", ())
            if not row.get("error") and own and row["labels"][0]["label"] not in own:
                wrong.append((row, own[0]))
        wrong.sort(key=lambda pair: -pair[0]["labels"][0]["score"])
        worst = [_mistake(row, truth) for row, truth in wrong[:MISTAKES]]
        tables.append((method.name, worst, len(wrong)))
    return tables


def _mistake(row: Row, truth: str) -> Mistake:
    predicted = [(str(x["label"]), f"{x['score']:.2f}") for x in row["labels"][:3]]
    path = str(row["path"])
    return Mistake(PurePath(path).name, thumbnail(path), truth, predicted)


def _reliability(rows: Sequence[tuple[Row, str]]) -> list[Bin]:
    """The bins that have images; none if scores are no probabilities."""
    best = [(row["labels"][0], truth) for row, truth in rows]
    if any(row.get("scored") not in ("softmax", "uncalibrated", "sigmoid") for row, _ in rows):
        return []
    confidence = np.array([float(label["score"]) for label, _ in best])
    right = np.array([label["label"] == truth for label, truth in best])
    bins = np.clip(np.ceil(confidence * BINS) - 1, 0, BINS - 1).astype(int)
    fullest = np.bincount(bins).max()
    return [
        Bin(
            100 * b / BINS,
            float(100 * confidence[bins == b].mean()),
            float(100 * right[bins == b].mean()),
            int((bins == b).sum()),
            float(100 * (bins == b).sum() / fullest),
        )
        for b in range(BINS)
        if (bins == b).any()
    ]


def _confusion(rows: Sequence[tuple[Row, str]]) -> Confusion:
    counts = Counter((truth, str(row["labels"][0]["label"])) for row, truth in rows)
    totals = Counter(truth for _, truth in rows)
    every = sorted({label for pair in counts for label in pair})
    often = sorted(every, key=lambda label: -totals[label])[:CLASSES]
    shown = [label for label in every if label in often]
    cells = [
        [(100 * counts[t, s] / totals[t] if totals[t] else 0.0, counts[t, s]) for s in shown]
        for t in shown
    ]
    return Confusion(shown, cells, len(every) - len(shown))
