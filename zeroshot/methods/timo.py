"""TIMO: prompts weighted by the shots, shots completed by prompts.

Li et al. 2025, "Text and Image Are Mutually Beneficial: Enhancing Training-Free Few-Shot
Classification with CLIP", AAAI, arXiv:2412.11375; authors' code: github.com/lyymuwu/TIMO (no
licence; written from the equations).

    m_cp  = cos(mean shot of c, e_cp)                                                          (1)
    w_c   = norm(sum_p softmax_p(gamma norm(m_c))_p e_cp)                                      (2)
    S     = the shots, and the beta best prompts of each class, times m_cp                     (3)
    L     = logit_scale (x . w_c + (x . A_c + b_c) / alpha)  A, b: `gda` with the shots S      (4)

| here | paper |
|---|---|
| the weighting of prompts | IGT, image-guided text |
| prompts among the shots | TGI, text-guided image |
| gamma, beta, alpha | gamma, beta, alpha |

`refine` gives the weighted texts to another method: `timo+gda` is a GDA with them.

Departures from the authors' code. Their L is `alpha / logit_scale` times ours, a thousand times and
more: the same classes, but logits under which every softmax is 1 and no prior can be met
(`timo+sinkhorn`). `compat=True` gives theirs. They choose `alpha` on a validation set; here it is
`logit_scale / alpha` of `gda` for this number of shots, or chosen by leave-one-out on the shots
(`tune=loo`). Classes may have different numbers of prompts and shots; for a class without shots
the mean shot in (1) is an estimate (see `gda`). TIMO-S is TIMO with `beta`, `gamma` and `alpha`
searched.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.methods._shots import (
    LinearFewShot,
    Tune,
    choose,
    class_means,
    complete_means,
    published,
)
from zeroshot.methods.ensemble import Ensemble
from zeroshot.methods.gda import ALPHA, GDA
from zeroshot.ops import normalize

GRID = tuple(10.0**exponent for exponent in range(-4, 5))
"""The authors' values of alpha."""


@dataclass(frozen=True)
class TIMO(LinearFewShot):
    """Logits; `fit` gives it the shots."""

    gamma: float = 50.0
    """sharpness of the prompts' weights"""
    beta: int = 0
    """prompts of each class among the shots; 0: all; beyond that they repeat from the best"""
    alpha: float = 0.0
    """weight of the texts; 0: chosen according to `tune`"""
    tune: Tune = "published"
    """alpha from gda's table for this number of shots, or chosen by leave-one-out on the shots"""
    compat: bool = False
    """the authors' logits, `alpha / logit_scale` times as large"""

    def matching(
        self, texts: Float[Tensor, "c t d"], text_mask: Bool[Tensor, "c t"] | None = None
    ) -> Float[Tensor, "c t"]:
        """(1): cosine of each prompt with the mean shot of its class; `-inf` if it is missing."""
        shots, labels = self._labelled(len(texts))
        mean, count = class_means(shots, labels, len(texts))
        mean = complete_means(mean, count, Ensemble().classifier(texts, text_mask))
        cosine = torch.einsum("cd,ctd->ct", normalize(mean), texts)
        return cosine if text_mask is None else cosine.masked_fill(~text_mask, -torch.inf)

    def refine(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> tuple[Float[Tensor, "c 1 d"], None]:
        """(2): the weighted mean of each class's prompts, at unit length."""
        return self._weighted(texts, self.matching(texts, text_mask))[:, None], None

    def classifier(
        self, texts: Float[Tensor, "c t d"], text_mask: Bool[Tensor, "c t"] | None = None
    ) -> tuple[Float[Tensor, "c d"], Float[Tensor, " c"]]:
        """The Gaussian part, of shots and prompts: its score is `images @ weight.T + bias`."""
        shots, labels = self._labelled(len(texts))
        cosine = self.matching(texts, text_mask)
        order = cosine.argsort(dim=1, descending=True)
        order = order[:, torch.arange(self.beta or texts.shape[1]) % texts.shape[1]]  # [c, beta]
        best = cosine.gather(1, order)
        present = best > -torch.inf
        owner = torch.arange(len(texts))[:, None].expand_as(order)[present]
        prompts = best[present][:, None] * texts[owner, order[present]]
        gda = GDA(compat=True).fit(torch.cat([prompts, shots]), torch.cat([owner, labels]))  # (3)
        return gda.classifier(texts, text_mask)

    def _learn(
        self, texts: Tensor, text_mask: Tensor | None, logit_scale: float
    ) -> tuple[Float[Tensor, "c d"], Float[Tensor, " c"]]:
        """(4): the weighted prompts and the Gaussian part are both linear, and are added."""
        weight, bias = self.classifier(texts, text_mask)
        alpha = self.alpha or self._tune(texts, text_mask, logit_scale)
        scale = 1.0 if self.compat else logit_scale / alpha
        weighted = alpha * self._weighted(texts, self.matching(texts, text_mask))
        return scale * (weighted + weight), scale * bias

    def _weighted(self, texts: Tensor, matching: Tensor) -> Tensor:
        present = matching > -torch.inf
        direction = normalize(torch.where(present, matching, 0))
        weight = (self.gamma * direction).masked_fill(~present, -torch.inf).softmax(1)
        return normalize(torch.einsum("ct,ctd->cd", weight, texts))

    def _tune(self, texts: Tensor, text_mask: Tensor | None, logit_scale: float) -> float:
        """The weight alpha."""
        shots, labels = self._labelled(len(texts))
        default = logit_scale / published(ALPHA, labels)
        if self.tune == "published":
            return default

        def learn(train: Tensor, test: Tensor) -> Callable[[float], Tensor]:
            rest = self.fit(shots[train], labels[train])
            weight, bias = rest.classifier(texts, text_mask)
            gaussian = shots[test] @ weight.T + bias
            prompts = rest._weighted(texts, rest.matching(texts, text_mask))
            return lambda alpha: alpha * shots[test] @ prompts.T + gaussian

        return choose(labels, GRID, learn, default)
