"""Scores of labels to results: what a score is, and which labels a row has."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.inference.meter import Meter
from zeroshot.inference.prefetch import EmbeddingBatch
from zeroshot.results.result import AnchorContribution, ClassifyResult, Label

Head = Literal["softmax", "sigmoid", "cosine", "against"]
"""What a score is. `against` is a label's softmax probability against the negative prompts."""
UNCALIBRATED = "uncalibrated"
"""What rows call a softmax whose scale nobody has compared with what is right."""
Acceptance = Callable[[Tensor], Sequence[bool]]
"""From scores `[n c]`: whether each image's best label is accepted."""
Beside = Callable[[Tensor, Sequence[str]], Sequence[Mapping[str, Any]]]
"""From embeddings `[n e]` and ids: more fields of each result."""

LABEL_ARRAYS = {"shots", "prior", "parents"}
"""Arrays with an entry, or with images, for each label."""


@runtime_checkable
class Labeller(Protocol):
    """Scores labels: a method with its encoder, or a video model."""

    @property
    def labels(self) -> Sequence[str]:
        """One name per class."""

    @property
    def head(self) -> Head:
        """What a score is."""

    @property
    def scored(self) -> str:
        """The head, as rows name it: `uncalibrated` for a softmax that is no probability."""

    @property
    def num_explanations(self) -> int:
        """Number of anchors that explain the best label."""

    @property
    def used(self) -> dict[str, str]:
        """Canonical names, for rows."""

    @property
    def name(self) -> str:
        """The name of the method, for rows."""

    def __call__(
        self, embeddings: Float[Tensor, "n e"], views: Float[Tensor, "n v e"] | None = None, /
    ) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]:
        """Scores as the head defines them, and raw cosines."""

    def explain(
        self, image: Float[Tensor, " e"], label: int, cosine: float
    ) -> tuple[AnchorContribution, ...]:
        """The anchors that contributed most to a label."""


def default_head(bias: float | None, multi: bool, negatives: bool) -> Head:
    """What scores are by default: see `load_classifier`."""
    if negatives:
        return "against"
    if bias is not None:
        return "sigmoid"
    return "cosine" if multi else "softmax"


def apply_head(
    logits: Float[Tensor, "n a"], head: Head, bias: float | None, labels: int
) -> Float[Tensor, "n c"]:
    """Softmax or sigmoid; or, of each of the first `labels`, a softmax with all negatives."""
    if head == "against":
        others = logits[:, labels:].logsumexp(1, keepdim=True)
        return (logits[:, :labels] - others).sigmoid()
    if head == "sigmoid":
        return (logits + (bias or 0.0)).sigmoid()
    return logits.softmax(1)


def check_alone(labels: Sequence[str], head: Head) -> None:
    """UserError for a softmax over one label, which is 1 for every image."""
    if len(labels) == 1 and head == "softmax":
        raise UserError(
            f"'{labels[0]}' is the only label, so every image would have it with the score 1: add "
            "labels for what else may be there, or --multi for its cosine, with --against TEXT for "
            "its softmax probability against other texts"
        )


def check_multilabel(
    multi: bool,
    head: Head | None,
    negatives: Sequence[str],
    data: Mapping[str, str] | None = None,
) -> None:
    """UserError for options that do not fit labels that may all hold; it names the option.

    `data` are the arrays of the method, and the option that each comes from.
    """
    if multi and head == "softmax":
        raise UserError(
            "--score softmax sums to one over the labels, but with --multi several may hold: take "
            "sigmoid or cosine, or compare each label with --against"
        )
    if not negatives:
        return
    if not multi or head is not None:
        raise UserError("--against scores each label by itself: give --multi and no --score")
    more = sorted(flag for name, flag in (data or {}).items() if name in LABEL_ARRAYS)
    if more:
        raise UserError(
            f"--against gives prompts that are no labels: leave out {' and '.join(more)}, which "
            "would need them"
        )


def label(
    batch: EmbeddingBatch,
    classifier: Labeller,
    meter: Meter,
    top_k: int = 5,
    accept: Acceptance | None = None,
    threshold: float | None = None,
    beside: Beside | None = None,
) -> Iterator[ClassifyResult]:
    """The results of one batch, which has all images if the method is transductive.

    With a `threshold`, an image has the labels that reach it, and abstains if there are none.
    """
    used, good = classifier.used, batch.readable
    labels: dict[int, tuple[Label, ...]] = {}
    abstained: dict[int, bool] = {}
    explanations: dict[int, tuple[AnchorContribution, ...]] = {}
    more: dict[int, Mapping[str, Any]] = {}
    with meter.stage("scoring"), meter.phase("scoring", counts=False):
        if good:
            views = None if batch.views is None else batch.views[good]
            scores, cosines = classifier(batch.embeddings[good], views)
            best = best_labels(classifier.labels, scores, cosines, top_k)
            labels = dict(zip(good, best, strict=True))
            if threshold is not None:
                threshold = float(np.float32(threshold))  # in the precision of the scores
                labels = {
                    i: tuple(x for x in own if x.score >= threshold) for i, own in labels.items()
                }
                abstained = {i: not own for i, own in labels.items()}
            if accept is not None:
                abstained = {i: not ok for i, ok in zip(good, accept(scores), strict=True)}
            if beside is not None:
                ids = [batch.ids[i] or "" for i in good]
                more = dict(zip(good, beside(batch.embeddings[good], ids), strict=True))
            if classifier.num_explanations:
                explanations = {
                    i: classifier.explain(batch.embeddings[i], int(top), best[n][0].cosine)
                    for n, (i, top) in enumerate(zip(good, scores.argmax(1), strict=True))
                    if labels[i]
                }
    for i, source in enumerate(batch.sources):
        own = dict(more.get(i, {}))
        own["abstained"] = abstained.get(i, False) or own.get("abstained", False)
        yield ClassifyResult(
            source=source,
            id=batch.ids[i],
            error=batch.failures[i],
            models=used,
            method=classifier.name,
            labels=labels.get(i, ()),
            scored=classifier.scored,
            explanation=explanations.get(i, ()),
            **own,
        )


def best_labels(
    labels: Sequence[str],
    scores: Float[Tensor, "n c"],
    cosines: Float[Tensor, "n c"],
    top_k: int,
) -> list[tuple[Label, ...]]:
    """The `top_k` best labels of each image, best first."""
    values, index = scores.topk(min(top_k, len(labels)), dim=1)
    return [
        tuple(Label(labels[i], s, c) for i, s, c in zip(*columns, strict=True))
        for columns in zip(
            index.tolist(), values.tolist(), cosines.gather(1, index).tolist(), strict=True
        )
    ]
