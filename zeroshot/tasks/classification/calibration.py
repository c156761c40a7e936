"""Calibrated scores, and thresholds below which a classifier abstains.

Temperature: one number per model and method divides the logits. It carries over from one data set
and set of prompts to another (LeVine et al. 2023, "Enabling Calibration In The Zero-Shot Inference
of Large Vision-Language Models", arXiv:2303.12748). With labels it minimises the negative
log-likelihood (Guo et al. 2017, arXiv:1706.04599). Without labels it makes the mean confidence
equal to that of the model's own zero-shot softmax, as Frolic (arXiv:2410.19294) does between its
parts; the zero-shot scores themselves therefore keep their scale.

Abstention: conformal p-values of the confidence, from unlabelled images of the kind that is
expected (Vovk et al. 2005, "Algorithmic Learning in a Random World"):

    p = (1 + number of reference images at most as confident) / (1 + reference images)

To abstain if p <= alpha leaves out at most a fraction alpha of further images of that kind. Images
that resemble none of the labels have a lower confidence and are left out more often.
"""

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from zeroshot import metrics
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UnsuitableWarning, UserError
from zeroshot.inference.embedding import AUTO_BATCH
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.inputs.text_files import is_number, read_json
from zeroshot.output.atomic import whole
from zeroshot.tasks.classification.classifier import Classifier, embed_batches, settings
from zeroshot.tasks.classification.classify_options import SetRule
from zeroshot.tasks.classification.heads import Acceptance
from zeroshot.tasks.classification.label_sets import (
    PROMISES,
    RULES,
    LabelSets,
    SetReport,
    own_scores,
    report_sets,
)

LOG_RANGE = (math.log(1e-4), math.log(1e4))
"""Of temperatures."""
SCHEMA = "zeroshot.calibration/1"


@dataclass(frozen=True)
class Calibration:
    """The result of `zeroshot calibrate` for one model and method."""

    models: Mapping[str, str]
    method: str
    options: Mapping[str, Any]
    score: str
    """What a score is: softmax or sigmoid."""
    prompts: str
    """Fingerprint of the prompts that confidences and thresholds belong to."""
    temperature: float = 1.0
    confidences: tuple[float, ...] = ()
    """The reference confidences, ascending."""
    thresholds: Mapping[str, float | None] = field(default_factory=dict)
    """A label is accepted from this score on; None: never."""
    report: Mapping[str, float] = field(default_factory=dict)
    """Figures on the labelled images; empty if the temperature was not fitted to them."""
    sets: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """For each rule of label sets, the scores of the labelled images' own labels."""
    data: str = ""
    """Fingerprint of what the method learned from."""
    words: str = ""
    """Of the words, if the confidences are that an image shows one of the labels at all."""

    @property
    def fingerprint(self) -> str:
        """A hash of all fields."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:12]

    def check(self, classifier: Classifier) -> None:
        """UserError if it was made for another model or method."""
        now = settings(classifier)
        for key in ("models", "method", "options"):
            was = getattr(self, key)
            if was != now[key]:
                raise UserError(f"the calibration was made with {key} {was}, not {now[key]}")

    def write(self, path: Path, overwrite: bool = True) -> None:
        """Write it as JSON; raises as `output.atomic.whole`."""
        text = json.dumps({"schema": SCHEMA} | asdict(self), indent=1) + "\n"
        with whole(path, overwrite=overwrite) as file:
            file.write(text.encode())


def read_calibration(path: Path) -> Calibration:
    """A calibration that `Calibration.write` wrote.

    Raises:
        UserError: no such file, or another kind of file.
    """
    match read_json(path):
        case {
            "schema": "zeroshot.calibration/1",
            "models": dict(models),
            "method": str(method),
            "options": dict(options),
            "score": str(score),
            "prompts": str(prompts),
            "temperature": float() | int() as temperature,
            "confidences": list(confidences),
            "thresholds": dict(thresholds),
            "report": dict(report),
            **more,
        } if (
            temperature > 0
            and all(isinstance(name, str) for name in models.values())
            and all(map(is_number, [temperature, *confidences, *report.values()]))
            and all(bound is None or is_number(bound) for bound in thresholds.values())
        ):
            numbers = (float(temperature), tuple(map(float, confidences)), thresholds, report)
            sets, known = more.get("sets", {}), (models, method, options, score, prompts)
            if isinstance(sets, dict) and all(
                rule in RULES and isinstance(own, list) and all(map(is_number, own))
                for rule, own in sets.items()
            ):
                scores = {rule: tuple(map(float, own)) for rule, own in sets.items()}
                texts = (str(more.get(name, "")) for name in ("data", "words"))
                return Calibration(*known, *numbers, scores, *texts)
    raise UserError(f"'{path}' was not written by zeroshot calibrate ({SCHEMA})")


def calibrate(
    classifier: Classifier,
    sources: Sequence[Source],
    classes: Sequence[int] | None,
    cache: EmbeddingCache,
    meter: Meter,
    *,
    prompts: str,
    data: str = "",
    precision: float | None = None,
    batch_size: int = AUTO_BATCH,
) -> tuple[Calibration, list[dict[str, float]], dict[str, list[SetReport]]]:
    """Temperature, confidences and thresholds; with labels also reports before and after.

    And a report of the label sets of each rule, for each of `PROMISES`. If all labelled images are
    classified right, that is an UnsuitableWarning, and the temperature is that without labels.

    A sigmoid scores each label by itself, and keeps its scale.

    Args:
        classes: the class of each image, if they are known.
        prompts: fingerprint of the classifier's prompts.
        data: fingerprint of what the method learned from.
        precision: the precision that each threshold must reach; None for no thresholds.

    Raises:
        UserError: an image that cannot be read, or scores without a scale (`cosine`).
    """
    if classifier.head == "cosine":
        raise UserError("calibrate: cosines are no probabilities; take --score softmax or sigmoid")
    logits = _logits(classifier, sources, cache, meter, batch_size)
    labels = None if classes is None else torch.tensor(classes)
    sets: dict[str, Tensor] = {}
    if labels is not None and not classifier.transductive:
        sets = {rule: own_scores(logits.method, logits.ids, rule) for rule in RULES}
    temperature, fits = 1.0, labels is not None
    if classifier.head == "softmax":
        if labels is not None and _all_right(logits.method, labels):
            fits = False
            warnings.warn(
                f"all {len(labels)} labelled images are classified right, so that no temperature "
                "is the best one: it is that of unlabelled images, and scores stay as calibrated "
                "as without labels; give more labelled images, and hard ones. Label sets and "
                "thresholds need no temperature",
                UnsuitableWarning,
                stacklevel=2,
            )
        if labels is not None and fits:
            temperature = fit_temperature(logits.method, labels)
        else:
            confidence = float(logits.zero_shot.double().softmax(1).amax(1).mean())
            temperature = matching_temperature(logits.method, confidence)
    scores = replace(classifier, temperature=temperature).apply_head(logits.method)
    known = logits.known
    thresholds: dict[str, float | None] = {}
    if labels is not None and precision is not None:
        thresholds = {
            name: precision_threshold(scores[:, c], (labels == c).tolist(), precision)
            for c, name in enumerate(classifier.labels)
        }
    reports = []
    if labels is not None:
        reports = [report(logits.method / t, labels) for t in (1.0, temperature)]
    used = settings(classifier)
    calibration = Calibration(
        used["models"],
        used["method"],
        used["options"],
        classifier.head,
        prompts,
        temperature,
        tuple((scores.amax(1) if known is None else known).sort().values.tolist()),
        thresholds,
        reports[-1] if fits else {},
        {
            rule: tuple(s.gather(1, labels[:, None])[:, 0].tolist())
            for rule, s in sets.items()
            if labels is not None
        },
        data,
        "" if classifier.known is None else classifier.known.words,
    )
    on_sets = {
        rule: [report_sets(s, labels, promise) for promise in PROMISES]
        for rule, s in sets.items()
        if labels is not None
    }
    return calibration, reports, on_sets


@dataclass(frozen=True)
class Logits:
    """Logits of the method, and the zero-shot cosines at the model's own scale."""

    method: Float[Tensor, "n c"]
    zero_shot: Float[Tensor, "n c"]
    ids: Sequence[str]
    known: Float[Tensor, " n"] | None
    """The probability that an image shows one of the labels."""


def _logits(
    classifier: Classifier,
    sources: Sequence[Source],
    cache: EmbeddingCache,
    meter: Meter,
    batch_size: int,
) -> Logits:
    method, zero_shot, ids, known = [], [], list[str](), []
    batches = embed_batches(sources, classifier, cache, meter, batch_size)
    for batch in meter.track("images", batches, len(sources), lambda batch: len(batch.sources)):
        for source, failure in zip(batch.sources, batch.failures, strict=True):
            if failure is not None:
                raise UserError(f"'{source.path}': {failure.message}; remove it or replace it")
        method.append(classifier.logits(batch.embeddings, batch.views))
        _, cosines = classifier(batch.embeddings, batch.views)
        zero_shot.append(classifier.encoder.logit_scale * cosines)
        ids += (id or "" for id in batch.ids)
        if classifier.known is not None:
            known.append(classifier.known.probability(batch.embeddings))
    every = torch.cat(known) if known else None
    return Logits(torch.cat(method), torch.cat(zero_shot), ids, every)


def accepted(
    scores: Float[Tensor, "n c"],
    reference: Sequence[float],
    alpha: float,
    thresholds: Sequence[float | None],
) -> list[bool]:
    """Whether each image's best label has a p-value above alpha, and reaches its threshold."""
    best, classes = scores.max(1)
    likely = [p > alpha for p in p_values(best.tolist(), reference)]
    above = [
        thresholds[c] is not None and score >= (thresholds[c] or 0.0)
        for score, c in zip(best.tolist(), classes.tolist(), strict=True)
    ]
    return [a and b for a, b in zip(likely, above, strict=True)]


def abstention_rule(
    calibration: Calibration | None, abstain: float | None, prompts: str, classifier: Classifier
) -> Acceptance | None:
    """Which best labels are accepted, by conformal p-values and by the labels' thresholds.

    Raises:
        UserError: there is no calibration, or it belongs to other prompts or scores.
    """
    if calibration is None:
        if abstain is not None:
            raise UserError(
                "--abstain needs --calibration FILE.json: 'zeroshot calibrate' makes it from "
                "images of the kind you expect, labelled or not"
            )
        return None
    words = "" if classifier.known is None else classifier.known.words
    if abstain is not None and words != calibration.words:
        with_it = "with --none-of-these" if calibration.words else "without --none-of-these"
        raise UserError(
            f"--abstain: the calibration was made {with_it}"
            + (" of other words; " if words and calibration.words else "; ")
            + "calibrate and classify have to be asked alike"
        )
    if abstain is None and not calibration.thresholds:
        return None
    if classifier.known is not None:
        abstain = None
    _check_same(calibration, prompts, classifier)
    thresholds = [calibration.thresholds.get(label, 0.0) for label in classifier.labels]
    return lambda scores: accepted(scores, calibration.confidences, abstain or 0.0, thresholds)


def none_rule(
    calibration: Calibration | None, abstain: float | None
) -> Callable[[Float[Tensor, " n"]], list[bool]]:
    """From the probabilities that images show one of the labels to which are taken to show none.

    That is at most the fraction `abstain` of images like those of the calibration, and without one
    no image: the probability depends on the words, and has no threshold of its own.
    """
    if calibration is None or abstain is None:
        return lambda known: [False] * len(known)
    reference = calibration.confidences
    return lambda known: [p <= abstain for p in p_values(known.tolist(), reference)]


def label_sets(
    calibration: Calibration | None,
    coverage: float | None,
    rule: SetRule,
    prompts: str,
    data: str,
    classifier: Classifier,
) -> LabelSets | None:
    """The rule and threshold of `--sets`; None if they were not asked for.

    Raises:
        UserError: no calibration with labelled images, too few of them, or another one's.
    """
    if coverage is None:
        return None
    if calibration is None or not calibration.sets:
        raise UserError(
            "--sets needs --calibration FILE.json of labelled images ('zeroshot calibrate "
            "--truth'), and a method that scores each image by itself"
        )
    _check_same(calibration, prompts, classifier)
    if calibration.data != data:
        raise UserError(
            "--sets: the calibration was made with other --bank images, or without them; the "
            "promise holds for scores that are made the same way (calibrate takes --bank too, and "
            "no --shots, --prior or --views)"
        )
    return LabelSets.fit(rule, calibration.sets[rule], coverage)


def _check_same(calibration: Calibration, prompts: str, classifier: Classifier) -> None:
    """UserError for thresholds of other prompts or another kind of scores."""
    for what, was, now in (
        ("prompts", calibration.prompts, prompts),
        ("scores", calibration.score, classifier.head),
    ):
        if was != now:
            raise UserError(
                f"the calibration's thresholds belong to other {what}: {was}, not {now}"
            )


def _all_right(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> bool:
    return bool((logits.argmax(1) == labels).all())


def fit_temperature(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> float:
    """The temperature with the lowest negative log-likelihood, which is convex in its inverse.

    Raises:
        UserError: every image is classified correctly, so that the likelihood has no maximum.
    """
    from scipy.optimize import minimize_scalar

    logits = logits.double()
    if _all_right(logits, labels):
        raise UserError(
            f"all {len(labels)} labelled images are classified right, so that no temperature is "
            "the best one; give more of them, and hard ones"
        )

    def loss(log_temperature: float) -> float:
        log_probability = (logits / math.exp(log_temperature)).log_softmax(1)
        return float(-log_probability.gather(1, labels[:, None]).mean())

    lowest = minimize_scalar(loss, bounds=LOG_RANGE, method="bounded", options={"xatol": 1e-7})
    return math.exp(lowest.x)


def matching_temperature(logits: Float[Tensor, "n c"], confidence: float) -> float:
    """The temperature at which the mean confidence is `confidence`.

    Raises:
        UserError: there is no such temperature.
    """
    from scipy.optimize import brentq

    logits = logits.double()

    def excess(log_temperature: float) -> float:
        return float((logits / math.exp(log_temperature)).softmax(1).amax(1).mean()) - confidence

    if excess(LOG_RANGE[0]) < 0 or excess(LOG_RANGE[1]) > 0:
        raise UserError(f"no temperature brings the mean confidence to {confidence:.4f}")
    return math.exp(brentq(excess, *LOG_RANGE, xtol=1e-10))


def p_values(confidences: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Conformal p-values: the fraction of the reference, plus the image, at most as confident."""
    below = np.searchsorted(np.asarray(reference), np.asarray(confidences), side="right")
    values: list[float] = ((1 + below) / (1 + len(reference))).tolist()
    return values


def precision_threshold(
    scores: Float[Tensor, " n"], positive: Sequence[bool], precision: float
) -> float | None:
    """The lowest score from which on at least the fraction `precision` is positive; else None."""
    order = scores.argsort(descending=True, stable=True)
    right = torch.tensor(positive, dtype=torch.float64)[order].cumsum(0)
    share = right / torch.arange(1, len(order) + 1)
    ordered = scores[order]
    last_of_ties = torch.cat([ordered[1:] != ordered[:-1], torch.tensor([True])])
    good = ((share >= precision) & last_of_ties).nonzero()
    return float(ordered[good[-1, 0]]) if len(good) else None


def report(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> dict[str, float]:
    """Accuracy and calibration of the softmax of these logits."""
    probabilities, truth = logits.double().softmax(1).numpy(), labels.numpy()
    confidence, correct = probabilities.max(1), metrics.correct_at(probabilities, truth)
    figures = {
        "accuracy": metrics.accuracy(probabilities, truth),
        "confidence": float(confidence.mean()),
        "ece": metrics.ece(probabilities, truth),
        "adaptive_ece": metrics.adaptive_ece(probabilities, truth),
        "nll": metrics.nll(probabilities, truth),
        "auroc": metrics.auroc(confidence, correct),
        "aurc": metrics.aurc(confidence, correct),
    }
    return {name: value for name, value in figures.items() if not math.isnan(value)}
