"""Images and captions in one search: one mean per modality (GR-CLIP).

Li et al. 2025, "Closing the Modality Gap for Mixed Modality Search", arXiv:2507.19054; authors'
code: yuhui-zh15/MixedModalitySearch (no licence file; this is written from the equations).

    text        norm(t - m_t)
    image       norm(v - m_v)
    both        norm(w (t - m_t) + (1 - w) (v - m_v))
    query       as the kind that it is; a sum of terms is centred term by term

Texts are nearer to texts than to any image, so without the means a text query finds captions only.
The authors take the means, also one of queries, from other sets. Here they are those of the gallery
that is searched, and a query of words has the mean of captions.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.ops import normalize

FEWEST = 20
"""Rows of which a mean is taken."""


@dataclass(frozen=True, eq=False)
class ModalityMeans:
    """The mean of the unit rows of images, and that of captions."""

    images: Float[Tensor, " d"]
    texts: Float[Tensor, " d"]

    def rows(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "n d"],
        weight: Float[Tensor, " n"],
    ) -> Float[Tensor, "n d"]:
        """Unit rows of images and their texts: 0 is the image alone, 1 the text alone."""
        w = weight[:, None]
        return normalize(w * (texts - self.texts) + (1 - w) * (images - self.images))


@dataclass(frozen=True, eq=False)
class QueryTerms:
    """Queries by modality: the signed sums of unit rows of their images, and of their texts.

    `signs [q 2]` are the sums of the signs of a query's image terms and of its text terms.
    """

    images: Float[Tensor, "q d"]
    texts: Float[Tensor, "q d"]
    signs: Float[Tensor, "q 2"]
    in_order: Float[Tensor, "q d"] | None = None
    """The sums of all terms, added in the query's order, which decides the last digit."""

    @property
    def total(self) -> Float[Tensor, "q d"]:
        """The sums of all terms."""
        return self.images + self.texts if self.in_order is None else self.in_order

    def centred(self, means: ModalityMeans) -> "QueryTerms":
        """Each term minus the mean of its modality."""
        images, texts = self.signs[:, :1] * means.images, self.signs[:, 1:] * means.texts
        return QueryTerms(self.images - images, self.texts - texts, self.signs)


def mean_of_kind(kind: str, total: Float[Tensor, " d"], count: int) -> Float[Tensor, " d"]:
    """The mean of `count` rows with this sum; UserError if they are too few."""
    if count < FEWEST:
        raise UserError(
            f"--caption-weight centres {kind} by their mean, and {count} are too few for one: "
            f"{FEWEST} are needed at least, 100 or more are better"
        )
    return total / count
