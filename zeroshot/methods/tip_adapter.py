"""Tip-Adapter: similarity to the shots of a class, added to the zero-shot logits.

Zhang et al. 2022, "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV,
arXiv:2207.09519; authors' code: github.com/gaopengcuhk/Tip-Adapter (no licence; written from the
equations).

    L_c = logit_scale x . w_c + alpha sum_i [y_i = c] exp(-beta (1 - x . s_i))

| here | paper |
|---|---|
| shots | cache keys F_train |
| alpha, beta | residual ratio alpha, sharpness beta |

Departures from the authors' code. Their `main_imagenet.py` searches `alpha` and `beta` on the
labels of the test set; here they are what that search starts from, or chosen by leaving out shots
(`tune=loo`). Where classes have different numbers of shots each shot of class c counts
`mean number / number of c`, so that no class gains by its size; a class without any has one
stand-in (see `gda`). The paper's keys are means of ten augmented copies: pass such means as shots.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods._protocols import Output
from zeroshot.methods._shots import Memo, Tune, check, choose, class_sums, completed
from zeroshot.methods.ensemble import Ensemble

BLOCK = 1024
"""Images whose similarities to all shots are held at a time."""

GRID = tuple((0.1 + 6.9 * i / 20, 0.1 + 2.9 * j / 10) for i, j in product(range(20), range(10)))
"""The authors' beta and alpha, a step of their 200 x 20 being too fine for left-out shots."""


@dataclass(frozen=True)
class TipAdapter:
    """Logits of image rows; `fit` gives it the shots."""

    alpha: float = 1.17
    """weight of the shots"""
    beta: float = 1.0
    """how fast a shot's influence falls with its distance"""
    tune: Tune = "published"
    """alpha and beta as above, or those that get most left-out shots right"""

    shots_: Float[Tensor, "m d"] | None = field(default=None, repr=False, compare=False)
    shot_labels_: Int[Tensor, " m"] | None = field(default=None, repr=False, compare=False)
    memo_: Memo[tuple[float, float]] = field(
        default_factory=Memo, init=False, repr=False, compare=False
    )

    transductive: ClassVar[bool] = False

    @property
    def output(self) -> Output:
        """Zero-shot logits and weighted similarities."""
        return "logit"

    def fit(self, shots: Float[Tensor, "m d"], shot_labels: Int[Tensor, " m"]) -> "TipAdapter":
        """A copy that knows these shots; classes may have different numbers of them, or none."""
        check(shot_labels, int(shot_labels.max()) + 1)
        return replace(self, shots_=shots, shot_labels_=shot_labels)

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> Float[Tensor, "n c"]:
        """Logits."""
        if self.shots_ is None or self.shot_labels_ is None:
            raise UserError(
                "tip_adapter needs the arrays shots and shot_labels; call fit with them"
            )
        check(self.shot_labels_, len(texts))
        prototypes = Ensemble().classifier(texts, text_mask)
        beta, alpha = self.memo_(
            lambda: self._chosen(prototypes, logit_scale), texts, text_mask, logit_scale
        )
        shots, labels = completed(self.shots_, self.shot_labels_, prototypes)
        parts = [
            logit_scale * rows @ prototypes.T
            + alpha * cached(shots @ rows.T, labels, len(texts), beta)
            for rows in torch.split(images, BLOCK)
        ]
        return torch.cat(parts)

    def _chosen(self, prototypes: Float[Tensor, "c d"], scale: float) -> tuple[float, float]:
        if self.tune == "published":
            return self.beta, self.alpha
        assert self.shots_ is not None
        assert self.shot_labels_ is not None
        shots, labels = self.shots_, self.shot_labels_

        def learn(train: Tensor, held: Tensor) -> Callable[[tuple[float, float]], Tensor]:
            keys, owner = completed(shots[train], labels[train], prototypes)
            similarity = keys @ shots[held].T
            zero_shot = scale * shots[held] @ prototypes.T

            @lru_cache(maxsize=1)  # candidates come with one beta after the other
            def of_beta(beta: float) -> Tensor:
                return cached(similarity, owner, len(prototypes), beta)

            return lambda candidate: zero_shot + candidate[1] * of_beta(candidate[0])

        return choose(labels, GRID, learn, (self.beta, self.alpha))


def cached(
    similarity: Float[Tensor, "m n"], labels: Int[Tensor, " m"], classes: int, beta: float
) -> Float[Tensor, "n c"]:
    """`exp(-beta (1 - similarity))` summed over each class's shots, classes of equal weight."""
    return gathered((similarity - 1).mul_(beta).exp_(), labels, classes)


def gathered(
    affinity: Float[Tensor, "m n"], labels: Int[Tensor, " m"], classes: int
) -> Float[Tensor, "n c"]:
    """Rows summed by class, as if every class had the mean number of shots.

    Shots are rows, so that whole rows are added: seven times as fast as adding columns.
    """
    total = class_sums(affinity, labels, classes).T
    count = torch.bincount(labels, minlength=classes)
    if (count == count[0]).all():
        return total
    return total * (len(labels) / classes / count.to(total.dtype))
