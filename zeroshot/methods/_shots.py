"""Few-shot methods: fields and `fit`, class means, and the choice of hyper-parameters.

Classes may have different numbers of shots, or none. Hyper-parameters come from the authors' tables
or from the shots alone (`choose`), never from the images that are scored.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Generic, Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods._door import Method
from zeroshot.methods._protocols import Output
from zeroshot.methods._registry import name_of
from zeroshot.ops import normalize

Tune = Literal["published", "loo"]
"""Where a hyper-parameter comes from: the authors' value, or leave-one-out on the shots."""

Candidate = TypeVar("Candidate")
Learned = TypeVar("Learned")
Self = TypeVar("Self", bound="FewShot")


class Memo(Generic[Learned]):
    """Caches the last result for the same tensors: a method that scores in batches learns once."""

    def __init__(self) -> None:
        self._given: tuple[Tensor | float | None, ...] = ()
        self._versions: tuple[int, ...] = ()
        self._result: Learned | None = None

    def __call__(self, learn: Callable[[], Learned], *given: Tensor | float | None) -> Learned:
        """`learn()`, unless the previous call had the same tensors, unchanged."""
        versions = tuple(_version(x) for x in given)
        same = len(given) == len(self._given) and all(
            a is b if isinstance(a, Tensor) else a == b
            for a, b in zip(given, self._given, strict=True)
        )
        if self._result is None or not same or versions != self._versions:
            self._result = learn()
            self._given, self._versions = given, versions
        return self._result


def _version(given: Tensor | float | None) -> int:
    """How often a tensor has been written to; those of inference mode do not count it."""
    return given._version if isinstance(given, Tensor) and not given.is_inference() else 0


@dataclass(frozen=True)
class FewShot(Method):
    """A method that learns from shots: labelled images, some per class."""

    shots_: Float[Tensor, "m d"] | None = field(
        default=None, kw_only=True, repr=False, compare=False
    )
    shot_labels_: Int[Tensor, " m"] | None = field(
        default=None, kw_only=True, repr=False, compare=False
    )

    transductive: ClassVar[bool] = False

    @property
    def output(self) -> Output:
        """Zero-shot logits and a weighted score of the shots."""
        return "logit"

    def fit(self: Self, shots: Float[Tensor, "m d"], shot_labels: Int[Tensor, " m"]) -> Self:
        """A copy with these shots; classes may have different numbers of them, or none."""
        check_labels(shot_labels, int(shot_labels.max()) + 1)
        return replace(self, shots_=shots, shot_labels_=shot_labels)

    def _labelled(self, classes: int) -> tuple[Float[Tensor, "m d"], Int[Tensor, " m"]]:
        """The shots and their labels, all of them among `classes`."""
        if self.shots_ is None or self.shot_labels_ is None:
            raise UserError(
                f"{name_of(self)} needs the arrays shots and shot_labels; call fit with them"
            )
        check_labels(self.shot_labels_, classes)
        return self.shots_, self.shot_labels_


@dataclass(frozen=True)
class LinearFewShot(FewShot):
    """A few-shot method that is a linear classifier, learned once for the same texts."""

    memo_: Memo[tuple[Tensor, Tensor]] = field(
        default_factory=Memo, init=False, repr=False, compare=False
    )

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> Float[Tensor, "n c"]:
        """Logits: one matrix product."""
        weight, bias = self.memo_(
            lambda: self._learn(texts, text_mask, logit_scale), texts, text_mask, logit_scale
        )
        return images @ weight.T + bias

    def _learn(
        self, texts: Tensor, text_mask: Tensor | None, logit_scale: float
    ) -> tuple[Float[Tensor, "c d"], Float[Tensor, " c"]]:
        """Weight and bias of the classifier."""
        raise NotImplementedError


def check_labels(labels: Int[Tensor, " m"], classes: int) -> None:
    """Every label is a class.

    Raises:
        UserError: some label is not, or there are none.
    """
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= classes:
        span = f"{int(labels.min())} to {int(labels.max())}" if len(labels) else "none"
        raise UserError(
            f"shot_labels: {span}, but there are {classes} classes, numbered from 0; "
            "row i of the texts is class i"
        )


def one_hot(labels: Int[Tensor, " m"], classes: int) -> Bool[Tensor, "m c"]:
    """Row i is true at `labels[i]` alone.

    Raises:
        UserError: a label that is no class.
    """
    check_labels(labels, classes)
    return labels[:, None] == torch.arange(classes, device=labels.device)


def class_sums(
    x: Float[Tensor, "m d"], labels: Int[Tensor, " m"], classes: int
) -> Float[Tensor, "c d"]:
    """Sum of the rows of `x` in each class."""
    return x.new_zeros(classes, x.shape[1]).index_add_(0, labels, x)


def class_means(
    x: Float[Tensor, "m d"], labels: Int[Tensor, " m"], classes: int
) -> tuple[Float[Tensor, "c d"], Int[Tensor, " c"]]:
    """Mean of the rows of `x` in each class (zero for an empty class) and their number."""
    count = torch.bincount(labels, minlength=classes)
    total = class_sums(x, labels, classes)
    return total / count.clamp_min(1)[:, None], count


def complete_means(
    means: Float[Tensor, "c d"], count: Int[Tensor, " c"], prototypes: Float[Tensor, "c d"]
) -> Float[Tensor, "c d"]:
    """`means`, with a substitute for each class without shots.

    It is the class's text prototype plus the modality gap, which is the mean difference between
    the shots' means and the prototypes of the other classes.
    """
    has_shots = count > 0
    gap = (means - prototypes)[has_shots].mean(0)
    return torch.where(has_shots[:, None], means, normalize(prototypes + gap))


def complete_shots(
    shots: Float[Tensor, "m d"], labels: Int[Tensor, " m"], prototypes: Float[Tensor, "c d"]
) -> tuple[Float[Tensor, "s d"], Int[Tensor, " s"]]:
    """The shots, with one substitute (see `complete_means`) for each class that has none."""
    means, count = class_means(shots, labels, len(prototypes))
    empty = (count == 0).nonzero()[:, 0]
    if len(empty) == 0:
        return shots, labels
    substitutes = complete_means(means, count, prototypes)[empty]
    return torch.cat([shots, substitutes]), torch.cat([labels, empty])


def published(table: Mapping[int, Candidate], labels: Int[Tensor, " m"]) -> Candidate:
    """The table's entry for this number of shots per class, or for the nearest by ratio."""
    per_class = len(labels) / int((torch.bincount(labels) > 0).sum())
    return table[min(table, key=lambda shots: abs(math.log(shots / per_class)))]


def splits(
    labels: Int[Tensor, " m"], folds: int = 5
) -> Iterator[tuple[Int[Tensor, " r"], Int[Tensor, " h"]]]:
    """Indices of the shots to learn from and of the held-out shots, fold by fold.

    With up to `folds` shots per class a fold holds out one of each class, with more several. The
    only shot of a class is never held out, so one shot per class gives no folds.
    """
    one = one_hot(labels, int(labels.max()) + 1)
    rank = (one.cumsum(0) * one).sum(1) - 1  # of each shot within its class, from 0
    size = one.sum(0)
    only = (one & (size == 1)).any(1)
    for fold in range(min(folds, int(size.max()))):
        test = (rank % folds == fold) & ~only
        if test.any():
            yield (~test).nonzero()[:, 0], test.nonzero()[:, 0]


def choose(
    labels: Int[Tensor, " m"],
    candidates: Sequence[Candidate],
    learn: Callable[
        [Int[Tensor, " r"], Int[Tensor, " h"]], Callable[[Candidate], Float[Tensor, "h c"]]
    ],
    default: Candidate,
) -> Candidate:
    """The candidate that classifies most held-out shots correctly, the first of equals.

    `learn(train, test)` gives the scores of the held-out shots as a function of the candidate.
    If no shot can be held out the choice is `default`.
    """
    correct = [0] * len(candidates)
    for train, test in splits(labels):
        scores = learn(train, test)
        for i, candidate in enumerate(candidates):
            correct[i] += int((scores(candidate).argmax(1) == labels[test]).sum())
    return candidates[correct.index(max(correct))] if any(correct) else default
