"""CSLS: similarity relative to the density of both neighbourhoods.

Conneau et al. 2018, "Word Translation Without Parallel Data", ICLR, arXiv:1710.04087; authors'
code: facebookresearch/MUSE (CC BY-NC, not used here).

    score_qg = 2 s_qg - r_q - r_g       r: mean of the k largest similarities to the other side

`r_q` is constant along a row and does not change its ranking; it matters if scores of several
queries are compared. `r_g` runs over the queries themselves or, once fitted, over a bank of others.

| here | paper |
|---|---|
| k | K, 10 |

Departures from the authors' code: none in the numbers; theirs always takes `r_g` over the queries
that are scored. If `k` exceeds a side, all of it counts. Without embeddings:
`csls(similarity, bank)`. As a classifier without a bank it warns if few of the classes seem
present: their neighbourhoods are then dense because the images belong there.
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods._bank import OptionalBank
from zeroshot.methods._prior import warn_if_few
from zeroshot.methods._protocols import Output
from zeroshot.methods.ensemble import Ensemble


def crowding(similarity: Float[Tensor, "q g"], k: int, dim: int) -> Tensor:
    """Mean of the `k` largest entries along `dim`, which becomes 1."""
    return similarity.topk(min(k, similarity.shape[dim]), dim=dim).values.mean(dim, keepdim=True)


def csls(
    similarity: Float[Tensor, "q g"], bank: Float[Tensor, "b g"] | None = None, k: int = 10
) -> Float[Tensor, "q g"]:
    """Similarities relative to both neighbourhoods."""
    r_g = crowding(similarity if bank is None else bank, k, dim=0)
    return 2 * similarity - crowding(similarity, k, dim=1) - r_g


@dataclass(frozen=True)
class CSLS(OptionalBank):
    """Zero-shot cosines relative to the neighbourhoods of image and class."""

    k: int = 10
    """neighbours on either side"""

    @property
    def output(self) -> Output:
        """Differences of cosines."""
        return "similarity"

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> Float[Tensor, "n c"]:
        """Classes as the gallery, images as the queries."""
        if self.k < 1:
            raise UserError(f"csls: k={self.k}; k is at least 1")
        classifier = Ensemble().classifier(texts, text_mask)
        similarity = images @ classifier.T
        if self.bank_ is None:
            warn_if_few("csls", logit_scale * similarity)
            return csls(similarity, None, self.k)
        return csls(similarity, self.bank_ @ classifier.T, self.k)
