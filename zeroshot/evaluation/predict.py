"""Methods on images whose truth is known: what each said, ready to be measured.

A method's answers become rows, as the task itself would write them, and a `Measure`, from which
figures, intervals and comparisons are made (`evaluation`). Images that cannot be read have a row
that says so and are left out of every figure; the result says how many.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from zeroshot import methods
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.datasets.captions import CaptionDataset
from zeroshot.datasets.labels import ClassificationDataset
from zeroshot.datasets.multilabel_images import MultilabelDataset
from zeroshot.errors import UserError
from zeroshot.evaluation.clip_score import Judge
from zeroshot.inference.embedding import AUTO_BATCH, canonical_names
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.metrics.multilabel import best_threshold, measure_each_label, measure_multilabel
from zeroshot.metrics.statistics import (
    Measure,
    measure_captions,
    measure_predictions,
    measure_retrieval,
    measure_scores,
)
from zeroshot.output.formats import Row
from zeroshot.results.result import ClassifyResult, Label
from zeroshot.tasks.classification.classifier import Classifier, embed_batches, settings
from zeroshot.tasks.classification.heads import best_labels

TOP = 5
"""Labels in a row."""


@dataclass(frozen=True)
class Predictions:
    """What one method said of every image."""

    name: str
    rows: Sequence[Row]
    """one for each image"""
    measure: Measure
    """of the images that have an answer"""
    scored: tuple[int, ...]
    """their places"""
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    """for all images; None for rows that were made before"""
    held_out: tuple[int, ...] = ()
    """places of images that something was chosen on, and that no figure is of"""
    threshold: float | None = None
    """of scores from which a label holds"""
    labels: Measure | None = None
    """figures of each label by itself"""
    holds: Mapping[str, int] = field(default_factory=dict)
    """of how many of the scored images each label holds"""

    @property
    def from_file(self) -> bool:
        """Whether an earlier run, or another program, made the rows."""
        return self.seconds is None

    @property
    def failed(self) -> int:
        """Images without an answer."""
        return len(self.rows) - len(self.scored) - len(self.held_out)


def classified(
    data: ClassificationDataset,
    classifier: Classifier,
    cache: EmbeddingCache,
    meter: Meter,
    batch_size: int = AUTO_BATCH,
) -> Predictions:
    """Labels by one method.

    Raises:
        UserError: none of the images can be read.
    """
    seen = _scored(data.sources, data.labels, classifier, cache, meter, batch_size)
    measure = measure_scores(
        seen.scores,
        np.array(data.classes)[seen.scored],
        probabilities=classifier.head == "softmax",
    )
    return seen.answers(classifier, measure)


def retrieved(
    data: CaptionDataset,
    classifier: Classifier,
    cache: EmbeddingCache,
    meter: Meter,
    batch_size: int = AUTO_BATCH,
) -> Predictions:
    """Every image against every caption; the captions are the classifier's labels, in order.

    Raises:
        UserError: none of the images can be read.
    """
    seen = _scored(data.sources, classifier.labels, classifier, cache, meter, batch_size)
    image_of_text = np.repeat(np.arange(len(seen.rows)), list(map(len, data.references)))
    kept = np.isin(image_of_text, seen.scored)
    place = np.searchsorted(seen.scored, image_of_text[kept])
    return seen.answers(classifier, measure_retrieval(seen.scores[:, kept], place))


@dataclass(frozen=True)
class ThresholdSelection:
    """Of the threshold from which a label holds: a score, or the share of images to choose on."""

    threshold: float | None = None
    held_out: float | None = None
    seed: int = 0

    def split(self, scored: Sequence[int]) -> tuple[list[int], list[int]]:
        """Places among the scored images: to choose on, and to measure on.

        Raises:
            UserError: too few images for both.
        """
        if self.held_out is None:
            return [], list(range(len(scored)))
        drawn = np.random.default_rng(self.seed).permutation(len(scored)).tolist()
        count = round(self.held_out * len(scored))
        if not 0 < count < len(scored):
            raise UserError(
                f"--held-out {self.held_out:g} of {len(scored)} images leaves none to choose a "
                "threshold on, or none to measure"
            )
        return sorted(drawn[:count]), sorted(drawn[count:])


def multilabelled(
    data: MultilabelDataset,
    classifier: Classifier,
    cache: EmbeddingCache,
    meter: Meter,
    batch_size: int = AUTO_BATCH,
    selection: ThresholdSelection = ThresholdSelection(),
) -> Predictions:
    """Scores of every label by one method.

    Raises:
        UserError: none of the images can be read.
    """
    seen = _scored(
        data.sources, data.labels, classifier, cache, meter, batch_size, len(data.labels)
    )
    made_with, name = settings(classifier), methods.name_of(classifier.method)
    return _multi(
        name, data, seen.rows, seen.scored, seen.scores, selection, made_with, seen.seconds
    )


def score_multilabel_predictions(
    name: str, data: MultilabelDataset, given: Sequence[Row], selection: ThresholdSelection
) -> Predictions:
    """Scores that an earlier run wrote, a row for each image.

    Raises:
        UserError: a row without a score for every label, or with others.
    """
    number = {label: i for i, label in enumerate(data.labels)}
    scored = _with_answer(given)
    scores = np.full((len(scored), len(data.labels)), np.nan, np.float32)
    for place, i in enumerate(scored):
        for label in given[i]["labels"]:
            if label["label"] not in number:
                raise UserError(
                    f"{name}, '{given[i]['path']}': '{label['label']}' is none of the labels"
                )
            scores[place, number[label["label"]]] = label["score"]
        missing = int(np.isnan(scores[place]).sum())
        if missing:
            raise UserError(
                f"{name}, '{given[i]['path']}': no score for {missing} of {len(data.labels)} "
                "labels; classify --multi without --top-k and --threshold writes all of them"
            )
    return _multi(name, data, given, scored, scores, selection, _made_with(given), None)


def _multi(
    name: str,
    data: MultilabelDataset,
    rows: Sequence[Row],
    scored: Sequence[int],
    scores: Float[np.ndarray, "n c"],
    selection: ThresholdSelection,
    made_with: Mapping[str, Any],
    seconds: float | None,
) -> Predictions:
    chosen_on, measured = selection.split(scored)
    truth, threshold = data.table(scored), selection.threshold
    if chosen_on:
        threshold = best_threshold(scores[chosen_on], truth[chosen_on])
        if np.isnan(threshold):
            raise UserError("--held-out: no label holds of the images held out; hold out more")
    scores, truth = scores[measured], truth[measured]
    return Predictions(
        name,
        rows,
        measure_multilabel(scores, truth, threshold),
        tuple(scored[i] for i in measured),
        made_with,
        seconds,
        held_out=tuple(scored[i] for i in chosen_on),
        threshold=threshold,
        labels=measure_each_label(scores, truth, data.labels),
        holds=dict(zip(data.labels, truth.sum(0).tolist(), strict=True)),
    )


@dataclass(frozen=True)
class _Seen:
    """Rows of all images, and the scores of those that could be read."""

    rows: Sequence[Row]
    scored: list[int]
    scores: Float[np.ndarray, "n c"]
    seconds: float

    def answers(self, classifier: Classifier, measure: Measure) -> Predictions:
        name = methods.name_of(classifier.method)
        made_with = settings(classifier)
        return Predictions(name, self.rows, measure, tuple(self.scored), made_with, self.seconds)


def _scored(
    sources: Sequence[Source],
    labels: Sequence[str],
    classifier: Classifier,
    cache: EmbeddingCache,
    meter: Meter,
    batch_size: int,
    top: int = TOP,
) -> _Seen:
    before = meter.working
    used, name = canonical_names(classifier.encoder), methods.name_of(classifier.method)
    rows: list[Row] = []
    scores: list[np.ndarray] = []
    for batch in embed_batches(sources, classifier, cache, meter, batch_size):
        good = batch.readable
        best: dict[int, tuple[Label, ...]] = {}
        if good:
            with meter.stage("scoring"):
                views = None if batch.views is None else batch.views[good]
                found, cosines = classifier(batch.embeddings[good], views)
                own = best_labels(labels, found, cosines, top)
                best = dict(zip(good, own, strict=True))
                scores.append(found.numpy())
        for i, source in enumerate(batch.sources):
            answer = ClassifyResult(
                source=source,
                id=batch.ids[i],
                error=batch.failures[i],
                models=used,
                method=name,
                labels=best.get(i, ()),
                scored=classifier.head,
            )
            rows.append(answer.row())
    scored = _with_answer(rows)
    return _Seen(rows, scored, np.concatenate(scores), meter.working - before)


def score_predictions(name: str, data: ClassificationDataset, given: Sequence[Row]) -> Predictions:
    """Labels that an earlier run chose, a row for each image.

    Raises:
        UserError: a label that is none of the classes, or class names that two classes share.
    """
    if len(set(data.labels)) < len(data.labels):
        raise UserError("some classes share a name, so that rows cannot say which is meant")
    number = {label: i for i, label in enumerate(data.labels)}
    for row in given:
        unknown = [x["label"] for x in row.get("labels", ()) if x["label"] not in number]
        if unknown:
            raise UserError(f"{name}, '{row['path']}': '{unknown[0]}' is none of the classes")
    scored = _with_answer(given)
    labels = [[number[x["label"]] for x in given[i]["labels"]] for i in scored]
    classes = [data.classes[i] for i in scored]
    five = None
    if len(data.labels) > TOP and all(len(own) >= TOP for own in labels):
        five = np.array([c in own[:TOP] for own, c in zip(labels, classes, strict=True)])
    measure = measure_predictions(
        np.array([own[0] for own in labels]),
        np.array(classes),
        np.array([given[i]["labels"][0]["score"] for i in scored], dtype=np.float64),
        five,
        probabilities=all(given[i].get("scored") == "softmax" for i in scored),
    )
    return Predictions(name, given, measure, tuple(scored), _made_with(given))


def captioned(
    name: str,
    data: CaptionDataset,
    given: Iterable[Row],
    *,
    settings: Mapping[str, Any] | None = None,
    seconds: float | None = None,
    judge: Judge | None = None,
) -> Predictions:
    """Captions, a row for each image.

    Raises:
        UserError: no image has a caption, or only one has.
    """
    rows = list(given)
    scored = _with_answer(rows)
    captions = [rows[i]["caption"] for i in scored]
    references = [data.references[i] for i in scored]
    more = judge([data.sources[i] for i in scored], captions, references) if judge else {}
    made_with = _made_with(rows) if settings is None else settings
    if judge:
        made_with = {**made_with, "judge": canonical_names(judge.encoder)}
    return Predictions(
        name, rows, measure_captions(captions, references, more), tuple(scored), made_with, seconds
    )


def _made_with(rows: Sequence[Row]) -> dict[str, Any]:
    """What rows say of how they were made."""
    for row in rows:
        if not row.get("error"):
            return {key: row[key] for key in ("models", "method") if key in row}
    return {}


def _with_answer(rows: Sequence[Row]) -> list[int]:
    """Places of the rows that are no failures."""
    scored = [i for i, row in enumerate(rows) if not row.get("error")]
    if not scored:
        raise UserError("none of the images has an answer, so there is nothing to measure")
    return scored
