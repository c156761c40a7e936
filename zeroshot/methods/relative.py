"""Relative representations, plain: a row is its similarities to all anchors.

Moschella et al. 2023, "Relative representations enable zero-shot latent space communication",
ICLR, arXiv:2209.15430; authors' code: github.com/lucmos/relreps and github.com/Flegyas/latentis
(MIT, Apache-2.0); between an image and a text encoder as in Maniparambil et al., CVPR 2024.

    r(x) = [sim(x, a_1) ... sim(x, a_A)],  each side on its own half of the anchor pairs
    score = cos(r_image, r_text)

| projection | sim(x, a) |
|---|---|
| cosine | <x, a> of unit rows |
| inner | <x, a> / sqrt(d) of the rows as they are |
| angular | arccos(<x, a>) / pi of unit rows, an angle and not a likeness |
| basis_change | coefficients c of unit rows, smallest that solve sum_i c_i a_i = x |

ASIF is this with only the nearest anchors, and a power. Without centring the scores of encoders
whose rows all point one way say little: on the photographs of docs/couplings.md R@1 is 0.01
without and 0.25 with `center`.

Departures, none of which changes a score: where sim is linear in x, so is r, and its products are
kept in an orthonormal basis of the columns of both sides' anchors: rows have `d + e` numbers at
most, however many anchors there are. `center` is ours.
"""

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot.methods import Output
from zeroshot.methods._pairs import Dense, Moments, Rows, Templates, check_rows, dense_room, fitted
from zeroshot.ops import normalize

Projection = Literal["cosine", "inner", "angular", "basis_change"]


def relative(
    rows: Float[Tensor, "n d"], anchors: Float[Tensor, "a d"], projection: Projection = "cosine"
) -> Float[Tensor, "n a"]:
    """Each row as its similarities to all anchors, written out."""
    if projection == "inner":
        return rows @ anchors.T / math.sqrt(rows.shape[1])
    rows, anchors = normalize(rows), normalize(anchors)
    if projection == "basis_change":
        solve: Tensor = torch.linalg.pinv(anchors)
        return rows @ solve
    cosine = rows @ anchors.T
    return cosine.clamp(-1, 1).arccos() / math.pi if projection == "angular" else cosine


@dataclass(frozen=True)
class Relative(Dense):
    """The plainest coupling: nothing is chosen, nothing is solved."""

    projection: Projection = "cosine"
    """what the similarity to an anchor is: see the table"""
    center: bool = False
    """subtract the anchors' mean from both sides first"""
    templates: Templates = "mean"
    """how the scores of a class's prompts become one"""

    anchor_images_: Rows | None = field(default=None, repr=False, compare=False)
    anchor_texts_: Rows | None = field(default=None, repr=False, compare=False)
    image_map_: Float[Tensor, "d m"] | None = field(default=None, repr=False, compare=False)
    text_map_: Float[Tensor, "e m"] | None = field(default=None, repr=False, compare=False)

    transductive: ClassVar[bool] = False

    @property
    def output(self) -> Output:
        """A cosine."""
        return "similarity"

    def _learn(self, images: Rows, texts: Rows) -> "Relative":
        images, texts = (replace(rows, centred=self.center) for rows in (images, texts))
        learned = replace(self, anchor_images_=images, anchor_texts_=texts)
        if self.projection == "angular":
            return learned
        moments = Moments.of(images, texts, directed=self.projection != "inner")
        xx, yy, xy = moments.xx, moments.yy, moments.xy
        if self.projection == "basis_change":
            left, right = (torch.linalg.pinv(side, hermitian=True) for side in (xx, yy))
            xx, yy, xy = left, right, left @ xy @ right
        # [P Q]' [P Q] of both sides' maps to anchors, as F F': rows of F are what products need
        gram = torch.cat([torch.cat([xx, xy], dim=1), torch.cat([xy.T, yy], dim=1)])
        values, vectors = torch.linalg.eigh(gram)
        kept = values > values.amax() * len(values) * torch.finfo(values.dtype).eps
        root = vectors[:, kept] * values[kept].sqrt()  # [d + e, m]
        return replace(learned, image_map_=root[: len(xx)], text_map_=root[len(xx) :])

    def map_images(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
        """Relative rows at unit length, in the short basis (angular: over the anchors)."""
        check_rows("images", images, self._images.width)
        return self._map(images, self._images, self.image_map_)

    def map_texts(self, texts: Float[Tensor, "n e"]) -> Float[Tensor, "n m"]:
        """As `map_images`, for texts."""
        check_rows("texts", texts, self._texts.width)
        return self._map(texts, self._texts, self.text_map_)

    def _map(self, rows: Tensor, anchors: Rows, short: Tensor | None) -> Tensor:
        if self.projection != "inner":
            rows = anchors.directed(rows)
        elif self.center:
            rows = rows - anchors.mean.to(rows.dtype)
        if self.projection != "angular":
            return normalize(rows @ fitted(self, short).to(rows.dtype))
        dense_room(len(rows), len(anchors), rows.element_size())
        blocks = [relative(rows, block, "angular") for block in anchors.blocks(8192)]
        return normalize(torch.cat(blocks, dim=1))
