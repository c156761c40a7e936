"""Shots: what the few-shot methods share.

Classes may have different numbers of shots, or none. Hyper-parameters come from the authors' tables
or from the shots alone (`choose`), never from the pictures that are scored.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.ops import normalize

Tune = Literal["published", "loo"]
"""Where a hyper-parameter comes from: the authors' value, or shots left out in turn."""

Candidate = TypeVar("Candidate")
Learned = TypeVar("Learned")


class Memo(Generic[Learned]):
    """The last answer, for the same tensors again: a method that scores in batches learns once."""

    def __init__(self) -> None:
        self._given: tuple[Tensor | float | None, ...] = ()
        self._versions: tuple[int, ...] = ()
        self._answer: Learned | None = None

    def __call__(self, learn: Callable[[], Learned], *given: Tensor | float | None) -> Learned:
        """`learn()`, unless the call before was given these very tensors, unchanged."""
        versions = tuple(_version(x) for x in given)
        same = len(given) == len(self._given) and all(
            a is b if isinstance(a, Tensor) else a == b
            for a, b in zip(given, self._given, strict=True)
        )
        if self._answer is None or not same or versions != self._versions:
            self._answer = learn()
            self._given, self._versions = given, versions
        return self._answer


def _version(given: Tensor | float | None) -> int:
    """How often a tensor has been written to; those of inference mode do not count it."""
    return given._version if isinstance(given, Tensor) and not given.is_inference() else 0


def check(labels: Int[Tensor, " m"], classes: int) -> None:
    """Every label is a class.

    Raises:
        UserError: it is not, or there are none.
    """
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= classes:
        found = f"{int(labels.min())} to {int(labels.max())}" if len(labels) else "none"
        raise UserError(
            f"shot_labels: {found}, but there are {classes} classes, numbered from 0; "
            "row i of the texts is class i"
        )


def one_hot(labels: Int[Tensor, " m"], classes: int) -> Bool[Tensor, "m c"]:
    """Row i is true at `labels[i]` alone.

    Raises:
        UserError: a label that is no class.
    """
    check(labels, classes)
    return labels[:, None] == torch.arange(classes, device=labels.device)


def class_sums(
    rows: Float[Tensor, "m d"], labels: Int[Tensor, " m"], classes: int
) -> Float[Tensor, "c d"]:
    """Sum of the rows of each class."""
    return rows.new_zeros(classes, rows.shape[1]).index_add_(0, labels, rows)


def class_means(
    rows: Float[Tensor, "m d"], labels: Int[Tensor, " m"], classes: int
) -> tuple[Float[Tensor, "c d"], Int[Tensor, " c"]]:
    """Mean of the rows of each class (zero where there is none) and how many there are."""
    count = torch.bincount(labels, minlength=classes)
    total = class_sums(rows, labels, classes)
    return total / count.clamp_min(1)[:, None], count


def stand_ins(
    means: Float[Tensor, "c d"], count: Int[Tensor, " c"], prototypes: Float[Tensor, "c d"]
) -> Float[Tensor, "c d"]:
    """`means`, with a stand-in where a class has no shots.

    It is the class's text row, moved by the mean way from the text row to the shots of the other
    classes: between texts and pictures there is a gap, and the text row itself would lie on the
    wrong side of it.
    """
    known = count > 0
    gap = (means - prototypes)[known].mean(0)
    return torch.where(known[:, None], means, normalize(prototypes + gap))


def completed(
    shots: Float[Tensor, "m d"], labels: Int[Tensor, " m"], prototypes: Float[Tensor, "c d"]
) -> tuple[Float[Tensor, "s d"], Int[Tensor, " s"]]:
    """The shots, with one stand-in (see `stand_ins`) for each class that has none."""
    means, count = class_means(shots, labels, len(prototypes))
    none = (count == 0).nonzero()[:, 0]
    if len(none) == 0:
        return shots, labels
    extra = stand_ins(means, count, prototypes)[none]
    return torch.cat([shots, extra]), torch.cat([labels, none])


def published(table: Mapping[int, Candidate], labels: Int[Tensor, " m"]) -> Candidate:
    """The entry for these many shots per class; for a number between, the nearer by ratio."""
    per_class = len(labels) / int((torch.bincount(labels) > 0).sum())
    return table[min(table, key=lambda shots: abs(math.log(shots / per_class)))]


def left_out(
    labels: Int[Tensor, " m"], folds: int = 5
) -> Iterator[tuple[Int[Tensor, " r"], Int[Tensor, " h"]]]:
    """Shots to learn from and shots held out: one of each class, in turn.

    Up to `folds` shots per class this leaves out each shot once; beyond, a fold holds out several.
    A class's only shot is never held out, so nothing comes out of one shot per class.
    """
    one = one_hot(labels, int(labels.max()) + 1)
    order = (one.cumsum(0) * one).sum(1) - 1  # the how-manieth of its class, from 0
    size = one.sum(0)
    alone = (one & (size == 1)).any(1)
    for fold in range(min(folds, int(size.max()))):
        held = (order % folds == fold) & ~alone
        if held.any():
            yield (~held).nonzero()[:, 0], held.nonzero()[:, 0]


def choose(
    labels: Int[Tensor, " m"],
    candidates: Sequence[Candidate],
    learn: Callable[
        [Int[Tensor, " r"], Int[Tensor, " h"]], Callable[[Candidate], Float[Tensor, "h c"]]
    ],
    default: Candidate,
) -> Candidate:
    """The candidate that gets most held-out shots right, the first of equals.

    `learn(train, held)` gives the scores of the held-out shots as a function of the candidate.
    Where no shot can be held out it is the `default`.
    """
    right = [0] * len(candidates)
    for train, held in left_out(labels):
        scores = learn(train, held)
        for i, candidate in enumerate(candidates):
            right[i] += int((scores(candidate).argmax(1) == labels[held]).sum())
    return candidates[right.index(max(right))] if any(right) else default
