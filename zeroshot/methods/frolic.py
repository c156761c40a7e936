"""Frolic: the model's own leaning towards some classes, estimated from its predictions, removed.

Zhu et al. 2024, "Enhancing Zero-Shot Vision Models by Label-Free Prompt Distribution Learning and
Bias Correcting", NeurIPS, arXiv:2410.19294; authors' code: zhuhsingyuu/Frolic (no licence file, not
used here).

    S[k]  = mean of softmax(L_i) over the rows i whose best class is k, where the best class leads
            the second by more than 1/c
    pi    = stationary distribution of S, pi = S^T pi
    L     <- L - log pi                                                     `rounds` times

and, with `lda`, scores by one Gaussian per class with a shared diagonal covariance:

    score = x v w_c - w_c v w_c / 2 - x v x / 2      v = 1 / ((1 - lam) var + lam)

`var` is that of images and prompts pooled. All classes are taken as equally frequent: this suits a
balanced set, and on a batch with few of the classes it forces pictures into the absent ones, of
which it warns.

| here | paper |
|---|---|
| rounds | 11 in the authors' code |
| lam | 0.9, shrinkage of the covariance |
| pi | beta, the prior of the pre-training data |

Departures from the authors' code, whose numbers `compat=True` gives. Their gate compares logits,
not probabilities, with 1/c, so that with a scale of 100 nearly every row passes; their power
iteration stops as soon as a step moves less than 1e-3 and returns the vector before it: with
confident logits that is the uniform start, and nothing is corrected. Here the gate is on
probabilities and the stationary distribution is solved for, of S with a share of 1e-3 of the
uniform distribution mixed in, so that there is one; since rounding grows with each round, the bias
is computed in float64 whatever the logits are. It is brought to mean zero. Their prompt-learning
stage, two InMaP runs whose scores they add, is not part of it.
"""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.methods._prior import warn_if_few
from zeroshot.methods._protocols import Output
from zeroshot.methods.ensemble import Ensemble

UNIFORM_SHARE = 1e-3


@dataclass(frozen=True)
class Frolic:
    """Logits less the logarithm of the classes' estimated leaning."""

    rounds: int = 11
    """times the leaning is estimated and removed; 0 leaves the scores"""
    gate: bool = True
    """estimate from rows only whose best class leads the second by more than 1/c"""
    lda: bool = False
    """score by Gaussians around the classes' prompts instead of by cosines"""
    lam: float = 0.9
    """of lda: weight of the identity in the covariance"""
    compat: bool = False
    """the authors' gate and early stop"""

    bank_: Float[Tensor, "b d"] | None = field(default=None, repr=False, compare=False)

    @property
    def transductive(self) -> bool:
        """Unless a bank gives the leaning."""
        return self.bank_ is None

    @property
    def output(self) -> Output:
        """Logits less a constant for each class."""
        return "logit"

    def fit(self, bank: Float[Tensor, "b d"] | None = None) -> "Frolic":
        """A copy that estimates from these rows."""
        return replace(self, bank_=bank)

    def adjust(
        self, logits: Float[Tensor, "n c"], bank: Float[Tensor, "b c"] | None = None
    ) -> Float[Tensor, "n c"]:
        """Corrected logits, of whatever method."""
        if not self.rounds:
            return logits
        rows = logits if bank is None else bank
        warn_if_few("frolic", rows)
        return logits - leaning(rows, self.rounds, self.gate, self.compat)

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> Float[Tensor, "n c"]:
        """Corrected zero-shot logits, or those of the Gaussians."""
        classifier = Ensemble().classifier(texts, text_mask)
        rows = images if self.bank_ is None else self.bank_
        if not self.lda:
            bank = None if self.bank_ is None else logit_scale * rows @ classifier.T
            return self.adjust(logit_scale * images @ classifier.T, bank)
        prompts = texts.flatten(0, 1) if text_mask is None else texts[text_mask]
        precision = inverse_variance(torch.cat([rows, prompts]), self.lam)
        bank = None
        if self.bank_ is not None:
            bank = logit_scale * gaussian_scores(rows, classifier, precision)
        return self.adjust(logit_scale * gaussian_scores(images, classifier, precision), bank)


def inverse_variance(rows: Float[Tensor, "m d"], lam: float) -> Float[Tensor, " d"]:
    """Of each channel, its variance shrunk towards 1."""
    return 1 / ((1 - lam) * rows.var(0) + lam)


def gaussian_scores(
    images: Float[Tensor, "n d"],
    classifier: Float[Tensor, "c d"],
    precision: Float[Tensor, " d"],
) -> Float[Tensor, "n c"]:
    """Log-likelihood of rows under each class, up to a constant."""
    of_images = images.square() @ precision
    of_classes = classifier.square() @ precision
    return (images * precision) @ classifier.T - (of_images[:, None] + of_classes) / 2


def leaning(
    logits: Float[Tensor, "n c"], rounds: int = 11, gate: bool = True, compat: bool = False
) -> Float[Tensor, " c"]:
    """What to subtract from the logits of each class."""
    precision, logits = logits.dtype, logits.double()
    total = torch.zeros_like(logits[0])
    for _ in range(rounds):
        prior = stationary(logits - total, gate, compat)
        step = (prior + 1e-12).log()
        total = total + (step if compat else step - step.mean())
    return total.to(precision)


def stationary(
    logits: Float[Tensor, "n c"], gate: bool = True, compat: bool = False
) -> Float[Tensor, " c"]:
    """Where a walk over the classes stays that goes from k as the rows predicted k do."""
    classes = logits.shape[1]
    probability = logits.softmax(1)
    best = (logits if compat else probability).topk(2, dim=1).values
    sure = best[:, 0] - best[:, 1] > (1 / classes if gate else -1)
    label = logits.argmax(1)[sure]
    walk = torch.zeros(classes, classes, dtype=logits.dtype, device=logits.device)
    walk.index_add_(0, label, probability[sure])
    count = torch.bincount(label, minlength=classes)
    walk = walk / count.clamp_min(1)[:, None]
    return _authors_walk(walk) if compat else _long_walk(walk, count == 0)


def _authors_walk(walk: Float[Tensor, "c c"]) -> Float[Tensor, " c"]:
    """Power iteration that stops early, one step behind."""
    prior = torch.full_like(walk[0], 1 / len(walk))
    for _ in range(100):
        after = walk.T @ prior
        after = after / after.sum()
        if float((after - prior).abs().sum()) < 1e-3:
            break
        prior = after
    return prior


def _long_walk(walk: Float[Tensor, "c c"], empty: Bool[Tensor, " c"]) -> Float[Tensor, " c"]:
    """The stationary distribution, solved; from a class nobody is predicted one may go anywhere."""
    uniform = torch.full_like(walk, 1 / len(walk))
    walk = torch.where(empty[:, None], uniform, walk)
    walk = (1 - UNIFORM_SHARE) * walk + UNIFORM_SHARE * uniform
    equations = walk.T - torch.eye(len(walk), dtype=walk.dtype, device=walk.device)
    equations[-1] = 1  # instead of one that follows from the others: shares sum to 1
    right = torch.zeros_like(walk[0])
    right[-1] = 1
    prior: Tensor = torch.linalg.solve(equations, right)
    return prior.clamp_min(0)
