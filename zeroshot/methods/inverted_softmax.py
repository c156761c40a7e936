"""Inverted softmax: similarities are normalized over queries, so that hub classes lose.

Smith et al. 2017, "Offline bilingual word vectors, orthogonal transformations and the inverted
softmax", ICLR, arXiv:1702.03859; authors' code as in facebookresearch/MUSE (CC BY-NC, not used
here).

    score_qg = exp(beta s_qg) / sum_b exp(beta s_bg)

The sum runs over the queries themselves or, once fitted, over a bank of others. Our score is the
logarithm of this, divided by beta, in units of similarity:

    score_qg = s_qg - log(mean_b exp(beta s_bg)) / beta

| here | paper |
|---|---|
| beta | beta, 20 in QB-Norm |
| bank | the source words |

Departures from the authors' code: the logarithm, which leaves the ranking of every row and column
unchanged; `compat=True` gives the quotient. As a classifier without a bank it assumes equally
frequent classes, and warns if few seem present. A matrix of similarities, rows queries and columns
gallery, can be re-ranked without embeddings: `inverted_softmax(similarity, bank)`.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.methods._bank import OptionalBank
from zeroshot.methods._prior import warn_if_few
from zeroshot.methods._protocols import Output
from zeroshot.methods.ensemble import Ensemble


def inverted_softmax(
    similarity: Float[Tensor, "q g"],
    bank: Float[Tensor, "b g"] | None = None,
    beta: float = 20.0,
    compat: bool = False,
) -> Float[Tensor, "q g"]:
    """Similarities less the soft maximum of each column over the bank, or over the rows."""
    logits = beta * (similarity if bank is None else bank)
    if compat:
        return torch.exp(beta * similarity - logits.logsumexp(0))
    return similarity - (logits.logsumexp(0) - math.log(len(logits))) / beta


@dataclass(frozen=True)
class InvertedSoftmax(OptionalBank):
    """Zero-shot cosines less each class's soft maximum over the bank."""

    beta: float = 20.0
    """sharpness: if large, only the nearest of the bank counts"""
    compat: bool = False
    """the quotient of the paper instead of its logarithm"""

    @property
    def output(self) -> Output:
        """Shifted cosines; with `compat`, shares of a class."""
        return "probability" if self.compat else "similarity"

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> Float[Tensor, "n c"]:
        """Classes as the gallery, images as the queries."""
        classifier = Ensemble().classifier(texts, text_mask)
        similarity = images @ classifier.T
        if self.bank_ is None:
            warn_if_few("inverted_softmax", logit_scale * similarity)
            return inverted_softmax(similarity, None, self.beta, self.compat)
        return inverted_softmax(similarity, self.bank_ @ classifier.T, self.beta, self.compat)
