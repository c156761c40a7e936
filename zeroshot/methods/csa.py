"""CSA: canonical similarity analysis, two encoders joined by what varies together in both.

Li et al. 2025, "CSA: Data-efficient Mapping of Unimodal Features to Multimodal Features", ICLR,
arXiv:2410.07610; authors' code: github.com/UTAustin-SwarmLab/Multi-modal-Data-Alignment (MIT).

    U diag(rho) V' = SVD(Sxx^-1/2 Sxy Syy^-1/2),   A = U' Sxx^-1/2,   B = V' Syy^-1/2     (1)
    score = sum_{i <= s} rho_i (A x)_i (B y)_i / (|A x| |B y|)                            (2)

The scatter matrices `S` are those of the anchors about their means, which are subtracted from `x`
and `y` too.

| here | paper |
|---|---|
| s | s, number of directions |
| lam, ridge | none: the paper inverts the plain covariances |
| rho | the canonical correlations |

Departures. The published code multiplies by `U` where the equation has `U'`, which leaves accuracy
at chance (8 to 17 % in the parity data, against 79 to 83 %) and makes the result depend on the
signs of the SVD; ours is the equation. A ridge is added to both diagonals: without one CSA
collapses if anchors are few. Their weights carry a factor N/(N-1) from a library, which changes no
ranking. `weighting="cosine"`, ours, applies `sqrt(rho)` before the division by the lengths, so that
scores are true cosines.

Everything is learned from running moments in float64, so an edit costs the same however many
anchors there are.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods._anchor_checks import check_added, check_embeddings, check_removed
from zeroshot.methods._anchor_matrix import BLOCK, AnchorMatrix
from zeroshot.methods._anchored_coupling import AnchoredCoupling, fitted
from zeroshot.methods._canonical_correlation import (
    CanonicalDirections,
    Moments,
    Weighting,
    weight_by_correlation,
)
from zeroshot.methods._joint_space import JointSpace, TemplateMode
from zeroshot.methods._protocols import Explanation, Output


@dataclass(frozen=True)
class CSA(AnchoredCoupling, JointSpace):
    """A linear coupling by canonical correlations, with a ridge; `fit` gives it its anchors."""

    s: int = 0
    """number of directions, those of largest rho; 0 for all that both sides have"""
    lam: float = 1.0
    """ridge in units of each side's mean variance; few anchors need more"""
    ridge: float = 0.0
    """a further ridge, added to the scatter matrices (not divided by the count) as it is"""
    weighting: Weighting = "csa"
    """rho after normalizing (csa), its square root before (cosine), or not at all (none)"""
    templates: TemplateMode = "mean"
    """how the scores of a class's prompts become one"""

    moments_: Moments | None = field(default=None, repr=False, compare=False)

    transductive: ClassVar[bool] = False
    least_pairs: ClassVar[int] = 2

    @property
    def output(self) -> Output:
        """A similarity; a cosine with `weighting="cosine"` or `"none"`."""
        return "similarity"

    def fit(self, anchor_images: Real[Tensor, "a d"], anchor_texts: Real[Tensor, "_a e"]) -> "CSA":
        """See `methods.Coupling`; UserError also if the anchors do not vary."""
        learned = super().fit(anchor_images, anchor_texts)
        _ = learned.directions
        return learned

    def _learn(
        self, images: AnchorMatrix, texts: AnchorMatrix, moments: Moments | None = None
    ) -> "CSA":
        if self.s < 0 or self.lam < 0 or self.ridge < 0:
            raise UserError(f"s={self.s}, lam={self.lam}, ridge={self.ridge}: none may be below 0")
        if moments is None:
            moments = Moments.from_pairs(images, texts)
        return replace(self, anchor_images_=images, anchor_texts_=texts, moments_=moments)

    def add(self, images: Float[Tensor, "m d"], texts: Float[Tensor, "_m e"]) -> "CSA":
        """With these pairs appended; `directions` are solved again on next use."""
        check_added(images, texts, self._images, self._texts)
        new = _pair_moments(images, texts)
        return self._learn(self._images.add(images), self._texts.add(texts), self._moments + new)

    def remove(self, index: Int[Tensor, " m"]) -> "CSA":
        """Without the pairs at `index`; `directions` are solved again on next use."""
        removed = check_removed(index, len(self._images))
        images, texts = self._images, self._texts
        lost = _pair_moments(images.take_raw(removed), texts.take_raw(removed))
        return self._learn(images.remove(removed), texts.remove(removed), self._moments - lost)

    @cached_property
    def directions(self) -> CanonicalDirections:
        """`A`, `B` and `rho`, solved from the moments on first use."""
        return self._moments.spectra.canonical(self.ridges, self.s)  # (1)

    @property
    def ridges(self) -> tuple[float, float]:
        """Added to the diagonals of `Sxx` and `Syy`."""
        sides = self._moments.centred()[:2]
        left, right = (self.ridge + self.lam * float(s.diagonal().mean()) for s in sides)
        return left, right

    def image_coordinates(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n s"]:
        """`A x`, neither weighted nor normalized."""
        check_embeddings("images", images, self._images.width)
        return _project(images, self._moments.x / self._moments.count, self.directions.image_map)

    def text_coordinates(self, texts: Float[Tensor, "n e"]) -> Float[Tensor, "n s"]:
        """`B y`, neither weighted nor normalized."""
        check_embeddings("texts", texts, self._texts.width)
        return _project(texts, self._moments.y / self._moments.count, self.directions.text_map)

    def map_images(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n s"]:
        """Vectors whose dot products with `map_texts` are the scores (2)."""
        coordinates = self.image_coordinates(images)
        return weight_by_correlation(coordinates, self.directions.rho, self.weighting)

    def map_texts(self, texts: Float[Tensor, "n e"]) -> Float[Tensor, "n s"]:
        """As `map_images`, for texts."""
        coordinates = self.text_coordinates(texts)
        return weight_by_correlation(coordinates, self.directions.rho, self.weighting)

    def explain(
        self, image: Float[Tensor, " d"], texts: Float[Tensor, "t e"], count: int = 5
    ) -> Explanation:
        """The anchors that contribute to the score of an image for a class with these prompts.

        The score is linear in `A Sxy B' = diag(rho)`, and `Sxy` is a sum over anchors: anchor i
        gives `<A x, A x_i> <B y_i, B y>` over the lengths.
        """
        rho = self.directions.rho.to(image.dtype)
        joint = self.map_images(image[None])[0]
        prompts = self.map_texts(texts)
        prompt = prompts.mean(0)
        if self.templates == "max":
            prompt = prompts[(prompts @ joint).argmax()]
        left, right = joint / rho.sqrt(), prompt / rho.sqrt()
        if self.weighting == "none":
            left, right = joint / rho, prompt
        shares = [
            (self.image_coordinates(x) @ left) * (self.text_coordinates(y) @ right)
            for x, y in zip(self._images.iter_raw(BLOCK), self._texts.iter_raw(BLOCK), strict=True)
        ]
        return Explanation.from_shares(torch.cat(shares), count)

    @property
    def _moments(self) -> Moments:
        return fitted(self, self.moments_)


def _pair_moments(images: Float[Tensor, "m d"], texts: Float[Tensor, "_m e"]) -> Moments:
    left, right = map(AnchorMatrix.from_embeddings, (images, texts))
    return Moments.from_pairs(left, right)


def _project(
    embeddings: Float[Tensor, "n d"], mean: Float[Tensor, " d"], directions: Float[Tensor, "d s"]
) -> Float[Tensor, "n s"]:
    dtype = embeddings.dtype
    return (embeddings - mean.to(dtype)) @ directions.to(dtype)
