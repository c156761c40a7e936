"""Relative representations, plain: an embedding as its similarities to all anchors.

Moschella et al. 2023, "Relative representations enable zero-shot latent space communication",
ICLR, arXiv:2209.15430; authors' code: github.com/lucmos/relreps and github.com/Flegyas/latentis
(MIT, Apache-2.0); between an image and a text encoder as in Maniparambil et al., CVPR 2024.

    r(x) = [sim(x, a_1) ... sim(x, a_A)],  each side on its own half of the anchor pairs     (1)
    score = cos(r_image, r_text)                                                             (2)

| projection | sim(x, a) |
|---|---|
| cosine | <x, a> of unit vectors |
| inner | <x, a> / sqrt(d) of the embeddings as they are |
| angular | arccos(<x, a>) / pi of unit vectors, an angle and not a similarity |
| basis_change | coefficients c of unit vectors, smallest that solve sum_i c_i a_i = x |

ASIF is this with only the nearest anchors, and a power. If all embeddings of an encoder point in
similar directions, scores say little without `center`: on the photographs of docs/couplings.md R@1
is 0.01 without and 0.21 with it.

Departures, none of which changes a score: if sim is linear in x, so is r, and r is written in an
orthonormal basis of the columns of both sides' anchors. It then has `d + e` numbers at most,
however many anchors there are. `center` is ours.
"""

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot.methods._anchor_checks import check_embeddings
from zeroshot.methods._anchor_matrix import BLOCK, AnchorMatrix
from zeroshot.methods._anchored_coupling import AnchoredCoupling, fitted
from zeroshot.methods._canonical_correlation import Moments
from zeroshot.methods._joint_space import JointSpace, TemplateMode
from zeroshot.methods._protocols import Output
from zeroshot.methods._relative_representations import check_dense_size
from zeroshot.ops import normalize

Projection = Literal["cosine", "inner", "angular", "basis_change"]


def relative(
    embeddings: Float[Tensor, "n d"],
    anchors: Float[Tensor, "a d"],
    projection: Projection = "cosine",
) -> Float[Tensor, "n a"]:
    """Equation (1): each embedding as its similarities to all anchors, written out."""
    if projection == "inner":
        return embeddings @ anchors.T / math.sqrt(embeddings.shape[1])
    x, anchors = normalize(embeddings), normalize(anchors)
    if projection == "basis_change":
        inverse: Tensor = torch.linalg.pinv(anchors)
        return x @ inverse
    cosine = x @ anchors.T
    return cosine.clamp(-1, 1).arccos() / math.pi if projection == "angular" else cosine


@dataclass(frozen=True)
class Relative(AnchoredCoupling, JointSpace):
    """The plainest coupling: nothing is chosen, nothing is solved."""

    projection: Projection = "cosine"
    """what the similarity to an anchor is: see the table"""
    center: bool = False
    """subtract the anchors' mean from both sides first"""
    templates: TemplateMode = "mean"
    """how the scores of a class's prompts become one"""

    image_map_: Float[Tensor, "d m"] | None = field(default=None, repr=False, compare=False)
    text_map_: Float[Tensor, "e m"] | None = field(default=None, repr=False, compare=False)

    transductive: ClassVar[bool] = False

    @property
    def output(self) -> Output:
        """A cosine."""
        return "similarity"

    def _learn(self, images: AnchorMatrix, texts: AnchorMatrix) -> "Relative":
        images, texts = (replace(side, centred=self.center) for side in (images, texts))
        learned = replace(self, anchor_images_=images, anchor_texts_=texts)
        if self.projection == "angular":
            return learned
        moments = Moments.from_pairs(images, texts, normalized=self.projection != "inner")
        xx, yy, xy = moments.xx, moments.yy, moments.xy
        if self.projection == "basis_change":
            left, right = (torch.linalg.pinv(side, hermitian=True) for side in (xx, yy))
            xx, yy, xy = left, right, left @ xy @ right
        # [P Q]' [P Q] of both sides' maps to anchors is F F', so products need only the rows of F
        gram = torch.cat([torch.cat([xx, xy], dim=1), torch.cat([xy.T, yy], dim=1)])
        values, vectors = torch.linalg.eigh(gram)
        positive = values > values.amax() * len(values) * torch.finfo(values.dtype).eps
        root = vectors[:, positive] * values[positive].sqrt()  # [d + e, m]
        return replace(learned, image_map_=root[: len(xx)], text_map_=root[len(xx) :])

    def map_images(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
        """`r` at unit length, in the short basis (angular: over the anchors)."""
        check_embeddings("images", images, self._images.width)
        return self._map(images, self._images, self.image_map_)

    def map_texts(self, texts: Float[Tensor, "n e"]) -> Float[Tensor, "n m"]:
        """As `map_images`, for texts."""
        check_embeddings("texts", texts, self._texts.width)
        return self._map(texts, self._texts, self.text_map_)

    def _map(self, x: Tensor, anchors: AnchorMatrix, basis: Tensor | None) -> Tensor:
        if self.projection != "inner":
            x = anchors.center_and_normalize(x)
        elif self.center:
            x = x - anchors.mean.to(x.dtype)
        if self.projection != "angular":
            return normalize(x @ fitted(self, basis).to(x.dtype))
        check_dense_size(len(x), len(anchors), x.element_size())
        blocks = [relative(x, block, "angular") for block in anchors.blocks(BLOCK)]  # (1)
        return normalize(torch.cat(blocks, dim=1))
