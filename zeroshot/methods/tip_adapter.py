"""Tip-Adapter: similarity to the shots of a class, added to the zero-shot logits.

Zhang et al. 2022, "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV,
arXiv:2207.09519; authors' code: github.com/gaopengcuhk/Tip-Adapter (no licence; written from the
equations).

    L_c = logit_scale x . w_c + alpha sum_i [y_i = c] exp(-beta (1 - x . s_i))     (1)

| here | paper |
|---|---|
| shots | cache keys F_train |
| alpha, beta | residual ratio alpha, sharpness beta |

Departures from the authors' code. Their `main_imagenet.py` searches `alpha` and `beta` on the
labels of the test set; here the defaults are the start of that search, and `tune=loo` chooses by
leave-one-out on the shots. If classes have different numbers of shots, each shot of class c counts
`mean number / number of c`, so that no class gains by its size. A class without shots has one
substitute (see `gda`). The paper's keys are means of ten augmented copies: pass such means as
shots.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zeroshot.methods._shots import FewShot, Memo, Tune, choose, class_sums, complete_shots
from zeroshot.methods.ensemble import Ensemble

BLOCK = 1024
"""Images whose similarities to all shots are computed at a time."""

GRID = tuple((0.1 + 6.9 * i / 20, 0.1 + 2.9 * j / 10) for i, j in product(range(20), range(10)))
"""The authors' range of beta and alpha; their 200 x 20 steps are too fine for few shots."""


@dataclass(frozen=True)
class TipAdapter(FewShot):
    """Logits; `fit` gives it the shots."""

    alpha: float = 1.17
    """weight of the shots"""
    beta: float = 1.0
    """how fast a shot's influence falls with its distance"""
    tune: Tune = "published"
    """alpha and beta as above, or chosen by leave-one-out on the shots"""

    memo_: Memo[tuple[float, float]] = field(
        default_factory=Memo, init=False, repr=False, compare=False
    )

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> Float[Tensor, "n c"]:
        """Logits."""
        shots, labels = self._labelled(len(texts))
        prototypes = Ensemble().classifier(texts, text_mask)
        beta, alpha = self.memo_(
            lambda: self._tune(shots, labels, prototypes, logit_scale),
            *(texts, text_mask, logit_scale),
        )
        keys, owner = complete_shots(shots, labels, prototypes)
        parts = [
            logit_scale * x @ prototypes.T
            + alpha * cache_scores(keys @ x.T, owner, len(texts), beta)  # (1)
            for x in torch.split(images, BLOCK)
        ]
        return torch.cat(parts)

    def _tune(
        self,
        shots: Float[Tensor, "m d"],
        labels: Int[Tensor, " m"],
        prototypes: Float[Tensor, "c d"],
        scale: float,
    ) -> tuple[float, float]:
        """The authors' or the best beta and alpha."""
        if self.tune == "published":
            return self.beta, self.alpha

        def learn(train: Tensor, test: Tensor) -> Callable[[tuple[float, float]], Tensor]:
            keys, owner = complete_shots(shots[train], labels[train], prototypes)
            similarity = keys @ shots[test].T
            zero_shot = scale * shots[test] @ prototypes.T

            @lru_cache(maxsize=1)  # candidates come with one beta after the other
            def cache(beta: float) -> Tensor:
                return cache_scores(similarity, owner, len(prototypes), beta)

            return lambda candidate: zero_shot + candidate[1] * cache(candidate[0])

        return choose(labels, GRID, learn, (self.beta, self.alpha))


def cache_scores(
    similarity: Float[Tensor, "m n"], labels: Int[Tensor, " m"], classes: int, beta: float
) -> Float[Tensor, "n c"]:
    """`exp(-beta (1 - similarity))` summed over each class's shots, classes of equal weight."""
    return sum_by_class((similarity - 1).mul_(beta).exp_(), labels, classes)


def sum_by_class(
    affinity: Float[Tensor, "m n"], labels: Int[Tensor, " m"], classes: int
) -> Float[Tensor, "n c"]:
    """Rows summed by class, as if every class had the mean number of shots.

    Shots are rows, because adding rows is seven times as fast as adding columns.
    """
    total = class_sums(affinity, labels, classes).T
    count = torch.bincount(labels, minlength=classes)
    if (count == count[0]).all():
        return total
    return total * (len(labels) / classes / count.to(total.dtype))
