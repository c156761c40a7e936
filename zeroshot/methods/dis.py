"""DIS (QB-Norm): the inverted softmax, for those queries only that a hub would catch.

Bogolin et al. 2022, "Cross Modal Retrieval with Querybank Normalisation", CVPR, arXiv:2112.12777;
authors' code: ioanacroi/qb-norm (MIT).

    active   = columns among the k best of some row of the bank
    score_qg = exp(beta s_qg) / sum_b exp(beta s_bg)      where the best column of row q is active
    score_qg = s_qg                                       else

Columns that no query of the bank comes near are no hubs, and a row whose best one is such stays as
it was. The bank holds queries of the same kind: texts for text-to-image search, images for
classification.

| here | paper |
|---|---|
| bank | querybank |
| active | gallery activation set |
| k, beta | 1 and 20 |

Departures from the authors' code. The quotient is taken as its logarithm over beta, in units of
similarity, so that all rows are on comparable scales and softmax is meaningful; each row is ranked
alike. `compat=True` gives theirs, where normalised rows and others are on different scales and only
comparisons within a row mean anything. Theirs writes into the caller's matrix. Without embeddings:
`dis(similarity, bank)`.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods._protocols import Output
from zeroshot.methods.ensemble import Ensemble
from zeroshot.methods.inverted_softmax import inverted_softmax


def active(bank: Float[Tensor, "b g"], k: int = 1) -> Bool[Tensor, " g"]:
    """Columns among the `k` largest of some row."""
    found = torch.zeros(bank.shape[1], dtype=torch.bool, device=bank.device)
    found[bank.topk(min(k, bank.shape[1]), dim=1).indices.flatten()] = True
    return found


def dis(
    similarity: Float[Tensor, "q g"],
    bank: Float[Tensor, "b g"],
    k: int = 1,
    beta: float = 20.0,
    compat: bool = False,
) -> Float[Tensor, "q g"]:
    """Similarities, re-scored in rows whose best column is active in the bank."""
    caught = active(bank, k)[similarity.argmax(1)]
    return torch.where(
        caught[:, None], inverted_softmax(similarity, bank, beta, compat), similarity
    )


@dataclass(frozen=True)
class DIS:
    """Zero-shot cosines with the hubs among the classes held down."""

    k: int = 1
    """a class is a hub candidate if it is among this many best of some row of the bank"""
    beta: float = 20.0
    """sharpness of the inverted softmax"""
    compat: bool = False
    """quotients instead of logarithms: rows on two scales, as in the authors' code"""

    bank_: Float[Tensor, "b d"] | None = field(default=None, repr=False, compare=False)

    transductive: ClassVar[bool] = False

    @property
    def output(self) -> Output:
        """Shifted cosines."""
        return "similarity"

    def fit(self, bank: Float[Tensor, "b d"]) -> "DIS":
        """A copy that knows other queries.

        Raises:
            UserError: `k` below 1.
        """
        if self.k < 1:
            raise UserError(f"dis: k={self.k}; k is at least 1")
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
            raise RuntimeError("this DIS has no bank yet: call fit(bank)")
        classifier = Ensemble().classifier(texts, text_mask)
        bank = self.bank_ @ classifier.T
        return dis(images @ classifier.T, bank, self.k, self.beta, self.compat)
