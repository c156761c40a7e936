"""NNN: each item of a gallery loses a share of its mean similarity to its nearest queries.

Chowdhury et al. 2024, "Nearest Neighbor Normalization Improves Multimodal Retrieval", EMNLP,
arXiv:2410.24114; authors' code: multimodal-interpretability/nnn (MIT).

    b_g      = alpha * mean of the k largest s_bg over the bank       (1)
    score_qg = s_qg - b_g                                             (2)

The correction is one number per item, so that it fits into an index of inner products: with
`[g, -b_g]` in the index and the query `[q, 1]`, search is as before (`with_bias`, `append_ones`).

| here | paper |
|---|---|
| bank | reference database of queries |
| k, alpha | 128 and 0.75, chosen by a search on held-out queries |

Departures from the authors' code: none in the numbers. If `k` exceeds the bank, all of it counts.
Without embeddings: `nnn(similarity, bank)`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.methods._bank import RequiredBank
from zeroshot.methods._protocols import Output
from zeroshot.methods.ensemble import Ensemble


def bias(bank: Float[Tensor, "b g"], k: int = 128, alpha: float = 0.75) -> Float[Tensor, " g"]:
    """(1): a share of the mean of the `k` largest entries of each column."""
    return alpha * bank.topk(min(k, len(bank)), dim=0).values.mean(0)


def nnn(
    similarity: Float[Tensor, "q g"],
    bank: Float[Tensor, "b g"],
    k: int = 128,
    alpha: float = 0.75,
) -> Float[Tensor, "q g"]:
    """Similarities less the bias of each column."""
    return similarity - bias(bank, k, alpha)  # (2)


def with_bias(
    gallery: Float[Tensor, "g d"], bias: Float[Tensor, " g"]
) -> Float[Tensor, "g d_plus_1"]:
    """Embeddings for an index of inner products: the bias is one more channel."""
    return torch.cat([gallery, -bias[:, None]], dim=1)


def append_ones(queries: Float[Tensor, "q d"]) -> Float[Tensor, "q d_plus_1"]:
    """Queries for an index of embeddings `with_bias`."""
    return torch.cat([queries, torch.ones_like(queries[:, :1])], dim=1)


@dataclass(frozen=True)
class NNN(RequiredBank):
    """Zero-shot cosines less a bias per class."""

    k: int = 128
    """nearest images of the bank that count"""
    alpha: float = 0.75
    """share of their mean that is subtracted"""

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
        return nnn(images @ classifier.T, bank @ classifier.T, self.k, self.alpha)
