"""APE: Tip-Adapter on the channels that tell classes apart.

Zhu et al. 2023, "Not All Features Matter: Enhancing Few-shot CLIP with Adaptive Prior Refinement",
ICCV, arXiv:2304.01195; authors' code: github.com/yangyangyang127/APE (no licence; written from the
equations).

    keep the feat_num channels with the largest  -w sim_d + (1 - w) var_c(w_cd)                 (1)
    L_c = logit_scale x . w_c + alpha sum_i [y_i = c] v_i exp(-beta (1 - x' . s'_i))            (2)
    v_i = exp(gamma log2 1 / p_i)         p_i = softmax_c(s'_i . w'_c) of the shot's own class  (3)

`'` is an embedding restricted to these channels, at unit length. `sim_d` is the mean product of
channel d over all pairs of embeddings (a class's text and shots) of different classes. With `S_c`
the mean embedding of a class it is `((sum_c S_c)^2 - sum_c S_c^2) / (C (C - 1))`; theirs is a loop
over pairs (2.9e8 steps for 1000 classes of 16 shots).

| here | paper |
|---|---|
| w | lambda |
| feat_num | Q |
| alpha, beta, gamma | alpha, beta, gamma |

Departures from the authors' code. They choose `alpha`, `beta` and `gamma` on a validation set (for
ImageNet, the test set); here the defaults are the start of their search, and `tune=loo` chooses by
leave-one-out on the shots. Theirs needs equally many shots per class, sorted by class; see
`tip_adapter` for classes of different size or without shots. By default half of the channels are
kept, which is near their 500 of 1024.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zeroshot.methods._shots import FewShot, Memo, Tune, choose, class_sums, complete_shots
from zeroshot.methods.ensemble import Ensemble
from zeroshot.methods.tip_adapter import BLOCK, sum_by_class
from zeroshot.ops import normalize

GRID = tuple(
    (0.1 + 11.9 * i / 8, 0.1 + 4.9 * j / 6, 0.1 + 0.9 * k / 5)
    for i, j, k in product(range(8), range(6), range(5))
)
"""The authors' beta, alpha and gamma."""


@dataclass(frozen=True)
class RefinedShots:
    """The selected channels, the shots restricted to them, and how much each shot counts."""

    channels: Int[Tensor, " q"]
    shots: Float[Tensor, "m q"]
    labels: Int[Tensor, " m"]
    surprise: Float[Tensor, " m"]
    """log2 1 / p of the shot's own class"""

    def scores(
        self, images: Float[Tensor, "n d"], classes: int, beta: float, gamma: float
    ) -> Float[Tensor, "n c"]:
        """The sum over the shots in (2)."""
        affinity = (self.shots @ normalize(images[:, self.channels]).T).sub_(1).mul_(beta)
        weighted = affinity.add_(gamma * self.surprise[:, None]).exp_()  # (3), [m, n]
        return sum_by_class(weighted, self.labels, classes)


@dataclass(frozen=True)
class APE(FewShot):
    """Logits; `fit` gives it the shots."""

    w: float = 0.7
    """weight of the similarity between classes against the variance of the texts"""
    feat_num: int = 0
    """channels to keep; 0: half"""
    alpha: float = 1.2
    """weight of the shots"""
    beta: float = 1.0
    """how fast a shot's influence falls with its distance"""
    gamma: float = 0.2
    """how much more a shot counts that the texts misclassify"""
    tune: Tune = "published"
    """alpha, beta and gamma as above, or chosen by leave-one-out on the shots"""

    memo_: Memo[tuple[RefinedShots, tuple[float, float, float]]] = field(
        default_factory=Memo, init=False, repr=False, compare=False
    )

    def cache(
        self,
        shots: Float[Tensor, "m d"],
        labels: Int[Tensor, " m"],
        prototypes: Float[Tensor, "c d"],
    ) -> RefinedShots:
        """The channels, and the shots restricted to them."""
        channels = self.channels(shots, labels, prototypes)
        keys, owner = complete_shots(shots, labels, prototypes)
        keys, texts = normalize(keys[:, channels]), normalize(prototypes[:, channels])
        p = (keys @ texts.T).softmax(1).gather(1, owner[:, None])[:, 0]
        return RefinedShots(channels, keys, owner, torch.log2((1 + 1e-6) / (p + 1e-6)))

    def channels(
        self,
        shots: Float[Tensor, "m d"],
        labels: Int[Tensor, " m"],
        prototypes: Float[Tensor, "c d"],
    ) -> Int[Tensor, " q"]:
        """(1): the channels to keep, best first."""
        score = (1 - self.w) * prototypes.var(0) - self.w * similarity(shots, labels, prototypes)
        return score.topk(min(self.feat_num or (len(score) + 1) // 2, len(score))).indices

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
        cache, (beta, alpha, gamma) = self.memo_(
            lambda: self._learn(shots, labels, prototypes, logit_scale),
            *(texts, text_mask, logit_scale),
        )
        parts = [
            logit_scale * x @ prototypes.T + alpha * cache.scores(x, len(texts), beta, gamma)  # (2)
            for x in torch.split(images, BLOCK)
        ]
        return torch.cat(parts)

    def _learn(
        self,
        shots: Float[Tensor, "m d"],
        labels: Int[Tensor, " m"],
        prototypes: Float[Tensor, "c d"],
        scale: float,
    ) -> tuple[RefinedShots, tuple[float, float, float]]:
        """The cache, and beta, alpha and gamma."""
        cache = self.cache(shots, labels, prototypes)
        default = self.beta, self.alpha, self.gamma
        if self.tune == "published":
            return cache, default

        def learn(train: Tensor, test: Tensor) -> Callable[[tuple[float, float, float]], Tensor]:
            rest = self.cache(shots[train], labels[train], prototypes)
            zero_shot = scale * shots[test] @ prototypes.T

            def scores(candidate: tuple[float, float, float]) -> Tensor:
                beta, alpha, gamma = candidate
                return zero_shot + alpha * rest.scores(shots[test], len(prototypes), beta, gamma)

            return scores

        return cache, choose(labels, GRID, learn, default)


def similarity(
    shots: Float[Tensor, "m d"], labels: Int[Tensor, " m"], prototypes: Float[Tensor, "c d"]
) -> Float[Tensor, " d"]:
    """`sim`: mean product of each channel over pairs of embeddings of different classes."""
    classes = len(prototypes)
    count = 1 + torch.bincount(labels, minlength=classes)
    mean = (prototypes + class_sums(shots, labels, classes)) / count[:, None]
    return (mean.sum(0) ** 2 - (mean**2).sum(0)) / max(1, classes * (classes - 1))
