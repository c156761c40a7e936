"""Consensus: of the captions that fit an image, the one that most of the others agree with.

Devlin et al. 2015, "Exploring Nearest Neighbor Approaches for Image Captioning", arXiv:1505.04467;
the choice is minimum Bayes risk with CIDEr as its gain (Vedantam et al. 2015, arXiv:1411.5726).

    w_j        = softmax over the nearest captions of sharpness * logit_scale * cos(text_j, x)  (1)
    gain(i)    = sum over j != i of w_j CIDEr(text_i, text_j)                                   (2)
    caption(x) = argmax_i gain(i) + relevance * logit_scale * cos(text_i, x)                    (3)

The nearest caption often mentions a detail of its own image only; what many near captions say is
more likely true. Departures: in the paper the neighbours are images, and all captions of the
nearest images vote alike. Here an image-text encoder retrieves captions, they vote by how well they
fit, and the winner's own fit counts too. CIDEr's word frequencies are the pool's, each caption a
document, and counts are not clipped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods._caption_pool import Pool, retrieve, unique_captions
from zeroshot.methods._door import Method
from zeroshot.methods._protocols import Caption
from zeroshot.methods._risk import expected_cider
from zeroshot.models.base import DualEncoder, LanguageModel


@dataclass(frozen=True)
class Consensus(Method):
    """The caption of the pool that agrees most with the captions nearest to the image."""

    neighbours: int = 50
    """nearest captions, which are the candidates and vote"""
    sharpness: float = 0.5
    """how much more better fitting captions count, in units of the encoder's logit scale"""
    relevance: float = 0.05
    """weight of the candidate's own fit, per logit, against CIDEr"""

    needs: ClassVar[frozenset[str]] = frozenset({"pool"})
    takes: ClassVar[frozenset[str]] = frozenset()

    def caption(
        self,
        images: Float[Tensor, "n d"],
        encoder: DualEncoder,
        *,
        language_model: LanguageModel | None = None,
        pool: Pool | None = None,
        prompts: Sequence[str] | None = None,
        trace: bool = False,
    ) -> list[Caption]:
        """One caption of `pool` per unit image embedding."""
        if prompts or trace:
            raise UserError("consensus generates nothing: it takes no prompt and leaves no trace")
        scale = encoder.logit_scale
        pool = unique_captions(pool)
        captions = []
        for retrieved in retrieve(images, pool, self.neighbours, self.sharpness * scale):  # (1)
            texts, cosine = retrieved.texts, retrieved.cosine
            gain = expected_cider(texts, texts, retrieved.weights, pool.frequency)  # (2)
            best = int((gain + self.relevance * scale * cosine).argmax())  # (3)
            captions.append(Caption(texts[best], float(cosine[best])))
        return captions
