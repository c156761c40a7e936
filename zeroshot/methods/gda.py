"""GDA: a Gaussian classifier of the shots, added to the zero-shot logits.

Wang et al. 2024, "A Hard-to-Beat Baseline for Training-Free CLIP-based Adaptation", ICLR,
arXiv:2402.04087; authors' code: github.com/mrflogs/ICLR24 (no licence; written from the equations).

    P   = d [(M - 1) S + tr(S) I]^-1      S covariance of the shots around their class means    (1)
    A_c = P mu_c      b_c = -1/2 mu_c' P mu_c + log prior_c                                     (2)
    L   = logit_scale x . w_c + alpha (x . A_c + b_c)                                           (3)

All classes share one covariance, so the Bayes classifier is linear. The ridge `tr(S) I` makes the
covariance invertible with fewer shots than dimensions.

| here | paper |
|---|---|
| mean, precision | mu, Sigma^-1 |
| alpha | alpha |
| prior | p(y), uniform in the paper |

Departures from the authors' code. They choose `alpha` on a validation set; here it is the median of
their choices over 11 data sets and 3 seeds for this number of shots, or chosen by leave-one-out on
the shots (`tune=loo`). These alphas belong to ten augmented copies of each shot. With one shot per
class and no copies the covariance is zero and theirs divides by it; with near-duplicates it is so
small that the shots swamp the texts. Here the ridge is at least a tenth of what the spread of all
shots would give; `compat=True` does as they do, with `P = d I` where they divide by zero. The mean
of a class without shots is its text prototype plus the mean gap between texts and shots.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods._shots import (
    LinearFewShot,
    Tune,
    check_labels,
    choose,
    class_means,
    complete_means,
    published,
)
from zeroshot.methods.ensemble import Ensemble

ALPHA = {1: 1e-3, 2: 0.1, 4: 0.1, 8: 1.0, 16: 10.0}
"""The authors' median choice over 11 data sets and 3 seeds, by shots per class (their logs)."""

LEAST = 0.1
"""Least share of the shots' scatter that lies within classes: images of a class are no copies."""

GRID = tuple(10.0**exponent for exponent in range(-4, 3))
"""The values they choose from."""


@dataclass(frozen=True)
class GDA(LinearFewShot):
    """Logits; `fit` gives it the shots."""

    alpha: float = 0.0
    """weight of the Gaussian scores; 0: chosen according to `tune`"""
    tune: Tune = "published"
    """the authors' alpha for this number of shots, or chosen by leave-one-out on the shots"""
    compat: bool = False
    """the authors' covariance, which near-duplicate shots make as small as they are alike"""

    mean_: Float[Tensor, "k d"] | None = field(default=None, repr=False, compare=False)
    count_: Int[Tensor, " k"] | None = field(default=None, repr=False, compare=False)
    precision_: Float[Tensor, "d d"] | None = field(default=None, repr=False, compare=False)
    prior_: Float[Tensor, " c"] | None = field(default=None, repr=False, compare=False)

    def fit(
        self,
        shots: Float[Tensor, "m d"],
        shot_labels: Int[Tensor, " m"],
        prior: Float[Tensor, " c"] | None = None,
    ) -> "GDA":
        """A copy with these shots; classes may have different numbers of them, or none."""
        check_labels(shot_labels, int(shot_labels.max()) + 1)
        mean, count = class_means(shots, shot_labels, int(shot_labels.max()) + 1)
        least = 0.0 if self.compat else LEAST * float(((shots - shots.mean(0)) ** 2).sum())
        return replace(
            self,
            mean_=mean,
            count_=count,
            precision_=precision(shots - mean[shot_labels], least),  # (1)
            prior_=prior,
            shots_=shots,
            shot_labels_=shot_labels,
        )

    def classifier(
        self, texts: Float[Tensor, "c t d"], text_mask: Bool[Tensor, "c t"] | None = None
    ) -> tuple[Float[Tensor, "c d"], Float[Tensor, " c"]]:
        """(2), the Gaussian part alone: its score is `images @ weight.T + bias`.

        Raises:
            UserError: fewer texts than classes that have shots.
        """
        if self.mean_ is None or self.count_ is None or self.precision_ is None:
            raise UserError("gda needs the arrays shots and shot_labels; call fit with them")
        check_labels(self.count_.nonzero()[:, 0], len(texts))
        missing = len(texts) - len(self.mean_)
        mean = torch.cat([self.mean_, self.mean_.new_zeros(missing, self.mean_.shape[1])])
        count = torch.cat([self.count_, self.count_.new_zeros(missing)])
        mean = complete_means(mean, count, Ensemble().classifier(texts, text_mask))
        weight = mean @ self.precision_
        prior = torch.full_like(mean[:, 0], 1 / len(texts)) if self.prior_ is None else self.prior_
        least = torch.finfo(prior.dtype).tiny
        return weight, (weight * mean).sum(1) / -2 + prior.clamp_min(least).log()

    def _learn(
        self, texts: Tensor, text_mask: Tensor | None, logit_scale: float
    ) -> tuple[Float[Tensor, "c d"], Float[Tensor, " c"]]:
        """(3): the zero-shot classifier and the Gaussian part are both linear, and are added."""
        weight, bias = self.classifier(texts, text_mask)
        alpha = self.alpha or self._tune(texts, text_mask, logit_scale)
        zero_shot = Ensemble().classifier(texts, text_mask)
        return logit_scale * zero_shot + alpha * weight, alpha * bias

    def _tune(self, texts: Tensor, text_mask: Tensor | None, logit_scale: float) -> float:
        """The weight alpha."""
        shots, labels = self._labelled(len(texts))
        default = published(ALPHA, labels)
        if self.tune == "published":
            return default

        def learn(train: Tensor, test: Tensor) -> Callable[[float], Tensor]:
            rest = self.fit(shots[train], labels[train], self.prior_)
            weight, bias = rest.classifier(texts, text_mask)
            gaussian = shots[test] @ weight.T + bias
            zero_shot = logit_scale * shots[test] @ Ensemble().classifier(texts, text_mask).T
            return lambda alpha: zero_shot + alpha * gaussian

        return choose(labels, GRID, learn, default)


def precision(centred: Float[Tensor, "m d"], least: float = 0.0) -> Float[Tensor, "d d"]:
    """The ridge-regularised inverse covariance of shots centred on their classes' means.

    The ridge is that of a scatter whose trace is at least `least`.
    """
    shots, width = centred.shape
    scatter = centred.T @ centred
    ridge = scatter.trace().clamp_min(least) / max(1, shots - 1)
    eye = torch.eye(width, dtype=centred.dtype, device=centred.device)
    if ridge <= torch.finfo(centred.dtype).eps:
        return width * eye
    return width * torch.cholesky_inverse(torch.linalg.cholesky(scatter + ridge * eye))
