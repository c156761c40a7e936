"""From a score to a word: cuts on the scale of a score, learned from labelled pairs.

Whether a picture is hateful, whether a sentence follows from it: heads for that are rarely public,
scores are. Labels are named from the lowest to the highest score (`no, yes`, or `contradiction,
neutral, entailment`), and the cuts between them are those with the best balanced accuracy (the mean
over labels of the share that is found), which dynamic programming finds exactly.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zeroshot.errors import UserError
from zeroshot.inputs.text_files import read_json

__all__ = ["Thresholds", "learn", "read_thresholds"]

SCHEMA = "zeroshot.thresholds/1"


@dataclass(frozen=True)
class Thresholds:
    """Labels from the lowest score to the highest, and the scores at which they change."""

    labels: tuple[str, ...]
    cuts: tuple[float, ...]
    made_with: str
    """What made the scores: a change of model would move them."""
    accuracy: float
    """Balanced accuracy on the pairs that they were learned from, which flatters."""
    pairs: int

    def label(self, score: float) -> str:
        """The label of a score; one that lies on a cut has the higher label."""
        return self.labels[int(np.searchsorted(self.cuts, score, side="right"))]

    def check(self, made_with: str) -> None:
        """UserError if other scores are to be cut than those that were learned from."""
        if made_with != self.made_with:
            raise UserError(
                f"the thresholds were learned on scores of {self.made_with}, these are scores of "
                f"{made_with}; learn them anew (--learn-thresholds)"
            )

    def save(self, path: Path) -> None:
        """Write them as JSON."""
        text = json.dumps({"schema": SCHEMA, **asdict(self)}, ensure_ascii=False, indent=2)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")


def learn(
    scores: Sequence[float], found: Sequence[str], labels: Sequence[str], made_with: str
) -> Thresholds:
    """The cuts between `labels`, lowest first, from pairs of which `found` says the label.

    UserError for a label that is not among `labels`, and for one that no pair has.
    """
    order = {label: place for place, label in enumerate(labels)}
    if len(order) < 2 or len(order) != len(labels):
        raise UserError(f"thresholds lie between two or more different labels, not {list(labels)}")
    for label in found:
        if label not in order:
            raise UserError(f"a pair has the label '{label}'; expected {', '.join(labels)}")
    truth = np.array([order[label] for label in found])
    counts = np.bincount(truth, minlength=len(labels))
    if not counts.all():
        raise UserError(f"no pair has the label '{labels[int(counts.argmin())]}'")
    values, place = np.unique(np.asarray(scores, dtype=np.float64), return_inverse=True)
    # below[c, i]: share of label c among the i lowest different scores.
    below = np.zeros((len(labels), len(values) + 1))
    np.add.at(below, (truth, place + 1), 1 / counts[truth])
    cuts, total = _best_cuts(below.cumsum(1))
    return Thresholds(
        tuple(labels),
        tuple(_between(values, cut) for cut in cuts),
        made_with,
        float(total / len(labels)),
        len(truth),
    )


def read_thresholds(path: Path) -> Thresholds:
    """Thresholds that `save` wrote; UserError for anything else."""
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
            and all(isinstance(cut, float) for cut in cuts)
            and cuts == sorted(cuts)
        ):
            return Thresholds(tuple(labels), tuple(cuts), made_with, accuracy, pairs)
    raise UserError(f"'{path}' holds no thresholds ({SCHEMA})")


def _best_cuts(below: "np.ndarray[Any, np.dtype[np.float64]]") -> tuple[list[int], float]:
    """How many scores lie below each cut, and the sum over labels of the share that is found."""
    best = below[0].copy()
    came_from: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    for share in below[1:]:
        gain = best - share
        reached = np.maximum.accumulate(gain)
        came_from.append(np.maximum.accumulate(np.where(gain == reached, np.arange(len(gain)), 0)))
        best = reached + share
    cuts, here = [], len(best) - 1
    for chosen in reversed(came_from):
        here = int(chosen[here])
        cuts.append(here)
    return cuts[::-1], float(best[-1])


def _between(values: "np.ndarray[Any, np.dtype[np.float64]]", cut: int) -> float:
    """Half way between the neighbours of a cut; beyond the ends, just outside."""
    if cut == 0:
        return float(values[0])
    if cut == len(values):
        return float(np.nextafter(values[-1], np.inf))
    return float((values[cut - 1] + values[cut]) / 2)
