"""CSLS: similarity relative to how crowded both neighbourhoods are.

Conneau et al. 2018, "Word Translation Without Parallel Data", ICLR, arXiv:1710.04087; authors'
code: facebookresearch/MUSE (CC BY-NC, not used here).

    score_qg = 2 s_qg - r_q - r_g       r: mean of the k largest similarities to the other side

`r_q` is the same along a row and decides nothing there; it matters where rows are compared. `r_g`
runs over the queries themselves or, once fitted, over a bank of others.

| here | paper |
|---|---|
| k | K, 10 |

Departures from the authors' code: none in the numbers; theirs always takes `r_g` over the queries
that are scored. `k` may exceed a side, which then counts as a whole. Without embeddings:
`csls(similarity, bank)`. As a classifier without a bank it warns where few of the classes seem
present: their neighbourhoods are then crowded for a good reason.
"""

from dataclasses import dataclass, field, replace

from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods._prior import warn_if_few
from zeroshot.methods._protocols import Output
from zeroshot.methods.ensemble import Ensemble


def crowding(similarity: Float[Tensor, "q g"], k: int, dim: int) -> Tensor:
    """Mean of the `k` largest entries along `dim`, which is kept."""
    return similarity.topk(min(k, similarity.shape[dim]), dim=dim).values.mean(dim, keepdim=True)


def csls(
    similarity: Float[Tensor, "q g"], bank: Float[Tensor, "b g"] | None = None, k: int = 10
) -> Float[Tensor, "q g"]:
    """Similarities in relation to both neighbourhoods."""
    of_gallery = crowding(similarity if bank is None else bank, k, dim=0)
    return 2 * similarity - crowding(similarity, k, dim=1) - of_gallery


@dataclass(frozen=True)
class CSLS:
    """Zero-shot cosines in relation to how near everything is to a row and to a class."""

    k: int = 10
    """neighbours on either side"""

    bank_: Float[Tensor, "b d"] | None = field(default=None, repr=False, compare=False)

    @property
    def transductive(self) -> bool:
        """Unless there is a bank."""
        return self.bank_ is None

    @property
    def output(self) -> Output:
        """Differences of cosines."""
        return "similarity"

    def fit(self, bank: Float[Tensor, "b d"] | None = None) -> "CSLS":
        """A copy that measures the classes' neighbourhoods in unlabelled rows."""
        return replace(self, bank_=bank)

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
