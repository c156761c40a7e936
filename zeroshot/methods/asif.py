"""ASIF: two unimodal encoders coupled through a set of image-text pairs.

Norelli et al. 2023, "ASIF: Coupled Data Turns Unimodal Models to Multimodal Without Training",
NeurIPS, arXiv:2210.01738; authors' code: github.com/noranta4/ASIF (MIT).

An image is described by its similarities to the anchor images, a text by its similarities to the
anchor texts; both are lists over the same anchors and so can be compared.

    s     = A x                          similarities of unit vectors, [a]     (1)
    r_i   = max(s_i, 0)^p  for the k largest s_i, else 0                       (2)
    score = <r_image, r_text / |r_text|>                                       (3)

Guided decoding (`match`, ours) reads a text against the anchors of the picture alone, for speed:

    t_i   = max(b_i y, 0)^p          b_i anchor text i, y the text, unit rows
    score = sum_{i in N} r_i t_i / l              N: the k largest r_i; r at unit length
    l^2   = sum_i t_i^2                           of all anchors, or of more than 4096
    l^2   = sum_{i in N} t_i^2 + (a - k) mean_{i in S} t_i^2
                                                  S: floor(j a / 4096), without N

| here | paper |
|---|---|
| k | k, non-zero entries kept |
| p | p, value exponent |
| anchors | the multimodal dataset |
| SAMPLE | none; 4096, the size of S |

Departures from the authors' code. Kept similarities below zero are clamped before the power: their
driver does so by accident of a zero-filled buffer, their bare functions raise them to `p` with the
sign, so that an even `p` turns dissimilar into similar (scores change by up to 6.6 in the parity
data where k reaches such anchors, and not at all elsewhere). Any number of anchors works: theirs
drops the last anchor when the count is twice the block size plus one, and fails when the last
block is smaller than `k`. The class score is the mean over its prompts unless `templates="max"`,
which is theirs.

Anchors pass in blocks and `r` is sparse, so memory does not grow with `n x a`. An edit
(`add`, `remove`) copies no anchor and gives what a rebuild gives, since nothing else is learned.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods._anchor_checks import check_embeddings
from zeroshot.methods._anchor_index import AnchorIndex
from zeroshot.methods._anchor_matrix import AnchorMatrix
from zeroshot.methods._anchored_coupling import AnchoredCoupling
from zeroshot.methods._joint_space import TemplateMode
from zeroshot.methods._protocols import Explanation, Output
from zeroshot.methods._relative_representations import RelativeRepresentations, relative_scores
from zeroshot.ops import masked_mean, normalize

SAMPLE = 4096
"""Anchors that a text's length is estimated on in `match`."""


@dataclass(frozen=True)
class ASIF(AnchoredCoupling):
    """A coupling by relative representations; `fit` gives it its anchors.

    The defaults are the paper's, for a million anchors and more. A thousand anchors want `p=2` and,
    with `center`, a `k` of 200 to all of them; without it a `k` of 100 (`auto` finds them).
    """

    k: int = 800
    """nearest anchors of an image or text that count"""
    p: float = 8.0
    """exponent of their similarities"""
    center: bool = False
    """subtract the anchors' mean from both sides first (useful where all similarities are high)"""
    templates: TemplateMode = "mean"
    """how the scores of a class's prompts become one"""

    index: Literal["exact", "ivf"] = "exact"
    """search among the anchors: exact, or approximate in cells (extra `index`)"""

    image_index_: AnchorIndex | None = field(default=None, repr=False, compare=False)
    text_index_: AnchorIndex | None = field(default=None, repr=False, compare=False)

    transductive: ClassVar[bool] = False

    @property
    def output(self) -> Output:
        """A similarity, not a cosine: the image side is not normalised, as in the paper."""
        return "similarity"

    def _learn(self, images: AnchorMatrix, texts: AnchorMatrix) -> "ASIF":
        if self.k < 1 or self.p <= 0:
            raise UserError(f"k={self.k}, p={self.p}: k must be at least 1 and p above 0")
        images, texts = (replace(side, centred=self.center) for side in (images, texts))
        learned = replace(
            self, anchor_images_=images, anchor_texts_=texts, image_index_=None, text_index_=None
        )
        if self.index == "exact":
            return learned
        return replace(
            learned,
            image_index_=AnchorIndex.build("images", images, self.k),
            text_index_=AnchorIndex.build("texts", texts, self.k),
        )

    def _learn_edited(self, images: AnchorMatrix, texts: AnchorMatrix) -> "ASIF":
        """An index does not follow an edit: after one the search is exact."""
        return replace(self, index="exact")._learn(images, texts)

    def map_images(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n a"]:
        """Relative representations of images in full, not normalized, as in the paper."""
        return self.relative_images(images).dense()

    def map_texts(self, texts: Float[Tensor, "n e"]) -> Float[Tensor, "n a"]:
        """Relative representations of texts in full, at unit length."""
        return self.relative_texts(texts).dense()

    def relative_images(self, images: Float[Tensor, "n d"]) -> RelativeRepresentations:
        """As `map_images`, sparse."""
        check_embeddings("images", images, self._images.width)
        return self._relative(images, self._images, self.image_index_)

    def relative_texts(self, texts: Float[Tensor, "n e"]) -> RelativeRepresentations:
        """As `map_texts`, sparse."""
        check_embeddings("texts", texts, self._texts.width)
        return self._relative(texts, self._texts, self.text_index_).normalized()

    def _relative(
        self, embeddings: Float[Tensor, "n d"], anchors: AnchorMatrix, index: AnchorIndex | None
    ) -> RelativeRepresentations:
        """Equations (1) and (2)."""
        x = anchors.center_and_normalize(embeddings)
        if index is None:
            return RelativeRepresentations.from_embeddings(x, anchors, self.k, self.p)
        similar = index.topk(x, self.k)
        return RelativeRepresentations.from_similarities(*similar, len(anchors), self.p)

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t e"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> Float[Tensor, "n c"]:
        """Similarities of relative representations, reduced over each class's prompts."""
        return self._scores(self.relative_images(images), texts, text_mask)

    def cosines(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t e"],
        text_mask: Bool[Tensor, "c t"] | None = None,
    ) -> Float[Tensor, "n c"]:
        """As `scores`, with the image side at unit length too."""
        return self._scores(self.relative_images(images).normalized(), texts, text_mask)

    def _scores(
        self,
        images: RelativeRepresentations,
        texts: Float[Tensor, "c t e"],
        text_mask: Bool[Tensor, "c t"] | None,
    ) -> Float[Tensor, "n c"]:
        mask = torch.ones(texts.shape[:2], dtype=torch.bool) if text_mask is None else text_mask
        prompts = self.relative_texts(texts[mask])
        return relative_scores(images, prompts, mask, self.templates)  # (3)

    def match(
        self, images: Float[Tensor, "b m"], texts: Float[Tensor, "b k e"]
    ) -> Float[Tensor, "b k"]:
        """Near-cosines of joint image rows with `k` text rows each, for guided decoding.

        Only the image's own anchors are looked at, `sum_i r_i max(0, <t, a_i>)^p`, over the length
        that the text's similarities to *all* anchors have, none of them dropped (from a sample of
        the anchors beyond its own, where there are many). Without that length, texts that
        resemble everything win: docs/couplings.md has the figures.
        """
        held, index = normalize(images).topk(min(self.k, images.shape[1]), dim=1)  # [b, i]
        rows = self._texts.center_and_normalize(texts.flatten(0, 1)).view_as(texts)
        anchors = self._texts.take(index.flatten()).view(*index.shape, self._texts.width)
        similar = (rows @ anchors.transpose(1, 2)).clamp_min(0) ** self.p  # [b, k, i]
        square = self._square_lengths(rows, similar, index)
        length = torch.where(square > 0, square.sqrt(), 1)
        return (similar @ held[:, :, None])[..., 0] / length

    def _square_lengths(
        self,
        rows: Float[Tensor, "b k e"],
        similar: Float[Tensor, "b k i"],
        own: Int[Tensor, "b i"],
    ) -> Float[Tensor, "b k"]:
        """Of the relative rows of texts over all anchors."""
        count = len(self._texts)
        sampled = torch.arange(min(count, SAMPLE), device=rows.device) * count // min(count, SAMPLE)
        power = (rows @ self._texts.take(sampled).T).clamp_min(0) ** (2 * self.p)  # [b, k, s]
        if count <= SAMPLE:
            return power.sum(-1)
        others = torch.stack([~torch.isin(sampled, places) for places in own])  # [b, s]
        mean = masked_mean(power.transpose(1, 2), others)
        return (similar**2).sum(-1) + (count - own.shape[1]) * mean

    def explain(
        self, image: Float[Tensor, " d"], texts: Float[Tensor, "t e"], count: int = 5
    ) -> Explanation:
        """The anchors that contribute to the score of an image for a class with these prompts.

        The share of anchor i is `r_image_i` times the mean over prompts (or, with
        `templates="max"`, the best prompt's) `r_text_i`.
        """
        relative = self.relative_images(image[None])
        prompts = self.relative_texts(texts)
        products = relative.matrix().multiply(prompts.matrix()).tocsr()  # [t, a]
        if self.templates == "mean":
            shares = products.mean(axis=0)
        else:
            shares = products[products.sum(axis=1).argmax()].todense()
        return Explanation.from_shares(torch.from_numpy(np.asarray(shares)[0]), count)
