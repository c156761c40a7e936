"""Predictions of methods on images with ground truth.

Predictions are rows, as the task itself writes them, and a `Measure`, from which figures, intervals
and comparisons are computed (`evaluation`). An image that cannot be read has a row with the error
and is left out of every figure; the result has the number of such images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from zeroshot import methods
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.datasets.captions import CaptionDataset
from zeroshot.datasets.labels import ClassificationDataset
from zeroshot.datasets.multilabel_images import MultilabelDataset
from zeroshot.errors import UserError, counted
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
from zeroshot.tasks.classification.heads import UNCALIBRATED, best_labels

TOP = 5
"""Labels in a row."""


@dataclass(frozen=True)
class Predictions:
    """The predictions of one method for every image."""

    name: str
    rows: Sequence[Row]
    """one for each image"""
    measure: Measure
    """of the images with a prediction"""
    scored: tuple[int, ...]
    """the indices of those images"""
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    """for all images; None for rows that an earlier run wrote"""
    held_out: tuple[int, ...] = ()
    """indices of the images that a threshold was chosen on; no figure includes them"""
    threshold: float | None = None
    """a label holds if its score is at least this"""
    labels: Measure | None = None
    """figures of each label"""
    holds: Mapping[str, int] = field(default_factory=dict)
    """for each label, the number of scored images of which it holds"""

    @property
    def from_file(self) -> bool:
        """Whether an earlier run, or another program, made the rows."""
        return self.seconds is None

    @property
    def failed(self) -> int:
        """The number of images without a prediction."""
        return len(self.rows) - len(self.scored) - len(self.held_out)


def predict_labels(
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
    scores = _score(data.sources, data.labels, classifier, cache, meter, batch_size)
    measure = measure_scores(
        scores.values,
        np.array(data.classes)[scores.scored],
        probabilities=classifier.head == "softmax",
    )
    return scores.predictions(classifier, measure)


def predict_retrieval(
    data: CaptionDataset,
    classifier: Classifier,
    cache: EmbeddingCache,
    meter: Meter,
    batch_size: int = AUTO_BATCH,
) -> Predictions:
    """Scores of every image with every caption, which are the classifier's labels, in order.

    Raises:
        UserError: none of the images can be read.
    """
    scores = _score(data.sources, classifier.labels, classifier, cache, meter, batch_size)
    image_of_text = np.repeat(np.arange(len(scores.rows)), list(map(len, data.references)))
    readable = np.isin(image_of_text, scores.scored)
    index = np.searchsorted(scores.scored, image_of_text[readable])
    measure = measure_retrieval(scores.values[:, readable], index)
    return scores.predictions(classifier, measure)


@dataclass(frozen=True)
class ThresholdSelection:
    """The threshold from which on a label holds, or how to choose it."""

    threshold: float | None = None
    held_out: float | None = None
    """the fraction of the images to choose it on"""
    seed: int = 0

    def split(self, scored: Sequence[int]) -> tuple[list[int], list[int]]:
        """Indices among the scored images: to choose on, and to measure on.

        Raises:
            UserError: too few images for both.
        """
        if self.held_out is None:
            return [], list(range(len(scored)))
        drawn = np.random.default_rng(self.seed).permutation(len(scored)).tolist()
        count = round(self.held_out * len(scored))
        if not 0 < count < len(scored):
            raise UserError(
                f"--held-out {self.held_out:g} of {counted(len(scored), 'image')} leaves none to "
                "choose a threshold on, or none to measure"
            )
        return sorted(drawn[:count]), sorted(drawn[count:])


def predict_multilabel(
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
    scores = _score(
        data.sources, data.labels, classifier, cache, meter, batch_size, len(data.labels)
    )
    made_with, name = settings(classifier), methods.name_of(classifier.method)
    return _multilabel(
        name, data, scores.rows, scores.scored, scores.values, selection, made_with, scores.seconds
    )


def score_multilabel_predictions(
    name: str, data: MultilabelDataset, rows: Sequence[Row], selection: ThresholdSelection
) -> Predictions:
    """Scores that an earlier run wrote, a row for each image.

    Raises:
        UserError: a row without a score for each of the labels, or with other labels.
    """
    column = {label: i for i, label in enumerate(data.labels)}
    scored = _without_error(rows)
    scores = np.full((len(scored), len(data.labels)), np.nan, np.float32)
    for own, i in zip(scores, scored, strict=True):
        for label in rows[i]["labels"]:
            if label["label"] not in column:
                raise UserError(
                    f"{name}, '{rows[i]['path']}': '{label['label']}' is none of the labels"
                )
            own[column[label["label"]]] = label["score"]
        missing = int(np.isnan(own).sum())
        if missing:
            raise UserError(
                f"{name}, '{rows[i]['path']}': no score for {missing} of {len(data.labels)} "
                "labels; classify --multi without --top-k and --threshold writes all of them"
            )
    return _multilabel(name, data, rows, scored, scores, selection, _made_with(rows), None)


def _multilabel(
    name: str,
    data: MultilabelDataset,
    rows: Sequence[Row],
    scored: Sequence[int],
    scores: Float[np.ndarray, "n c"],
    selection: ThresholdSelection,
    made_with: Mapping[str, Any],
    seconds: float | None,
) -> Predictions:
    held_out, measured = selection.split(scored)
    truth, threshold = data.table(scored), selection.threshold
    if held_out:
        threshold = best_threshold(scores[held_out], truth[held_out])
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
        held_out=tuple(scored[i] for i in held_out),
        threshold=threshold,
        labels=measure_each_label(scores, truth, data.labels),
        holds=dict(zip(data.labels, truth.sum(0).tolist(), strict=True)),
    )


@dataclass(frozen=True)
class _Scores:
    """The rows of all images, and the scores of those that could be read."""

    rows: Sequence[Row]
    scored: list[int]
    values: Float[np.ndarray, "n c"]
    seconds: float

    def predictions(self, classifier: Classifier, measure: Measure) -> Predictions:
        name = methods.name_of(classifier.method)
        made_with = settings(classifier)
        return Predictions(name, self.rows, measure, tuple(self.scored), made_with, self.seconds)


def _score(
    sources: Sequence[Source],
    labels: Sequence[str],
    classifier: Classifier,
    cache: EmbeddingCache,
    meter: Meter,
    batch_size: int,
    top: int = TOP,
) -> _Scores:
    before = meter.working
    used, name = canonical_names(classifier.encoder), methods.name_of(classifier.method)
    rows: list[Row] = []
    scores: list[np.ndarray] = []
    batches = embed_batches(sources, classifier, cache, meter, batch_size)
    for batch in meter.track("images", batches, len(sources), lambda batch: len(batch.sources)):
        good = batch.readable
        best: dict[int, tuple[Label, ...]] = {}
        if good:
            with meter.stage("scoring"), meter.phase("scoring", counts=False):
                views = None if batch.views is None else batch.views[good]
                own, cosines = classifier(batch.embeddings[good], views)
                best = dict(zip(good, best_labels(labels, own, cosines, top), strict=True))
                scores.append(own.numpy())
        for i, source in enumerate(batch.sources):
            answer = ClassifyResult(
                source=source,
                id=batch.ids[i],
                error=batch.failures[i],
                models=used,
                method=name,
                labels=best.get(i, ()),
                scored=classifier.scored,
            )
            rows.append(answer.row())
    scored = _without_error(rows)
    return _Scores(rows, scored, np.concatenate(scores), meter.working - before)


def score_predictions(name: str, data: ClassificationDataset, rows: Sequence[Row]) -> Predictions:
    """Labels that an earlier run wrote, a row for each image.

    Raises:
        UserError: a label that is none of the classes, or class names that two classes share.
    """
    if len(set(data.labels)) < len(data.labels):
        raise UserError("two classes have the same name, so that rows cannot tell them apart")
    index = {label: i for i, label in enumerate(data.labels)}
    for row in rows:
        unknown = [x["label"] for x in row.get("labels", ()) if x["label"] not in index]
        if unknown:
            raise UserError(f"{name}, '{row['path']}': '{unknown[0]}' is none of the classes")
    scored = _without_error(rows)
    labels = [[index[x["label"]] for x in rows[i]["labels"]] for i in scored]
    classes = [data.classes[i] for i in scored]
    among_five = None
    if len(data.labels) > TOP and all(len(own) >= TOP for own in labels):
        among_five = np.array([c in own[:TOP] for own, c in zip(labels, classes, strict=True)])
    measure = measure_predictions(
        np.array([own[0] for own in labels]),
        np.array(classes),
        np.array([rows[i]["labels"][0]["score"] for i in scored], dtype=np.float64),
        among_five,
        probabilities=all(rows[i].get("scored") in ("softmax", UNCALIBRATED) for i in scored),
    )
    return Predictions(name, rows, measure, tuple(scored), _made_with(rows))


def score_captions(
    name: str,
    data: CaptionDataset,
    rows: Sequence[Row],
    *,
    settings: Mapping[str, Any] | None = None,
    seconds: float | None = None,
    judge: Judge | None = None,
) -> Predictions:
    """Captions, a row for each image.

    Raises:
        UserError: no image has a caption, or only one has.
    """
    scored = _without_error(rows)
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
    """The models and the method that rows name."""
    for row in rows:
        if not row.get("error"):
            return {key: row[key] for key in ("models", "method") if key in row}
    return {}


def _without_error(rows: Sequence[Row]) -> list[int]:
    """Indices of the rows without an error; UserError if there are none."""
    scored = [i for i, row in enumerate(rows) if not row.get("error")]
    if not scored:
        raise UserError("none of the images has a result, so there is nothing to measure")
    return scored
