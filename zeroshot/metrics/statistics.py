"""The outcome of a method on each image, from which figures with intervals are computed.

A `Measure` stores per image what every figure needs, so that figures can be computed for any draw
of the images. Figures have the names that CLIP_benchmark and pycocoevalcap use.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int

from zeroshot import metrics
from zeroshot.metrics.bootstrap import (
    CONFIDENCE,
    DRAWS,
    Difference,
    Interval,
    Rows,
    Statistic,
    bootstrap,
    exact_share,
    mcnemar,
    paired_bootstrap,
)
from zeroshot.metrics.captioning import caption_scores, distinct_n, repetition
from zeroshot.metrics.retrieval import image_ranks, text_ranks

RECALL_AT = (1, 5, 10)
LOWER_IS_BETTER = frozenset(
    {"ece", "adaptive_ece", "nll", "aurc", "rep_2", "rep_3", "rep_4"}
    | {"text_retrieval_median_rank", "image_retrieval_median_rank"}
)
NOT_PERCENT = frozenset(
    {"nll", "words", "CLIPScore", "RefCLIPScore"}
    | {"text_retrieval_median_rank", "image_retrieval_median_rank"}
)
"""Figures that tables do not print times 100."""
NO_CLASS = -1
"""The best class of an image that has scores that are NaN."""


def to_table_units(name: str, value: float) -> float:
    """A figure as tables print it."""
    return value if name in NOT_PERCENT else 100 * value


@dataclass(frozen=True)
class Measure:
    """One method on some images."""

    images: int
    statistic: Statistic
    """Figures of any selection of the images."""
    right: Mapping[str, Bool[np.ndarray, " n"]] = field(default_factory=dict)
    """For each figure that is a share of images: which images count."""
    fixed: Mapping[str, float] = field(default_factory=dict)
    """Figures that a draw with repetition would distort, and that therefore have no interval."""

    def figures(
        self,
        generator: np.random.Generator,
        *,
        draws: int = DRAWS,
        confidence: float = CONFIDENCE,
    ) -> dict[str, Interval]:
        """Every figure with its interval; the ends are NaN if it has none."""
        found = bootstrap(
            self.statistic, self.images, generator, draws=draws, confidence=confidence
        )
        for name, right in self.right.items():
            if right.all() or not right.any():
                found[name] = exact_share(int(right.sum()), self.images, confidence)
        found |= {name: Interval(value, math.nan, math.nan) for name, value in self.fixed.items()}
        return {name: figure for name, figure in found.items() if not math.isnan(figure.value)}


def differences(
    first: Measure,
    second: Measure,
    generator: np.random.Generator,
    *,
    draws: int = DRAWS,
    confidence: float = CONFIDENCE,
) -> dict[str, Difference]:
    """The second measure minus the first, on the same images in the same order.

    The p-value of a share of images is McNemar's, any other the bootstrap's.
    """
    found = paired_bootstrap(
        first.statistic,
        second.statistic,
        first.images,
        generator,
        draws=draws,
        confidence=confidence,
    )
    for name in first.right.keys() & second.right.keys():
        d, p = found[name], mcnemar(first.right[name], second.right[name])
        found[name] = Difference(d.value, d.low, d.high, p=p)
    return {name: d for name, d in found.items() if not math.isnan(d.value)}


def measure_scores(
    scores: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"], *, probabilities: bool = True
) -> Measure:
    """One label per image. Without `probabilities` (cosines) there are no calibration figures."""
    best = np.where(np.isnan(scores).any(1), NO_CLASS, scores.argmax(1))
    right = {"acc1": metrics.correct_at(scores, labels)}
    if scores.shape[1] > 5:
        right["acc5"] = metrics.correct_at(scores, labels, 5)
    return _measure_labels(
        best,
        labels,
        right,
        scores.max(1).astype(np.float64),
        scores[np.arange(len(labels)), labels].astype(np.float64) if probabilities else None,
        calibrated=probabilities,
    )


def measure_predictions(
    best: Int[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    confidence: Float[np.ndarray, " n"],
    among_five: Bool[np.ndarray, " n"] | None,
    *,
    probabilities: bool = True,
) -> Measure:
    """As `measure_scores`, if only the best label and its score are known."""
    right = {"acc1": best == labels}
    if among_five is not None:
        right["acc5"] = among_five
    return _measure_labels(best, labels, right, confidence, None, calibrated=probabilities)


def _measure_labels(
    best: Int[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    right: Mapping[str, Bool[np.ndarray, " n"]],
    confidence: Float[np.ndarray, " n"],
    likelihood: Float[np.ndarray, " n"] | None,
    *,
    calibrated: bool,
) -> Measure:
    correct = right["acc1"]
    surest = np.argsort(-confidence, kind="stable")
    position = np.argsort(surest)

    def statistic(rows: Rows) -> dict[str, float]:
        rows = surest[np.sort(position[rows])]  # the sorts below are fast on sorted arrays
        sure, hit = confidence[rows], correct[rows]
        found = {name: float(each[rows].mean()) for name, each in right.items()}
        found["mean_per_class_recall"] = metrics.mean_per_class_recall(best[rows], labels[rows])
        if likelihood is not None:
            own = np.maximum(likelihood[rows], np.finfo(np.float32).tiny)
            found["nll"] = float(-np.log(own).mean())
        if calibrated:
            found["ece"] = metrics.confidence_gap(sure, hit.astype(np.float64))
            found["adaptive_ece"] = metrics.adaptive_gap(sure, hit.astype(np.float64))
        found["auroc"] = metrics.auroc(sure, hit)
        found["average_precision"] = metrics.average_precision(sure, hit)
        found["aurc"] = metrics.aurc(sure, hit)
        return found

    return Measure(len(labels), statistic, right)


def measure_captions(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    more: Mapping[str, Float[np.ndarray, " n"]] | None = None,
) -> Measure:
    """One caption per image; `more` has further scores of each (CLIPScore), which are averaged.

    CIDEr always uses the document frequencies of all images, also for a draw.

    Raises:
        UserError: a single image, for which CIDEr is not defined.
    """
    scores = caption_scores(captions, references)
    means = {
        "ROUGE_L": scores.rouge_l.each,
        "CIDEr": scores.cider.each,
        "words": np.array([len(text.split()) for text in captions], dtype=np.float64),
        **(more or {}),
    }
    repeated = {n: repetition(captions, n) for n in (2, 3, 4)}

    def statistic(rows: Rows) -> dict[str, float]:
        found = {f"Bleu_{n}": score for n, score in enumerate(scores.bleu.of(rows), 1)}
        found |= {name: float(each[rows].mean()) for name, each in means.items()}
        for n, counts in repeated.items():
            different, every = counts[rows].sum(0)
            found[f"rep_{n}"] = float(1 - different / every) if every else 0.0
        found["diversity"] = math.prod(1 - found[f"rep_{n}"] for n in repeated)
        return found

    fixed = {f"distinct_{n}": distinct_n(captions, n) for n in (1, 2)}
    return Measure(len(captions), statistic, fixed=fixed)


def measure_retrieval(
    scores: Float[np.ndarray, "n m"], image_of_text: Int[np.ndarray, " m"]
) -> Measure:
    """Retrieval in both directions. A draw of images includes their captions; the gallery of all
    images and captions stays the same."""
    of_text, of_image = text_ranks(scores, image_of_text), image_ranks(scores, image_of_text)
    own = _by_image(of_image, image_of_text, len(scores))
    hits = {k: (own <= k).sum(1) for k in RECALL_AT}
    captions = (~np.isnan(own)).sum(1)
    right = {f"text_retrieval_recall@{k}": of_text <= k for k in RECALL_AT}

    def statistic(rows: Rows) -> dict[str, float]:
        found = {name: float(each[rows].mean()) for name, each in right.items()}
        for k in RECALL_AT:
            found[f"image_retrieval_recall@{k}"] = float(hits[k][rows].sum() / captions[rows].sum())
        found["text_retrieval_median_rank"] = float(np.median(of_text[rows]))
        found["image_retrieval_median_rank"] = float(np.nanmedian(own[rows]))
        return found

    return Measure(len(scores), statistic, right)


def _by_image(
    ranks: Int[np.ndarray, " m"], image_of_text: Int[np.ndarray, " m"], images: int
) -> Float[np.ndarray, "n t"]:
    """The ranks of each image's captions in one table, filled up with NaN."""
    counts = np.bincount(image_of_text, minlength=images)
    table = np.full((images, counts.max()), np.nan)
    order = np.argsort(image_of_text, kind="stable")
    column = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    table[image_of_text[order], column] = ranks[order]
    return table
