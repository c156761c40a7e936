"""TIMO: prompts weighted by the shots, shots completed by prompts.

Li et al. 2025, "Text and Image Are Mutually Beneficial: Enhancing Training-Free Few-Shot
Classification with CLIP", AAAI, arXiv:2412.11375; authors' code: github.com/lyymuwu/TIMO (no
licence; written from the equations).

    m_cp = cos(mean shot of c, e_cp)         w_c = norm(sum_p softmax_p(gamma norm(m_c))_p e_cp)
    rows = the beta best prompts of each class, times m_cp, and the shots
    L    = alpha x . w_c + x . A_c + b_c                    A, b: `gda` on these rows

| here | paper |
|---|---|
| the weighting of prompts | IGT, image-guided text |
| prompts among the shots | TGI, text-guided image |
| gamma, beta, alpha | gamma, beta, alpha |

`refine` gives the weighted texts to another method: `timo+gda` is a GDA with them.

Departures from the authors' code. They choose `alpha` on a validation set; here it is
`logit_scale / alpha` of `gda` for so many shots, or chosen by leaving out shots (`tune=loo`).
Classes may have different numbers of prompts and shots; one without shots weighs its prompts by
where its shots would be (see `gda`). TIMO-S is TIMO with `beta`, `gamma` and `alpha` searched.
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
from zeroshot.methods.gda import ALPHA, GDA
from zeroshot.ops import normalize

GRID = tuple(10.0**exponent for exponent in range(-4, 5))
"""The authors' values of alpha."""


@dataclass(frozen=True)
class TIMO:
    """Logits of image rows; `fit` gives it the shots."""

    gamma: float = 50.0
    """sharpness of the prompts' weights"""
    beta: int = 0
    """prompts of each class among the shots; 0: all, more than there are: again from the best"""
    alpha: float = 0.0
    """weight of the texts; 0: chosen as `tune` says"""
    tune: Tune = "published"
    """alpha from gda's table for so many shots, or the one that gets most left-out shots right"""

    shots_: Float[Tensor, "m d"] | None = field(default=None, repr=False, compare=False)
    shot_labels_: Int[Tensor, " m"] | None = field(default=None, repr=False, compare=False)
    memo_: Memo[tuple[Tensor, Tensor]] = field(
        default_factory=Memo, init=False, repr=False, compare=False
    )

    transductive: ClassVar[bool] = False

    @property
    def output(self) -> Output:
        """Log-densities and weighted similarities."""
        return "logit"

    def fit(self, shots: Float[Tensor, "m d"], shot_labels: Int[Tensor, " m"]) -> "TIMO":
        """A copy that knows these shots; classes may have different numbers of them, or none."""
        check(shot_labels, int(shot_labels.max()) + 1)
        return replace(self, shots_=shots, shot_labels_=shot_labels)

    def matching(
        self, texts: Float[Tensor, "c t d"], text_mask: Bool[Tensor, "c t"] | None = None
    ) -> Float[Tensor, "c t"]:
        """Cosine of each prompt with the mean shot of its class; `-inf` where there is none."""
        shots, labels = self._known
        check(labels, len(texts))
        mean, count = class_means(shots, labels, len(texts))
        centre = stand_ins(mean, count, Ensemble().classifier(texts, text_mask))
        cosine = torch.einsum("cd,ctd->ct", normalize(centre), texts)
        return cosine if text_mask is None else cosine.masked_fill(~text_mask, -torch.inf)

    def refine(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> tuple[Float[Tensor, "c 1 d"], None]:
        """The weighted mean of each class's prompts, at unit length."""
        return self._weighted(texts, self.matching(texts, text_mask))[:, None], None

    def classifier(
        self, texts: Float[Tensor, "c t d"], text_mask: Bool[Tensor, "c t"] | None = None
    ) -> tuple[Float[Tensor, "c d"], Float[Tensor, " c"]]:
        """The Gaussian part, of shots and prompts: its score is `images @ weight.T + bias`."""
        shots, labels = self._known
        cosine = self.matching(texts, text_mask)
        order = cosine.argsort(dim=1, descending=True)
        order = order[:, torch.arange(self.beta or texts.shape[1]) % texts.shape[1]]  # [c, beta]
        best = cosine.gather(1, order)
        there = best > -torch.inf
        owner = torch.arange(len(texts))[:, None].expand_as(order)[there]
        rows = best[there][:, None] * texts[owner, order[there]]
        together = GDA().fit(torch.cat([rows, shots]), torch.cat([owner, labels]))
        return together.classifier(texts, text_mask)

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
        return alpha * self._weighted(texts, self.matching(texts, text_mask)) + weight, bias

    def _weighted(self, texts: Tensor, matching: Tensor) -> Tensor:
        there = matching > -torch.inf
        direction = normalize(torch.where(there, matching, 0))
        weight = (self.gamma * direction).masked_fill(~there, -torch.inf).softmax(1)
        return normalize(torch.einsum("ct,ctd->cd", weight, texts))

    def _chosen(self, texts: Tensor, text_mask: Tensor | None, logit_scale: float) -> float:
        shots, labels = self._known
        default = logit_scale / published(ALPHA, labels)
        if self.tune == "published":
            return default

        def learn(train: Tensor, held: Tensor) -> Callable[[float], Tensor]:
            rest = self.fit(shots[train], labels[train])
            weight, bias = rest.classifier(texts, text_mask)
            gaussian = shots[held] @ weight.T + bias
            prompts = rest._weighted(texts, rest.matching(texts, text_mask))
            return lambda alpha: alpha * shots[held] @ prompts.T + gaussian

        return choose(labels, GRID, learn, default)

    @property
    def _known(self) -> tuple[Tensor, Tensor]:
        if self.shots_ is None or self.shot_labels_ is None:
            raise UserError("timo needs the arrays shots and shot_labels; call fit with them")
        return self.shots_, self.shot_labels_
