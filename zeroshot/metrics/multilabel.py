"""Several labels per image: how well scores rank them, and what a threshold makes of them.

Scores and truth are `[n c]`. Average precision is scikit-learn's, a step function in which tied
scores share one threshold: of each label by itself (macro: the mean over labels that occur), or of
all scores in one ranking (micro). F1 at a threshold is `2 tp / (2 tp + fp + fn)`, of each label or
of all counts together; the literature of multi-label recognition calls the latter OF1. A score
that is NaN counts against its image, as in `classification`, and holds at no threshold.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from zeroshot.metrics.bootstrap import Rows
from zeroshot.metrics.classification import ends_of_ties, without_nan
from zeroshot.metrics.statistics import Measure

__all__ = ["Ranking", "best_threshold", "measure_each_label", "measure_multilabel", "ranking"]


@dataclass(frozen=True)
class Ranking:
    """Scores from best to worst, prepared for the average precision of any draw of the images."""

    image: Int[np.ndarray, " m"]
    """the image of each score"""
    positive: Int[np.ndarray, " p"]
    """indices of the scores whose label holds"""
    end: Int[np.ndarray, " p"]
    """for each of those, the last index with the same score"""
    hits: Int[np.ndarray, " p"]
    """for each of those, the number of positives up to `end`, minus one"""

    def average_precision(self, times: Float[np.ndarray, " n"]) -> float:
        """The average precision if image i is drawn `times[i]` times; NaN if no label holds."""
        drawn = times[self.image]
        hits = np.cumsum(own := drawn[self.positive])
        if not len(hits) or not hits[-1]:
            return float("nan")
        count = np.maximum(np.cumsum(drawn)[self.end], 1)
        return float((own * hits[self.hits] / count).sum() / hits[-1])


def ranking(
    scores: Float[np.ndarray, " m"],
    truth: Bool[np.ndarray, " m"],
    image: Int[np.ndarray, " m"] | None = None,
) -> Ranking:
    """The ranking of scores; `image` is the image of each, by default one score per image."""
    scores = without_nan(scores, truth)
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(ends_of_ties(scores[order]))
    positive = np.flatnonzero(truth[order])
    end = ends[np.searchsorted(ends, positive)]
    hits = np.searchsorted(positive, end, side="right") - 1
    return Ranking(order if image is None else image[order], positive, end, hits)


def measure_multilabel(
    scores: Float[np.ndarray, "n c"],
    truth: Bool[np.ndarray, "n c"],
    threshold: float | None = None,
) -> Measure:
    """A method's scores of every label; with a `threshold` (a label holds from it on) also F1."""
    count, labels = scores.shape
    each = [ranking(own, positive) for own, positive in zip(scores.T, truth.T, strict=True)]
    image = np.repeat(np.arange(count), labels)
    together = ranking(scores.reshape(-1), truth.reshape(-1), image)
    predicted = None if threshold is None else scores >= threshold

    def statistic(rows: Rows) -> dict[str, float]:
        times = np.bincount(rows, minlength=count).astype(np.float64)
        figures = {
            "mean_average_precision": _mean(np.array([r.average_precision(times) for r in each])),
            "micro_average_precision": together.average_precision(times),
        }
        return figures if predicted is None else figures | _at_threshold(predicted, truth, times)

    return Measure(count, statistic)


def measure_each_label(
    scores: Float[np.ndarray, "n c"], truth: Bool[np.ndarray, "n c"], names: Sequence[str]
) -> Measure:
    """The average precision of each label, by its name; labels that never hold have none."""
    each = {
        name: ranking(own, positive)
        for name, own, positive in zip(names, scores.T, truth.T, strict=True)
        if positive.any()
    }

    def statistic(rows: Rows) -> dict[str, float]:
        times = np.bincount(rows, minlength=len(scores)).astype(np.float64)
        return {name: own.average_precision(times) for name, own in each.items()}

    return Measure(len(scores), statistic)


def best_threshold(scores: Float[np.ndarray, "n c"], truth: Bool[np.ndarray, "n c"]) -> float:
    """The threshold with the largest F1 of all counts together; of several, the highest.

    NaN if no label holds.
    """
    flat = np.nan_to_num(scores.reshape(-1), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    order = np.argsort(-flat, kind="stable")
    ends = np.flatnonzero(ends_of_ties(flat[order]))
    hits = np.cumsum(truth.reshape(-1)[order])
    if not hits.size or not hits[-1]:
        return float("nan")
    f1 = 2 * hits[ends] / (ends + 1 + hits[-1])
    return float(flat[order][ends[f1.argmax()]])


def _at_threshold(
    predicted: Bool[np.ndarray, "n c"],
    truth: Bool[np.ndarray, "n c"],
    times: Float[np.ndarray, " n"],
) -> dict[str, float]:
    hit, called, true = (times @ x for x in (predicted & truth, predicted, truth))  # [c]
    with np.errstate(invalid="ignore"):
        each = np.where(true > 0, 2 * hit / (called + true), np.nan)
    return {
        "f1_macro": _mean(each),
        "f1_micro": _share(2 * hit.sum(), called.sum() + true.sum()),
        "precision_micro": _share(hit.sum(), called.sum()),
        "recall_micro": _share(hit.sum(), true.sum()),
    }


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


def _mean(values: Float[np.ndarray, " c"]) -> float:
    """The mean without NaN."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
