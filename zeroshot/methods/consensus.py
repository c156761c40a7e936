"""Consensus: of the captions that fit a picture, the one that most of the others agree with.

Devlin et al. 2015, "Exploring Nearest Neighbor Approaches for Image Captioning", arXiv:1505.04467;
the choice is minimum Bayes risk with CIDEr as its gain (Vedantam et al. 2015, arXiv:1411.5726).

    w_j        = softmax over the nearest captions of sharpness * logit_scale * cos(text_j, x)
    gain(i)    = sum over j != i of w_j CIDEr(text_i, text_j)
    caption(x) = argmax_i gain(i) + relevance * logit_scale * cos(text_i, x)

A nearest caption often tells of what is only in its own picture; what many near ones say is safe.
Departures: there neighbours are pictures, and all captions of the near ones vote alike; here an
image-text encoder finds captions, they vote by how well they fit, and the winner's own fit counts
too. CIDEr's word frequencies are the pool's, each caption a document, and counts are not clipped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods import Caption, Pool
from zeroshot.methods._risk import distinct, expected_cider, retrieve
from zeroshot.models.base import DualEncoder, LanguageModel


@dataclass(frozen=True)
class Consensus:
    """The caption of the pool that the captions near the picture expect."""

    neighbours: int = 50
    """captions that are candidates, and that vote"""
    sharpness: float = 0.5
    """how much more the better fitting ones count, in units of the encoder's logit scale"""
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
        """One caption of `pool` per unit image row."""
        if prompts or trace:
            raise UserError("consensus generates nothing: it takes no prompt and leaves no trace")
        scale = encoder.logit_scale
        pool = distinct(pool)
        found = retrieve(images, pool, self.neighbours, self.sharpness * scale)
        captions = []
        for cosine, index, weights in zip(*found, strict=True):
            texts = [pool.texts[j] for j in index]
            gain = expected_cider(texts, texts, weights, pool.frequency)
            best = int((gain + self.relevance * scale * cosine.cpu()).argmax())
            captions.append(Caption(texts[best], float(cosine[best])))
        return captions
