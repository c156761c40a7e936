"""APE: Tip-Adapter on the channels that tell classes apart.

Zhu et al. 2023, "Not All Features Matter: Enhancing Few-shot CLIP with Adaptive Prior Refinement",
ICCV, arXiv:2304.01195; authors' code: github.com/yangyangyang127/APE (no licence; written from the
equations).

    keep the feat_num channels with the largest  -w sim_d + (1 - w) var_c(w_cd)
    L_c = logit_scale x . w_c + alpha sum_i [y_i = c] v_i exp(-beta (1 - x' . s'_i))
    v_i = exp(gamma log2 1 / p_i)         p_i = softmax_c(s'_i . w'_c) of the shot's own class

`'` is a row with the kept channels alone, at unit length. `sim_d` is the mean product of channel d
over all pairs of rows (a class's text and shots) of different classes. With `S_c` the mean row of a
class it is `((sum_c S_c)^2 - sum_c S_c^2) / (C (C - 1))`, where theirs is a loop over pairs of rows
(2.9e8 steps for 1000 classes of 16 shots).

| here | paper |
|---|---|
| w | lambda |
| feat_num | Q |
| alpha, beta, gamma | alpha, beta, gamma |

Departures from the authors' code. They choose `alpha`, `beta` and `gamma` on a validation set (for
ImageNet, the test set); here they are what that search starts from, or chosen by leaving out shots
(`tune=loo`). Theirs wants equal shots, sorted by class; see `tip_adapter` for classes of different
size or without shots. Channels by default are half of them, near the 500 of 1024 they keep.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import product
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods._protocols import Output
from zeroshot.methods._shots import Memo, Tune, check, choose, class_sums, completed
from zeroshot.methods.ensemble import Ensemble
from zeroshot.methods.tip_adapter import gathered
from zeroshot.ops import normalize

BLOCK = 1024
"""Images whose similarities to all shots are held at a time."""

GRID = tuple(
    (0.1 + 11.9 * i / 8, 0.1 + 4.9 * j / 6, 0.1 + 0.9 * k / 5)
    for i, j, k in product(range(8), range(6), range(5))
)
"""The authors' beta, alpha and gamma."""


@dataclass(frozen=True)
class Cache:
    """Kept channels, the texts and shots on them, and how much each shot counts."""

    channels: Int[Tensor, " q"]
    shots: Float[Tensor, "m q"]
    labels: Int[Tensor, " m"]
    surprise: Float[Tensor, " m"]
    """log2 1 / p of the shot's own class"""

    def scores(
        self, images: Float[Tensor, "n d"], classes: int, beta: float, gamma: float
    ) -> Float[Tensor, "n c"]:
        """What the shots say."""
        affinity = (self.shots @ normalize(images[:, self.channels]).T).sub_(1).mul_(beta)
        weighted = affinity.add_(gamma * self.surprise[:, None]).exp_()  # [m, n]
        return gathered(weighted, self.labels, classes)


@dataclass(frozen=True)
class APE:
    """Logits of image rows; `fit` gives it the shots."""

    w: float = 0.7
    """weight of the similarity between classes against the variance of the texts"""
    feat_num: int = 0
    """channels to keep; 0: half"""
    alpha: float = 1.2
    """weight of the shots"""
    beta: float = 1.0
    """how fast a shot's influence falls with its distance"""
    gamma: float = 0.2
    """how much more a shot counts that the texts get wrong"""
    tune: Tune = "published"
    """alpha, beta and gamma as above, or those that get most left-out shots right"""

    shots_: Float[Tensor, "m d"] | None = field(default=None, repr=False, compare=False)
    shot_labels_: Int[Tensor, " m"] | None = field(default=None, repr=False, compare=False)
    memo_: Memo[tuple[Cache, tuple[float, float, float]]] = field(
        default_factory=Memo, init=False, repr=False, compare=False
    )

    transductive: ClassVar[bool] = False

    @property
    def output(self) -> Output:
        """Zero-shot logits and weighted similarities."""
        return "logit"

    def fit(self, shots: Float[Tensor, "m d"], shot_labels: Int[Tensor, " m"]) -> "APE":
        """A copy that knows these shots; classes may have different numbers of them, or none."""
        check(shot_labels, int(shot_labels.max()) + 1)
        return replace(self, shots_=shots, shot_labels_=shot_labels)

    def cache(
        self,
        shots: Float[Tensor, "m d"],
        labels: Int[Tensor, " m"],
        prototypes: Float[Tensor, "c d"],
    ) -> Cache:
        """Channels and shots, refined."""
        channels = self.channels(shots, labels, prototypes)
        keys, owner = completed(shots, labels, prototypes)
        keys, texts = normalize(keys[:, channels]), normalize(prototypes[:, channels])
        own = (keys @ texts.T).softmax(1).gather(1, owner[:, None])[:, 0]
        return Cache(channels, keys, owner, torch.log2((1 + 1e-6) / (own + 1e-6)))

    def channels(
        self,
        shots: Float[Tensor, "m d"],
        labels: Int[Tensor, " m"],
        prototypes: Float[Tensor, "c d"],
    ) -> Int[Tensor, " q"]:
        """The channels to keep, best first."""
        worth = (1 - self.w) * prototypes.var(0) - self.w * similarity(shots, labels, prototypes)
        return worth.topk(min(self.feat_num or (len(worth) + 1) // 2, len(worth))).indices

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> Float[Tensor, "n c"]:
        """Logits."""
        if self.shots_ is None or self.shot_labels_ is None:
            raise UserError("ape needs the arrays shots and shot_labels; call fit with them")
        check(self.shot_labels_, len(texts))
        prototypes = Ensemble().classifier(texts, text_mask)
        cache, (beta, alpha, gamma) = self.memo_(
            lambda: self._learned(prototypes, logit_scale), texts, text_mask, logit_scale
        )
        parts = [
            logit_scale * rows @ prototypes.T + alpha * cache.scores(rows, len(texts), beta, gamma)
            for rows in torch.split(images, BLOCK)
        ]
        return torch.cat(parts)

    def _learned(
        self, prototypes: Float[Tensor, "c d"], scale: float
    ) -> tuple[Cache, tuple[float, float, float]]:
        assert self.shots_ is not None
        assert self.shot_labels_ is not None
        shots, labels = self.shots_, self.shot_labels_
        cache = self.cache(shots, labels, prototypes)
        given = self.beta, self.alpha, self.gamma
        if self.tune == "published":
            return cache, given

        def learn(train: Tensor, held: Tensor) -> Callable[[tuple[float, float, float]], Tensor]:
            rest = self.cache(shots[train], labels[train], prototypes)
            zero_shot = scale * shots[held] @ prototypes.T

            def scores(candidate: tuple[float, float, float]) -> Tensor:
                beta, alpha, gamma = candidate
                return zero_shot + alpha * rest.scores(shots[held], len(prototypes), beta, gamma)

            return scores

        return cache, choose(labels, GRID, learn, given)


def similarity(
    shots: Float[Tensor, "m d"], labels: Int[Tensor, " m"], prototypes: Float[Tensor, "c d"]
) -> Float[Tensor, " d"]:
    """Mean product of each channel over pairs of rows of different classes."""
    classes = len(prototypes)
    count = 1 + torch.bincount(labels, minlength=classes)
    mean = (prototypes + class_sums(shots, labels, classes)) / count[:, None]
    return (mean.sum(0) ** 2 - (mean**2).sum(0)) / max(1, classes * (classes - 1))
