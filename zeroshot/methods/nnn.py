"""NNN: each item of a gallery gives back what its nearest queries would lend to anyone.

Chowdhury et al. 2024, "Nearest Neighbor Normalization Improves Multimodal Retrieval", EMNLP,
arXiv:2410.24114; authors' code: multimodal-interpretability/nnn (MIT).

    b_g      = alpha * mean of the k largest s_bg over the bank
    score_qg = s_qg - b_g

The correction is one number per item, so that it fits into an index of inner products: with the row
`[g, -b_g]` in the index and the query `[q, 1]`, search is as before (`with_bias`, `append_ones`).

| here | paper |
|---|---|
| bank | reference database of queries |
| k, alpha | 128 and 0.75, chosen by a search on held-out queries |

Departures from the authors' code: none in the numbers. `k` may exceed the bank, which then counts
as a whole. Without embeddings: `nnn(similarity, bank)`.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods._protocols import Output
from zeroshot.methods.ensemble import Ensemble


def bias(bank: Float[Tensor, "b g"], k: int = 128, alpha: float = 0.75) -> Float[Tensor, " g"]:
    """What to subtract from each column: a share of the mean of its `k` largest entries."""
    return alpha * bank.topk(min(k, len(bank)), dim=0).values.mean(0)


def nnn(
    similarity: Float[Tensor, "q g"],
    bank: Float[Tensor, "b g"],
    k: int = 128,
    alpha: float = 0.75,
) -> Float[Tensor, "q g"]:
    """Similarities less the bias of each column."""
    return similarity - bias(bank, k, alpha)


def with_bias(
    gallery: Float[Tensor, "g d"], bias: Float[Tensor, " g"]
) -> Float[Tensor, "g d_plus_1"]:
    """Rows for an index of inner products: the bias as one more channel."""
    return torch.cat([gallery, -bias[:, None]], dim=1)


def append_ones(queries: Float[Tensor, "q d"]) -> Float[Tensor, "q d_plus_1"]:
    """Queries for such an index."""
    return torch.cat([queries, torch.ones_like(queries[:, :1])], dim=1)


@dataclass(frozen=True)
class NNN:
    """Zero-shot cosines less a bias per class."""

    k: int = 128
    """nearest rows of the bank that count"""
    alpha: float = 0.75
    """share of their mean that is subtracted"""

    bank_: Float[Tensor, "b d"] | None = field(default=None, repr=False, compare=False)

    transductive: ClassVar[bool] = False

    @property
    def output(self) -> Output:
        """Shifted cosines."""
        return "similarity"

    def fit(self, bank: Float[Tensor, "b d"]) -> "NNN":
        """A copy that knows other queries.

        Raises:
            UserError: `k` below 1.
        """
        if self.k < 1:
            raise UserError(f"nnn: k={self.k}; k is at least 1")
        return replace(self, bank_=bank)

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> Float[Tensor, "n c"]:
        """Classes as the gallery, images as the queries."""
        if self.bank_ is None:
            raise RuntimeError("this NNN has no bank yet: call fit(bank)")
        classifier = Ensemble().classifier(texts, text_mask)
        return nnn(images @ classifier.T, self.bank_ @ classifier.T, self.k, self.alpha)
