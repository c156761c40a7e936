"""Frolic: the model's bias towards some classes is estimated from its predictions and removed.

Zhu et al. 2024, "Enhancing Zero-Shot Vision Models by Label-Free Prompt Distribution Learning and
Bias Correcting", NeurIPS, arXiv:2410.19294; authors' code: zhuhsingyuu/Frolic (no licence file, not
used here).

    S[k]  = mean of softmax(L_i) over the images i whose best class is k and leads the second
            best by more than 1/c                                                            (1)
    pi    = stationary distribution of S, pi = S^T pi                                        (2)
    L     <- L - log pi                                                     `rounds` times   (3)

and, with `lda`, scores by one Gaussian per class with a shared diagonal covariance:

    score = x v w_c - w_c v w_c / 2 - x v x / 2      v = 1 / ((1 - lam) var + lam)           (4)

`var` is that of images and prompts together. All classes are assumed equally frequent. This suits a
balanced set; on a batch with few of the classes it forces images into the absent ones, and warns.

| here | paper |
|---|---|
| rounds | 11 in the authors' code |
| lam | 0.9, shrinkage of the covariance |
| pi | beta, the prior of the pre-training data |

Departures from the authors' code, whose numbers `compat=True` gives. Their gate compares logits,
not probabilities, with 1/c, so that with a scale of 100 nearly every image passes. Their power
iteration stops as soon as a step is smaller than 1e-3 and returns the vector before it: with
confident logits that is the uniform start, and nothing is corrected. Here the gate is on
probabilities and the stationary distribution is solved for; S is mixed with a share of 1e-3 of the
uniform distribution, so that it exists. Since rounding grows with each round, the bias is computed
in float64 for all logits. Its mean is subtracted. Their prompt-learning stage, the sum of two InMaP
runs, is left out.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.methods._bank import OptionalBank
from zeroshot.methods._prior import warn_if_few
from zeroshot.methods._protocols import Output
from zeroshot.methods.ensemble import Ensemble

UNIFORM_SHARE = 1e-3
"""Of the uniform distribution, mixed into `S`."""


@dataclass(frozen=True)
class Frolic(OptionalBank):
    """Logits less the logarithm of the classes' estimated bias."""

    rounds: int = 11
    """times that the bias is estimated and removed; 0 leaves the scores"""
    gate: bool = True
    """estimate only from images whose best class leads the second best by more than 1/c"""
    lda: bool = False
    """score by Gaussians around the classes' prompts instead of by cosines"""
    lam: float = 0.9
    """with lda: weight of the identity in the covariance"""
    compat: bool = False
    """the authors' gate and early stop"""

    @property
    def output(self) -> Output:
        """Logits less a constant for each class."""
        return "logit"

    def adjust(
        self, logits: Float[Tensor, "n c"], bank: Float[Tensor, "b c"] | None = None
    ) -> Float[Tensor, "n c"]:
        """Corrected logits, of any method."""
        if not self.rounds:
            return logits
        rows = logits if bank is None else bank
        warn_if_few("frolic", rows)
        return logits - class_bias(rows, self.rounds, self.gate, self.compat)

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
    """Equation (4): log-likelihood of images under each class, up to a constant."""
    image_squares = images.square() @ precision
    class_squares = classifier.square() @ precision
    return (images * precision) @ classifier.T - (image_squares[:, None] + class_squares) / 2


def class_bias(
    logits: Float[Tensor, "n c"], rounds: int = 11, gate: bool = True, compat: bool = False
) -> Float[Tensor, " c"]:
    """What to subtract from the logits of each class."""
    precision, logits = logits.dtype, logits.double()
    total = torch.zeros_like(logits[0])
    for _ in range(rounds):
        prior = stationary(logits - total, gate, compat)  # (1), (2)
        step = (prior + 1e-12).log()
        total = total + (step if compat else step - step.mean())  # (3)
    return total.to(precision)


def stationary(
    logits: Float[Tensor, "n c"], gate: bool = True, compat: bool = False
) -> Float[Tensor, " c"]:
    """The stationary distribution of `S`."""
    classes = logits.shape[1]
    probability = logits.softmax(1)
    best = (logits if compat else probability).topk(min(2, classes), dim=1).values
    confident = best[:, 0] - best[:, 1:].sum(1) > (1 / classes if gate else -1)
    label = logits.argmax(1)[confident]
    s = torch.zeros(classes, classes, dtype=logits.dtype, device=logits.device)
    s.index_add_(0, label, probability[confident])
    count = torch.bincount(label, minlength=classes)
    s = s / count.clamp_min(1)[:, None]
    return _iterate_as_authors(s) if compat else _solve(s, count == 0)


def _iterate_as_authors(s: Float[Tensor, "c c"]) -> Float[Tensor, " c"]:
    """Power iteration that stops early, one step behind."""
    prior = torch.full_like(s[0], 1 / len(s))
    for _ in range(100):
        after = s.T @ prior
        after = after / after.sum()
        if float((after - prior).abs().sum()) < 1e-3:
            break
        prior = after
    return prior


def _solve(s: Float[Tensor, "c c"], empty: Bool[Tensor, " c"]) -> Float[Tensor, " c"]:
    """The solution of (2); the row of a class that is never predicted is uniform."""
    uniform = torch.full_like(s, 1 / len(s))
    s = torch.where(empty[:, None], uniform, s)
    s = (1 - UNIFORM_SHARE) * s + UNIFORM_SHARE * uniform
    equations = s.T - torch.eye(len(s), dtype=s.dtype, device=s.device)
    equations[-1] = 1  # the last equation follows from the others; instead, shares sum to 1
    right = torch.zeros_like(s[0])
    right[-1] = 1
    prior: Tensor = torch.linalg.solve(equations, right)
    return prior.clamp_min(0)
