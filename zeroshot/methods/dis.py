"""DIS (QB-Norm): the inverted softmax, for those queries only that a hub would catch.

Bogolin et al. 2022, "Cross Modal Retrieval with Querybank Normalisation", CVPR, arXiv:2112.12777;
authors' code: ioanacroi/qb-norm (MIT).

    active   = columns among the k best of some row of the bank                                 (1)
    score_qg = exp(beta s_qg) / sum_b exp(beta s_bg)      if the best column of row q is active  (2)
    score_qg = s_qg                                       else

Columns that are not near to any query of the bank are no hubs, and a row whose best column is such
keeps its similarities. The bank holds queries of the same kind: texts for text-to-image search,
images for classification.

| here | paper |
|---|---|
| bank | querybank |
| active | gallery activation set |
| k, beta | 1 and 20 |

Departures from the authors' code. Instead of the quotient we take its logarithm over beta, in units
of similarity, so that all rows have comparable scales and a softmax makes sense; the ranking of a
row is the same. `compat=True` gives theirs, where rows have two different scales and only
comparisons within a row mean anything. Theirs writes into the caller's matrix. Without embeddings:
`dis(similarity, bank)`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.methods._bank import RequiredBank
from zeroshot.methods._protocols import Output
from zeroshot.methods.ensemble import Ensemble
from zeroshot.methods.inverted_softmax import inverted_softmax


def active(bank: Float[Tensor, "b g"], k: int = 1) -> Bool[Tensor, " g"]:
    """Columns among the `k` largest of some row."""
    is_active = torch.zeros(bank.shape[1], dtype=torch.bool, device=bank.device)
    is_active[bank.topk(min(k, bank.shape[1]), dim=1).indices.flatten()] = True
    return is_active


def dis(
    similarity: Float[Tensor, "q g"],
    bank: Float[Tensor, "b g"],
    k: int = 1,
    beta: float = 20.0,
    compat: bool = False,
) -> Float[Tensor, "q g"]:
    """Similarities, re-scored in rows whose best column is active in the bank."""
    near_hub = active(bank, k)[similarity.argmax(1)]  # (1)
    rescored = inverted_softmax(similarity, bank, beta, compat)
    return torch.where(near_hub[:, None], rescored, similarity)  # (2)


@dataclass(frozen=True)
class DIS(RequiredBank):
    """Zero-shot cosines, corrected for hubs among the classes."""

    k: int = 1
    """a class may be a hub if it is among this many best of some image of the bank"""
    beta: float = 20.0
    """sharpness of the inverted softmax"""
    compat: bool = False
    """quotients instead of logarithms: rows on two scales, as in the authors' code"""

    @property
    def output(self) -> Output:
        """Shifted cosines."""
        return "similarity"

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> Float[Tensor, "n c"]:
        """Classes as the gallery, images as the queries."""
        bank = self._bank
        classifier = Ensemble().classifier(texts, text_mask)
        similarity, bank_similarity = images @ classifier.T, bank @ classifier.T
        return dis(similarity, bank_similarity, self.k, self.beta, self.compat)
