"""SpLiCE: an image as a sum of few words.

Bhalla et al. 2024, "Interpreting CLIP with Sparse Linear Concept Embeddings (SpLiCE)", NeurIPS,
arXiv:2402.10376; authors' code: AI4LIFE-GROUP/SpLiCE (Apache-2.0).

    e_j  = norm(norm(words_j) - mean of norm(words))      a word
    c    = norm(x - m)                                    an image, m the mean of images
    w    = argmin_{w >= 0} |c - sum_j w_j e_j|^2 + penalty sum_j w_j
    x'   = norm(norm(sum_j w_j e_j) + m)                  what the words say

Departures. Their solvers (scikit-learn's Lasso, and ADMM from unseeded noise) stop at 1e-6, which
leaves about 1e-5 in a weight, and a row of ADMM depends on its batch; here words enter one by one
and weights are solved for, so the conditions of the optimum hold to 1e-10. Their code fails for
texts; here a text is centred by the mean of the words. Their image mean is a stored one of MSCOCO.
"""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods._door import Method
from zeroshot.ops import normalize

TOLERANCE = 1e-10
"""How much a word that has no weight may still gain: half the slope of the objective."""
DEPENDENT = 1e-12
"""A word with less of its own, squared, is a sum of others."""
AT_ONCE = 64
"""Words that are looked at together."""


@dataclass(frozen=True)
class SpLiCE(Method):
    """Non-negative weights of words that sum to an embedding."""

    penalty: float = 0.25
    """of a weight; larger gives fewer words, and none where no cosine is above half of it"""

    words_: Float[Tensor, "w d"] | None = field(default=None, repr=False, compare=False)
    word_mean_: Float[Tensor, " d"] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.penalty <= 0:
            raise UserError(f"splice: penalty={self.penalty}, and has to be above 0")

    def fit(self, words: Float[Tensor, "w d"]) -> "SpLiCE":
        """A copy that explains by these words, of which no two are the same everywhere."""
        unit = normalize(words.double())
        mean = unit.mean(0)
        return replace(self, words_=normalize(unit - mean), word_mean_=mean)

    def decompose(
        self, images: Float[Tensor, "n d"], mean: Float[Tensor, " d"] | None = None
    ) -> Float[Tensor, "n w"]:
        """The weights of the words, in float64; `mean` is that of images, or for texts None."""
        words, mean = self._fitted(mean)
        return lasso(normalize(images.double() - mean), words, self.penalty)

    def cosines(
        self,
        weights: Float[Tensor, "n w"],
        images: Float[Tensor, "n d"],
        mean: Float[Tensor, " d"] | None = None,
    ) -> Float[Tensor, " n"]:
        """Of centred images and their sums of words: 1 where words say all of it, 0 without any."""
        words, mean = self._fitted(mean)
        return (normalize(weights @ words) * normalize(images.double() - mean)).sum(1)

    def recompose(
        self, weights: Float[Tensor, "n w"], mean: Float[Tensor, " d"] | None = None
    ) -> Float[Tensor, "n d"]:
        """Unit embeddings x' that the words stand for; `mean` as for `decompose`."""
        words, mean = self._fitted(mean)
        return normalize(normalize(weights @ words) + mean)

    def _fitted(self, mean: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.words_ is None or self.word_mean_ is None:
            raise UserError("splice needs words: fit(words) with an embedding of each")
        return self.words_, self.word_mean_ if mean is None else mean.double()


def lasso(
    rows: Float[Tensor, "n d"], words: Float[Tensor, "w d"], penalty: float
) -> Float[Tensor, "n w"]:
    """The `weights >= 0` with the least |row - weights words|^2 + penalty sum(weights), row by row.

    Words that would gain most are tried first, `AT_ONCE` at a time, until none of all words gains.
    Of words that are the same sum, the first that enters has the weight.
    """
    weights = rows.new_zeros(len(rows), len(words))
    tried: Bool[Tensor, "n w"] = torch.zeros_like(weights, dtype=torch.bool)
    to_do = torch.arange(len(rows))
    while len(to_do):
        gains = (rows[to_do] - weights[to_do] @ words) @ words.T - penalty / 2
        gains[tried[to_do]] = 0
        best, index = gains.topk(min(AT_ONCE, len(words)), dim=1)
        more = best[:, 0] > TOLERANCE
        to_do, best, index = to_do[more], best[more], index[more]
        for i, gain, near in zip(to_do.tolist(), best, index, strict=True):
            tried[i, near[gain > TOLERANCE]] = True
            own = tried[i].nonzero()[:, 0]
            chosen = words[own]
            weights[i, own] = _active_set(chosen @ chosen.T, chosen @ rows[i] - penalty / 2)
    return weights


def _active_set(gram: Float[Tensor, "k k"], target: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """The w >= 0 with the least w gram w - 2 w target (Lawson, Hanson 1974, chapter 23)."""
    w, active = torch.zeros_like(target), torch.zeros(0, dtype=torch.long)
    refused = torch.zeros_like(target, dtype=torch.bool)
    while True:
        slope = target - gram @ w
        slope[active] = 0
        slope[refused] = 0
        new = int(slope.argmax())
        if slope[new] <= TOLERANCE:
            return w
        before = w.clone()
        active = _with_new(gram, w, active, new)
        while len(active):
            solved = torch.linalg.solve(gram[active][:, active], target[active])
            old = w[active]
            steps = torch.where(solved > 0, 1, old / (old - solved).clamp_min(1e-300))
            step = steps.min()
            w[active] = old + step * (solved - old)
            if (solved > 0).all():
                break
            gone = (solved <= 0) & (steps <= step)
            w[active[gone]] = 0
            active = active[~gone]
        refused[new] = torch.equal(w, before)  # rounding alone says that it gains


def _with_new(
    gram: Float[Tensor, "k k"], w: Float[Tensor, " k"], active: Int[Tensor, " a"], new: int
) -> Int[Tensor, " b"]:
    """The active words and a new one; if it is a sum of them, it takes the place of one."""
    joined = torch.cat([active, torch.tensor([new])])
    if not len(active):
        return joined
    shares = torch.linalg.solve(gram[active][:, active], gram[active, new])
    own = gram[new, new] - gram[active, new] @ shares
    if own > DEPENDENT or not (shares > 0).any():
        return joined
    steps = torch.where(shares > 0, w[active] / shares, torch.inf)
    least = int(steps.argmin())
    w[new] = steps[least]
    w[active] = (w[active] - steps[least] * shares).clamp_min(0)
    w[active[least]] = 0
    return joined[torch.arange(len(joined)) != least]
