"""Procrustes: one linear map, mostly a rotation, from the image space into the text space.

Maiorca et al. 2023, "Latent Space Translation via Semantic Alignment", NeurIPS, arXiv:2311.00664;
authors' code: github.com/Flegyas/latentis (Apache-2.0); `orthogonal` as in
github.com/dominik-schnaus/unpaired-rosetta, `linear_no_intercept` as in
github.com/mayug/0-shot-llm-vision.

    W = polar(X'Y) = U V'  from  U S V' = svd(X'Y)       X, Y: anchors, prepared      (1)
    score = (x W) . y                                                                 (2)

| variant | embeddings are | W | the score |
|---|---|---|---|
| orthogonal | centred by the anchors' mean, at unit length | polar(X'Y) | x W . y |
| procrustes | z-scored by the anchors | polar(X'Y) | cosine with y in y's raw space |
| linear | as orthogonal | least squares | cosine |
| l_ortho | as orthogonal | polar(least squares) | cosine |
| linear_no_intercept | as they are | least squares | cosine |

Departures: if the widths differ the authors pad with zeros, which changes no translated embedding;
we do not pad. Their `affine`, 300 steps of Adam towards a least-squares map, is left out: it is
training, and its limit is `linear` with an intercept.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot.methods._anchor_checks import check_embeddings
from zeroshot.methods._anchor_matrix import AnchorMatrix
from zeroshot.methods._anchored_coupling import AnchoredCoupling, fitted
from zeroshot.methods._canonical_correlation import Moments
from zeroshot.methods._joint_space import JointSpace, TemplateMode
from zeroshot.methods._protocols import Output
from zeroshot.ops import normalize


@dataclass(frozen=True)
class Procrustes(AnchoredCoupling, JointSpace):
    """A linear coupling with few or no options: useful from a handful of anchors on."""

    variant: Literal["orthogonal", "procrustes", "linear", "l_ortho", "linear_no_intercept"] = (
        "orthogonal"
    )
    """how embeddings are prepared and what is solved: see the table"""
    templates: TemplateMode = "mean"
    """how the scores of a class's prompts become one"""

    map_: Float[Tensor, "d e"] | None = field(default=None, repr=False, compare=False)
    image_mean_: Float[Tensor, " d"] | None = field(default=None, repr=False, compare=False)
    text_mean_: Float[Tensor, " e"] | None = field(default=None, repr=False, compare=False)
    image_spread_: Float[Tensor, " d"] | None = field(default=None, repr=False, compare=False)
    text_spread_: Float[Tensor, " e"] | None = field(default=None, repr=False, compare=False)

    transductive: ClassVar[bool] = False
    least_pairs: ClassVar[int] = 2

    @property
    def output(self) -> Output:
        """A similarity; with `orthogonal` smaller than the cosine, because the map may shrink."""
        return "similarity"

    def _learn(self, images: AnchorMatrix, texts: AnchorMatrix) -> "Procrustes":
        prepare = self.variant in ("orthogonal", "linear", "l_ortho")
        left, right = (replace(side, centred=prepare) for side in (images, texts))
        moments = Moments.from_pairs(left, right, normalized=prepare)
        learned = replace(
            self,
            anchor_images_=images,
            anchor_texts_=texts,
            image_mean_=images.mean,
            text_mean_=texts.mean,
        )
        if self.variant == "procrustes":
            xx, yy, xy = moments.centred()
            spreads = [_spread(side, moments.count) for side in (xx, yy)]
            mapping = _polar(xy / spreads[0][:, None] / spreads[1])
            return replace(learned, map_=mapping, image_spread_=spreads[0], text_spread_=spreads[1])
        if self.variant == "orthogonal":
            return replace(learned, map_=_polar(moments.xy))  # (1)
        solved = torch.linalg.pinv(moments.xx, hermitian=True) @ moments.xy
        return replace(learned, map_=_polar(solved) if self.variant == "l_ortho" else solved)

    def map_images(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n e"]:
        """Images translated into the text space: `x W`."""
        check_embeddings("images", images, self._images.width)
        mapping, mean = self._in(images, "map_"), self._in(images, "image_mean_")
        if self.variant == "procrustes":
            x = (images - mean) / self._in(images, "image_spread_") @ mapping
            return normalize(x * self._in(images, "text_spread_") + self._in(images, "text_mean_"))
        if self.variant == "linear_no_intercept":
            return normalize(images @ mapping)
        x = normalize(images - mean) @ mapping
        return x if self.variant == "orthogonal" else normalize(x)

    def map_texts(self, texts: Float[Tensor, "n e"]) -> Float[Tensor, "n e"]:
        """Unit text embeddings `y`, centred in the variants that do so."""
        check_embeddings("texts", texts, self._texts.width)
        if self.variant in ("procrustes", "linear_no_intercept"):
            return normalize(texts)
        return normalize(texts - self._in(texts, "text_mean_"))

    def _in(self, embeddings: Tensor, name: str) -> Tensor:
        """The learned field `name`, in the precision of `embeddings`."""
        learned: Tensor = fitted(self, getattr(self, name))
        return learned.to(embeddings.dtype)


def _polar(matrix: Float[Tensor, "d e"]) -> Float[Tensor, "d e"]:
    """The nearest matrix with orthonormal rows or columns."""
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    rotation: Tensor = u @ vh
    return rotation


def _spread(scatter: Float[Tensor, "d d"], count: int) -> Float[Tensor, " d"]:
    """Standard deviations (ddof 1); 1 for a coordinate that does not vary."""
    spread = (scatter.diagonal().clamp_min(0) / (count - 1)).sqrt()
    return torch.where(spread > 1e-12, spread, 1)
