"""ASIF: two unimodal encoders coupled through a pile of image-text pairs.

Norelli et al. 2023, "ASIF: Coupled Data Turns Unimodal Models to Multimodal Without Training",
NeurIPS, arXiv:2210.01738; authors' code: github.com/noranta4/ASIF (MIT).

A picture is described by its similarities to the anchor pictures, a text by its similarities to
the anchor texts; both are lists over the same anchors and so can be compared.

    s     = A x                          similarities of unit rows, [a]
    r_i   = max(s_i, 0)^p  for the k largest s_i, else 0
    score = <r_image, r_text / |r_text|>

| here | paper |
|---|---|
| k | k, non-zero entries kept |
| p | p, value exponent |
| anchors | the multimodal dataset |

Departures from the authors' code. Kept similarities below zero are clamped before the power: their
driver does so by accident of a zero-filled buffer, their bare functions raise them to `p` with the
sign, so that an even `p` turns dissimilar into similar (scores change by up to 6.6 in the parity
data where k reaches such anchors, and not at all elsewhere). Any number of anchors works: theirs
drops the last anchor when the count is twice the block size plus one, and fails when the last
block is smaller than `k`. The class score is the mean over its prompts unless `templates="max"`,
which is theirs.
"""

from dataclasses import dataclass, field, replace
from itertools import product
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods import Output
from zeroshot.ops import hold_out, masked_mean, normalize, topk_stream


def relative(
    rows: Float[Tensor, "n d"], anchors: Float[Tensor, "a d"], k: int, p: float
) -> Float[Tensor, "n a"]:
    """Each unit row as its `k` largest similarities to the unit `anchors`, to the power `p`."""
    values, index = topk_stream(rows, anchors, k)
    described = rows.new_zeros(rows.shape[0], anchors.shape[0])
    return described.scatter_(1, index, values.clamp_min(0) ** p)


@dataclass(frozen=True)
class ASIF:
    """A coupling by relative representations; `fit` gives it its anchors.

    The defaults are the paper's, for a million anchors and more. Small sets want small `k` and
    `p`: about 50 and 2 for a thousand (`choose` finds them).
    """

    k: int = 800
    """anchors kept for each row"""
    p: float = 8.0
    """exponent of the similarities kept"""
    center: bool = False
    """subtract the anchors' mean from both sides first (useful where all similarities are high)"""
    templates: Literal["mean", "max"] = "mean"
    """how the scores of a class's prompts become one"""

    anchor_images_: Float[Tensor, "a d"] | None = field(default=None, repr=False, compare=False)
    anchor_texts_: Float[Tensor, "a e"] | None = field(default=None, repr=False, compare=False)
    image_mean_: Float[Tensor, " d"] | None = field(default=None, repr=False, compare=False)
    text_mean_: Float[Tensor, " e"] | None = field(default=None, repr=False, compare=False)

    transductive: ClassVar[bool] = False

    @property
    def output(self) -> Output:
        """A similarity, not a cosine: the image side is not normalised, as in the paper."""
        return "similarity"

    def fit(
        self, anchor_images: Float[Tensor, "a d"], anchor_texts: Float[Tensor, "_a e"]
    ) -> "ASIF":
        """A copy that knows these anchor pairs; row i of both belongs together.

        Raises:
            UserError: no anchors, or `k` or `p` out of range.
        """
        if self.k < 1 or self.p <= 0:
            raise UserError(f"k={self.k}, p={self.p}: k must be at least 1 and p above 0")
        if len(anchor_images) == 0 or len(anchor_images) != len(anchor_texts):
            raise UserError(
                f"{len(anchor_images)} anchor images and {len(anchor_texts)} anchor texts: "
                "asif needs as many of one as of the other, and at least one pair"
            )
        image_mean = anchor_images.mean(0) if self.center else None
        text_mean = anchor_texts.mean(0) if self.center else None
        return replace(
            self,
            anchor_images_=_direction(anchor_images, image_mean),
            anchor_texts_=_direction(anchor_texts, text_mean),
            image_mean_=image_mean,
            text_mean_=text_mean,
        )

    def map_images(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n a"]:
        """Relative representations of image rows, as long as the paper leaves them."""
        rows = _direction(images, self.image_mean_)
        return relative(rows, _fitted(self.anchor_images_), self.k, self.p)

    def map_texts(self, texts: Float[Tensor, "n e"]) -> Float[Tensor, "n a"]:
        """Relative representations of text rows, at unit length."""
        rows = _direction(texts, self.text_mean_)
        return normalize(relative(rows, _fitted(self.anchor_texts_), self.k, self.p))

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t e"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> Float[Tensor, "n c"]:
        """Similarities of relative representations, reduced over each class's prompts."""
        described = self.map_images(images)
        classes, prompts = texts.shape[:2]
        prompt_rows = self.map_texts(texts.flatten(0, 1)).view(classes, prompts, -1)  # [c, t, a]
        if self.templates == "mean":
            return described @ masked_mean(prompt_rows, text_mask).T
        similarity = torch.einsum("na,cta->nct", described, prompt_rows)
        if text_mask is not None:
            similarity = similarity.masked_fill(~text_mask, -torch.inf)
        return similarity.amax(-1)


def choose(anchor_images: Float[Tensor, "a d"], anchor_texts: Float[Tensor, "a e"]) -> ASIF:
    """An unfitted ASIF whose `k`, `p` and `center` suit these pairs.

    Each choice is judged on pairs set aside (a fifth, 200 at most) by the mean reciprocal rank of
    a held-out picture's own text among the held-out texts. With fewer than 50 pairs there is
    nothing to judge by: all anchors, p=2.
    """
    test, train = hold_out(len(anchor_images))
    if len(test) < 10:
        return ASIF(k=max(1, len(anchor_images)), p=2.0)

    def quality(fitted: ASIF) -> float:
        similarity = fitted.map_images(anchor_images[test]) @ fitted.map_texts(anchor_texts[test]).T
        rank = (similarity > similarity.diagonal()[:, None]).sum(1) + 1
        return float((1 / rank).mean())

    neighbours = [k for k in (12, 25, 50, 100, 200, 400, 800) if k <= len(train)]
    best = max(
        (
            replace(fitted, k=k, p=p)
            for center in (False, True)
            for fitted in [ASIF(center=center).fit(anchor_images[train], anchor_texts[train])]
            for k, p in product(neighbours, (1.0, 2.0, 4.0, 8.0))
        ),
        key=quality,
    )
    return ASIF(k=best.k, p=best.p, center=best.center)


def _direction(rows: Float[Tensor, "n d"], mean: Float[Tensor, " d"] | None) -> Tensor:
    """Unit rows, seen from `mean`."""
    return normalize(rows if mean is None else rows - mean)


def _fitted(learned: Tensor | None) -> Tensor:
    if learned is None:
        raise RuntimeError("this ASIF has no anchors yet: call fit(anchor_images, anchor_texts)")
    return learned
