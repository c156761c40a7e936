"""Composed search: an image and words, both of which a hit has to fit.

    product   (i - min i) (t - min t), each divided by its spread over the gallery

i and t are the cosines of a gallery image with the image and with the words of a query. The product
is the baseline that Psomas et al. 2025, "Instance-Level Composed Image Retrieval",
arXiv:2510.25387, find better than the sum on all their sets; authors' code: billpsomas/icir (MIT).

Departure: they multiply max(i, 0) max(t, 0). An encoder whose cosines of words and images are all
negative then has only zeros, and so has a subtracted term.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.ops import BLOCK
from zeroshot.ranking.exact import CELLS, Gallery, Hits


def product_scores(
    images: Float[Tensor, "q n"], texts: Float[Tensor, "q n"], zero: bool = False
) -> Float[Tensor, "q n"]:
    """The product of two kinds of cosines over a gallery, between 0 and 1.

    With `zero` negative ones become 0 instead, and nothing is scaled, as the authors do.
    """
    if zero:
        return images.clamp_min(0) * texts.clamp_min(0)
    return _spread(images) * _spread(texts)


def _spread(cosines: Float[Tensor, "q n"]) -> Float[Tensor, "q n"]:
    low, high = cosines.amin(1, keepdim=True), cosines.amax(1, keepdim=True)
    return torch.where(high > low, (cosines - low) / (high - low), 1.0)


def search_by_product(
    images: Float[Tensor, "q d"],
    texts: Float[Tensor, "q d"],
    gallery: Gallery,
    k: int,
    block: int = BLOCK,
) -> Hits:
    """The `min(k, n)` best of the gallery; its cosines are those with the sum of both."""
    if not len(gallery):
        none = torch.zeros(len(images), 0)
        return Hits(none.long(), none, none)
    if not (images.isfinite().all() and texts.isfinite().all()):
        raise UserError("a query is not finite and cannot be ranked")
    found = []
    size = max(1, CELLS // len(gallery))
    for i, t in zip(
        torch.split(images.double(), size), torch.split(texts.double(), size), strict=True
    ):
        pairs = [(i @ rows.double().T, t @ rows.double().T) for rows in gallery.blocks(block)]
        by_image, by_text = (torch.cat(parts, 1) for parts in zip(*pairs, strict=True))
        scores, index = (
            product_scores(by_image, by_text).float().sort(dim=1, descending=True, stable=True)
        )
        cosines = (by_image + by_text) / (i + t).norm(dim=1, keepdim=True).clamp_min(1e-12)
        best = index[:, :k]
        found.append((best, scores[:, :k], cosines.gather(1, best).float()))
    return Hits(*(torch.cat(parts) for parts in zip(*found, strict=True)))
