"""Scores of labels to results: what a score is, and which labels are told."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.inference.meter import Meter
from zeroshot.inference.prefetch import Embedded
from zeroshot.results.result import ClassifyResult, Label, Reason

Head = Literal["softmax", "sigmoid", "cosine", "against"]
"""What a score is. `against` is a label's share of a softmax with what it is weighed against."""
Believe = Callable[[Tensor], Sequence[bool]]
"""Of scores `[n c]`: whether each row's best label stands."""

OF_LABELS = {"shots", "prior", "parents"}
"""Arrays that say something of each label."""


@runtime_checkable
class Labeller(Protocol):
    """What gives rows their scores: a method, or a model of clips."""

    @property
    def labels(self) -> Sequence[str]:
        """One name per class."""

    @property
    def head(self) -> Head:
        """What a score is."""

    @property
    def explained(self) -> int:
        """Anchors named for the best label."""

    @property
    def used(self) -> dict[str, str]:
        """Canonical names, for rows."""

    @property
    def name(self) -> str:
        """What rows call the method."""

    def __call__(
        self, rows: Float[Tensor, "n e"], views: Float[Tensor, "n v e"] | None = None
    ) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]:
        """Scores as the head defines them, and raw cosines."""

    def because(self, row: Float[Tensor, " e"], label: int, cosine: float) -> tuple[Reason, ...]:
        """The anchors that carried a label."""


def own_head(bias: float | None, multi: bool, against: bool) -> Head:
    """What scores are where nobody says: see `classifier`."""
    if against:
        return "against"
    if bias is not None:
        return "sigmoid"
    return "cosine" if multi else "softmax"


def headed(
    logits: Float[Tensor, "n a"], head: Head, bias: float | None, labels: int
) -> Float[Tensor, "n c"]:
    """Softmax or sigmoid, or each of the `labels` against all that follows them."""
    if head == "against":
        others = logits[:, labels:].logsumexp(1, keepdim=True)
        return (logits[:, :labels] - others).sigmoid()
    if head == "sigmoid":
        return (logits + (bias or 0.0)).sigmoid()
    return logits.softmax(1)


def see_to_multi(
    multi: bool,
    head: Head | None,
    against: Sequence[str],
    learned: Mapping[str, str] | None = None,
) -> None:
    """Labels that may all hold have no scores that sum to one.

    `learned` are the arrays that a method learns from, and the option each came by.

    Raises:
        UserError: naming the option.
    """
    if multi and head == "softmax":
        raise UserError(
            "--score softmax shares one among the labels, and with --multi several may hold: take "
            "sigmoid or cosine, or weigh each label with --against"
        )
    if not against:
        return
    if not multi or head is not None:
        raise UserError("--against weighs each label by itself: give --multi and no --score")
    more = sorted(flag for name, flag in (learned or {}).items() if name in OF_LABELS)
    if more:
        flags = " and ".join(more)
        raise UserError(f"--against is no label: leave {flags}, which say something of each label")


def label(
    batch: Embedded,
    classifier: Labeller,
    meter: Meter,
    top_k: int = 5,
    believe: Believe | None = None,
    least: float | None = None,
) -> Iterator[ClassifyResult]:
    """The results of one batch; of a transductive method, of all pictures there are.

    With `least`, a picture without a label that scores so much abstains.
    """
    used, good = classifier.used, batch.readable
    labels: dict[int, tuple[Label, ...]] = {}
    abstained: dict[int, bool] = {}
    because: dict[int, tuple[Reason, ...]] = {}
    with meter.stage("scoring"):
        if good:
            views = None if batch.views is None else batch.views[good]
            scores, cosines = classifier(batch.rows[good], views)
            best = best_labels(classifier.labels, scores, cosines, top_k)
            labels = dict(zip(good, best, strict=True))
            if least is not None:
                lowest = float(np.float32(least))  # as scores are, so that one can be named
                kept = {i: tuple(x for x in own if x.score >= lowest) for i, own in labels.items()}
                abstained = {i: not own for i, own in kept.items()}
                labels = kept
            if believe is not None:
                abstained = {i: not s for i, s in zip(good, believe(scores), strict=True)}
            if classifier.explained:
                because = {
                    i: classifier.because(batch.rows[i], int(top), best[n][0].cosine)
                    for n, (i, top) in enumerate(zip(good, scores.argmax(1), strict=True))
                    if labels[i]
                }
    for i, source in enumerate(batch.sources):
        yield ClassifyResult(
            source=source,
            id=batch.ids[i],
            error=batch.failures[i],
            models=used,
            method=classifier.name,
            labels=labels.get(i, ()),
            abstained=abstained.get(i, False),
            scored=classifier.head,
            because=because.get(i, ()),
        )


def best_labels(
    labels: Sequence[str],
    scores: Float[Tensor, "n c"],
    cosines: Float[Tensor, "n c"],
    top_k: int,
) -> list[tuple[Label, ...]]:
    """The `top_k` best labels of each row, best first."""
    values, index = scores.topk(min(top_k, len(labels)), dim=1)
    return [
        tuple(Label(labels[i], s, c) for i, s, c in zip(*columns, strict=True))
        for columns in zip(
            index.tolist(), values.tolist(), cosines.gather(1, index).tolist(), strict=True
        )
    ]
