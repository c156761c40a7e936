"""GDA: a Gaussian classifier of the shots, added to the zero-shot logits.

Wang et al. 2024, "A Hard-to-Beat Baseline for Training-Free CLIP-based Adaptation", ICLR,
arXiv:2402.04087; authors' code: github.com/mrflogs/ICLR24 (no licence; written from the equations).

    P   = d [(M - 1) S + tr(S) I]^-1          S covariance of the shots around their class means
    A_c = P mu_c      b_c = -1/2 mu_c' P mu_c + log prior_c
    L   = logit_scale x . w_c + alpha (x . A_c + b_c)

All classes share one covariance, so the Bayes classifier is linear; the ridge `tr(S) I` makes it
invertible with fewer shots than dimensions.

| here | paper |
|---|---|
| mean, precision | mu, Sigma^-1 |
| alpha | alpha |
| prior | p(y), uniform in the paper |

Departures from the authors' code. They choose `alpha` on a validation set; here it is the median of
what they chose over 11 data sets and 3 seeds at so many shots, or chosen by leaving out shots
(`tune=loo`). With one shot per class the covariance is zero and theirs divides by it (they have ten
augmented copies of each shot; pass such copies as shots to do the same): then `P = d I`. A class
without shots takes the place of its text row moved by the mean gap between texts and shots.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods._protocols import Output
from zeroshot.methods._shots import (
    Memo,
    Tune,
    check,
    choose,
    class_means,
    published,
    stand_ins,
)
from zeroshot.methods.ensemble import Ensemble

ALPHA = {1: 1e-3, 2: 0.1, 4: 0.1, 8: 1.0, 16: 10.0}
"""Median choice of the authors over 11 data sets and 3 seeds, by shots per class (their logs)."""

GRID = tuple(10.0**exponent for exponent in range(-4, 3))
"""What they choose from."""


@dataclass(frozen=True)
class GDA:
    """Logits of image rows; `fit` gives it the shots."""

    alpha: float = 0.0
    """weight of the Gaussian scores; 0: chosen as `tune` says"""
    tune: Tune = "published"
    """the authors' alpha for so many shots, or the one that gets most left-out shots right"""

    mean_: Float[Tensor, "k d"] | None = field(default=None, repr=False, compare=False)
    count_: Int[Tensor, " k"] | None = field(default=None, repr=False, compare=False)
    precision_: Float[Tensor, "d d"] | None = field(default=None, repr=False, compare=False)
    prior_: Float[Tensor, " c"] | None = field(default=None, repr=False, compare=False)
    shots_: Float[Tensor, "m d"] | None = field(default=None, repr=False, compare=False)
    shot_labels_: Int[Tensor, " m"] | None = field(default=None, repr=False, compare=False)
    memo_: Memo[tuple[Tensor, Tensor]] = field(
        default_factory=Memo, init=False, repr=False, compare=False
    )

    transductive: ClassVar[bool] = False

    @property
    def output(self) -> Output:
        """Zero-shot logits and log-densities."""
        return "logit"

    def fit(
        self,
        shots: Float[Tensor, "m d"],
        shot_labels: Int[Tensor, " m"],
        prior: Float[Tensor, " c"] | None = None,
    ) -> "GDA":
        """A copy that knows these shots; classes may have different numbers of them, or none."""
        check(shot_labels, int(shot_labels.max()) + 1)
        mean, count = class_means(shots, shot_labels, int(shot_labels.max()) + 1)
        return replace(
            self,
            mean_=mean,
            count_=count,
            precision_=precision(shots - mean[shot_labels]),
            prior_=prior,
            shots_=shots,
            shot_labels_=shot_labels,
        )

    def classifier(
        self, texts: Float[Tensor, "c t d"], text_mask: Bool[Tensor, "c t"] | None = None
    ) -> tuple[Float[Tensor, "c d"], Float[Tensor, " c"]]:
        """The Gaussian part alone: its score is `images @ weight.T + bias`.

        Raises:
            UserError: fewer texts than classes that have shots.
        """
        if self.mean_ is None or self.count_ is None or self.precision_ is None:
            raise UserError("gda needs the arrays shots and shot_labels; call fit with them")
        check(self.count_.nonzero()[:, 0], len(texts))
        missing = len(texts) - len(self.mean_)
        mean = torch.cat([self.mean_, self.mean_.new_zeros(missing, self.mean_.shape[1])])
        count = torch.cat([self.count_, self.count_.new_zeros(missing)])
        mean = stand_ins(mean, count, Ensemble().classifier(texts, text_mask))
        weight = mean @ self.precision_
        share = torch.full_like(mean[:, 0], 1 / len(texts)) if self.prior_ is None else self.prior_
        least = torch.finfo(share.dtype).tiny
        return weight, (weight * mean).sum(1) / -2 + share.clamp_min(least).log()

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> Float[Tensor, "n c"]:
        """Logits: one matrix product, for the two classifiers are added first."""
        weight, bias = self.memo_(
            lambda: self._fused(texts, text_mask, logit_scale), texts, text_mask, logit_scale
        )
        return images @ weight.T + bias

    def _fused(
        self, texts: Tensor, text_mask: Tensor | None, logit_scale: float
    ) -> tuple[Tensor, Tensor]:
        weight, bias = self.classifier(texts, text_mask)
        alpha = self.alpha or self._chosen(texts, text_mask, logit_scale)
        zero_shot = Ensemble().classifier(texts, text_mask)
        return logit_scale * zero_shot + alpha * weight, alpha * bias

    def _chosen(self, texts: Tensor, text_mask: Tensor | None, logit_scale: float) -> float:
        assert self.shots_ is not None
        assert self.shot_labels_ is not None
        shots, labels = self.shots_, self.shot_labels_
        default = published(ALPHA, labels)
        if self.tune == "published":
            return default

        def learn(train: Tensor, held: Tensor) -> Callable[[float], Tensor]:
            rest = self.fit(shots[train], labels[train], self.prior_)
            weight, bias = rest.classifier(texts, text_mask)
            gaussian = shots[held] @ weight.T + bias
            zero_shot = logit_scale * shots[held] @ Ensemble().classifier(texts, text_mask).T
            return lambda alpha: zero_shot + alpha * gaussian

        return choose(labels, GRID, learn, default)


def precision(centred: Float[Tensor, "m d"]) -> Float[Tensor, "d d"]:
    """The ridge-regularised inverse covariance of rows centred on their classes' means."""
    rows, width = centred.shape
    scatter = centred.T @ centred
    ridge = scatter.trace() / max(1, rows - 1)
    eye = torch.eye(width, dtype=centred.dtype, device=centred.device)
    if ridge <= torch.finfo(centred.dtype).eps:
        return width * eye
    return width * torch.cholesky_inverse(torch.linalg.cholesky(scatter + ridge * eye))
