"""Methods on pictures whose truth is known: what each said, ready to be measured.

A method's answers become rows, as the task itself would write them, and a `Measure`, from which
figures, intervals and comparisons are made (`evaluation`). Pictures that cannot be read have a row
that says so and are left out of every figure; the result says how many.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from zeroshot import methods
from zeroshot.errors import UserError
from zeroshot.formats import Row
from zeroshot.images import Source
from zeroshot.measures import (
    Measure,
    of_captions,
    of_classes,
    of_predictions,
    of_ranks,
)
from zeroshot.results import ClassifyResult, Label
from zeroshot.store import EmbeddingCache
from zeroshot.tasks.captioned import Captioned
from zeroshot.tasks.classify import Classifier, embedded, settings
from zeroshot.tasks.datasets import Classes
from zeroshot.tasks.embedding import (
    AUTO_BATCH,
    canonical_names,
)
from zeroshot.tasks.judge import Judge
from zeroshot.tasks.meter import Meter

TOP = 5
"""Labels in a row."""


@dataclass(frozen=True)
class Answers:
    """What one method said of every picture."""

    name: str
    rows: Sequence[Row]
    """one for each picture"""
    measure: Measure
    """of the pictures that have an answer"""
    scored: tuple[int, ...]
    """their places"""
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    """for all pictures; None for rows that were made before"""

    @property
    def before(self) -> bool:
        """Whether an earlier run, or another program, made the rows."""
        return self.seconds is None

    @property
    def failed(self) -> int:
        """Pictures without an answer."""
        return len(self.rows) - len(self.scored)


def classified(
    data: Classes,
    classifier: Classifier,
    cache: EmbeddingCache,
    meter: Meter,
    batch_size: int = AUTO_BATCH,
) -> Answers:
    """Labels by one method.

    Raises:
        UserError: none of the pictures can be read.
    """
    seen = _scored(data.sources, data.labels, classifier, cache, meter, batch_size)
    measure = of_classes(
        seen.scores,
        np.array(data.classes)[seen.scored],
        probabilities=classifier.head == "softmax",
    )
    return seen.answers(classifier, measure)


def retrieved(
    data: Captioned,
    classifier: Classifier,
    cache: EmbeddingCache,
    meter: Meter,
    batch_size: int = AUTO_BATCH,
) -> Answers:
    """Every picture against every caption; the captions are the classifier's labels, in order.

    Raises:
        UserError: none of the pictures can be read.
    """
    seen = _scored(data.sources, classifier.labels, classifier, cache, meter, batch_size)
    image_of_text = np.repeat(np.arange(len(seen.rows)), list(map(len, data.references)))
    kept = np.isin(image_of_text, seen.scored)
    place = np.searchsorted(seen.scored, image_of_text[kept])
    return seen.answers(classifier, of_ranks(seen.scores[:, kept], place))


@dataclass(frozen=True)
class _Seen:
    """Rows of all pictures, and the scores of those that could be read."""

    rows: Sequence[Row]
    scored: list[int]
    scores: Float[np.ndarray, "n c"]
    seconds: float

    def answers(self, classifier: Classifier, measure: Measure) -> Answers:
        name = methods.name_of(classifier.method)
        told = settings(classifier)
        return Answers(name, self.rows, measure, tuple(self.scored), told, self.seconds)


def _scored(
    sources: Sequence[Source],
    labels: Sequence[str],
    classifier: Classifier,
    cache: EmbeddingCache,
    meter: Meter,
    batch_size: int,
) -> _Seen:
    before = meter.working
    used, name = canonical_names(classifier.encoder), methods.name_of(classifier.method)
    rows: list[Row] = []
    scores: list[np.ndarray] = []
    for batch in embedded(sources, classifier, cache, meter, batch_size):
        good = batch.readable
        best: dict[int, tuple[Label, ...]] = {}
        if good:
            with meter.stage("scoring"):
                views = None if batch.views is None else batch.views[good]
                found, cosines = classifier(batch.rows[good], views)
                best = dict(zip(good, _labels(labels, found, cosines), strict=True))
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


def classified_before(name: str, data: Classes, given: Sequence[Row]) -> Answers:
    """Labels that an earlier run chose, a row for each picture.

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
    measure = of_predictions(
        np.array([own[0] for own in labels]),
        np.array(classes),
        np.array([given[i]["labels"][0]["score"] for i in scored], dtype=np.float64),
        five,
        probabilities=all(given[i].get("scored") == "softmax" for i in scored),
    )
    return Answers(name, given, measure, tuple(scored), _told(given))


def captioned(
    name: str,
    data: Captioned,
    given: Iterable[Row],
    *,
    settings: Mapping[str, Any] | None = None,
    seconds: float | None = None,
    judge: Judge | None = None,
) -> Answers:
    """Captions, a row for each picture.

    Raises:
        UserError: no picture has a caption, or only one has.
    """
    rows = list(given)
    scored = _with_answer(rows)
    captions = [rows[i]["caption"] for i in scored]
    references = [data.references[i] for i in scored]
    more = judge([data.sources[i] for i in scored], captions, references) if judge else {}
    told = _told(rows) if settings is None else settings
    if judge:
        told = {**told, "judge": canonical_names(judge.encoder)}
    return Answers(
        name, rows, of_captions(captions, references, more), tuple(scored), told, seconds
    )


def _labels(
    names: Sequence[str], scores: torch.Tensor, cosines: torch.Tensor
) -> Iterator[tuple[Label, ...]]:
    """The best of each row."""
    values, index = scores.topk(min(TOP, scores.shape[1]), dim=1)
    for columns in zip(
        index.tolist(), values.tolist(), cosines.gather(1, index).tolist(), strict=True
    ):
        yield tuple(
            Label(names[i], score, cosine) for i, score, cosine in zip(*columns, strict=True)
        )


def _told(rows: Sequence[Row]) -> dict[str, Any]:
    """What rows say of how they were made."""
    for row in rows:
        if not row.get("error"):
            return {key: row[key] for key in ("models", "method") if key in row}
    return {}


def _with_answer(rows: Sequence[Row]) -> list[int]:
    """Places of the rows that are no failures."""
    scored = [i for i, row in enumerate(rows) if not row.get("error")]
    if not scored:
        raise UserError("none of the pictures has an answer, so there is nothing to measure")
    return scored
