"""From a score to a label: thresholds that are learned from labelled pairs.

Classification heads, for example for hateful images or for entailment, are rarely public, but
scores of a text and its image are. Labels are given from the lowest to the highest score (`no,
yes`, or `contradiction, neutral, entailment`). The thresholds between them maximise the balanced
accuracy (the mean over labels of their recall); dynamic programming finds the maximum exactly.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zeroshot.errors import UserError
from zeroshot.inputs.text_files import is_number, read_json
from zeroshot.output.atomic import whole
from zeroshot.output.formats import utf8

__all__ = ["Thresholds", "learn", "read_thresholds"]

SCHEMA = "zeroshot.thresholds/1"


@dataclass(frozen=True)
class Thresholds:
    """Labels from the lowest score to the highest, and the scores at which they change."""

    labels: tuple[str, ...]
    cuts: tuple[float, ...]
    made_with: str
    """The kind and the models of the scores: those of another model lie elsewhere."""
    accuracy: float
    """Balanced accuracy on the training pairs, which is higher than on new ones."""
    pairs: int
    """Number of training pairs."""

    def label(self, score: float) -> str:
        """The label of a score; a score equal to a threshold has the higher label."""
        return self.labels[int(np.searchsorted(self.cuts, score, side="right"))]

    def check(self, made_with: str) -> None:
        """UserError if the scores are not of the kind and the models that were learned from."""
        if made_with != self.made_with:
            raise UserError(
                f"the thresholds were learned on scores of {self.made_with}, these are scores of "
                f"{made_with}; learn new ones with --learn-thresholds"
            )

    def save(self, path: Path, overwrite: bool = True) -> None:
        """Write them as JSON; raises as `output.atomic.whole`."""
        text = json.dumps({"schema": SCHEMA, **asdict(self)}, ensure_ascii=False, indent=2)
        with whole(path, overwrite=overwrite) as file:
            file.write(utf8(text + "\n"))


def learn(
    scores: Sequence[float], truth: Sequence[str], labels: Sequence[str], made_with: str
) -> Thresholds:
    """The thresholds between `labels`, lowest first, from pairs whose labels are `truth`.

    UserError for a label that is not among `labels`, and for one that no pair has.
    """
    order = {label: index for index, label in enumerate(labels)}
    if len(order) < 2 or len(order) != len(labels):
        raise UserError(f"thresholds lie between two or more different labels, not {list(labels)}")
    for label in truth:
        if label not in order:
            raise UserError(f"a pair has the label '{label}'; expected {', '.join(labels)}")
    classes = np.array([order[label] for label in truth], dtype=np.intp)
    counts = np.bincount(classes, minlength=len(labels))
    if not counts.all():
        raise UserError(f"no pair has the label '{labels[int(counts.argmin())]}'")
    values, index = np.unique(np.asarray(scores, dtype=np.float64), return_inverse=True)
    # below[c, i]: the fraction of label c whose scores are among the i lowest distinct ones.
    below = np.zeros((len(labels), len(values) + 1))
    np.add.at(below, (classes, index + 1), 1 / counts[classes])
    cuts, total = _best_cuts(below.cumsum(1))
    return Thresholds(
        tuple(labels),
        tuple(_between(values, cut) for cut in cuts),
        made_with,
        float(total / len(labels)),
        len(classes),
    )


def read_thresholds(path: Path) -> Thresholds:
    """Thresholds that `save` wrote; UserError for any other file."""
    match read_json(path):
        case {
            "schema": "zeroshot.thresholds/1",
            "labels": [*labels],
            "cuts": [*cuts],
            "made_with": str(made_with),
            "accuracy": float(accuracy),
            "pairs": int(pairs),
        } if (
            len(labels) == len(cuts) + 1 > 1
            and all(isinstance(label, str) for label in labels)
            and all(isinstance(x, float) and is_number(x) for x in [*cuts, accuracy])
            and cuts == sorted(cuts)
        ):
            return Thresholds(tuple(labels), tuple(cuts), made_with, accuracy, pairs)
    raise UserError(f"'{path}' has no thresholds ({SCHEMA})")


def _best_cuts(below: "np.ndarray[Any, np.dtype[np.float64]]") -> tuple[list[int], float]:
    """The number of scores below each threshold, and the sum over labels of their recall."""
    best = below[0].copy()
    previous: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    for share in below[1:]:
        gain = best - share
        highest = np.maximum.accumulate(gain)
        previous.append(np.maximum.accumulate(np.where(gain == highest, np.arange(len(gain)), 0)))
        best = highest + share
    cuts, cut = [], len(best) - 1
    for pointers in reversed(previous):
        cut = int(pointers[cut])
        cuts.append(cut)
    return cuts[::-1], float(best[-1])


def _between(values: "np.ndarray[Any, np.dtype[np.float64]]", cut: int) -> float:
    """The mean of the scores next to a cut; at an end, the outermost score or just above it."""
    if cut == 0:
        return float(values[0])
    if cut == len(values):
        return float(np.nextafter(values[-1], np.inf))
    return float((values[cut - 1] + values[cut]) / 2)
