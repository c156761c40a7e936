"""CSA: canonical similarity analysis, two encoders joined by what varies together in both.

Li et al. 2025, "CSA: Data-efficient Mapping of Unimodal Features to Multimodal Features", ICLR,
arXiv:2410.07610; authors' code: github.com/UTAustin-SwarmLab/Multi-modal-Data-Alignment (MIT).

    U diag(rho) V' = SVD(Sxx^-1/2 Sxy Syy^-1/2),   A = U' Sxx^-1/2,   B = V' Syy^-1/2
    score = sum_{i <= s} rho_i (A x)_i (B y)_i / (|A x| |B y|)

with the scatter matrices of the anchors about their means, which `x` and `y` are seen from too.

| here | paper |
|---|---|
| s | s, directions kept |
| lam, ridge | none: the paper inverts the plain covariances |
| rho | the canonical correlations |

Departures. The published code multiplies `U` where the equation has `U'`, which leaves accuracy at
chance (8 to 17 % in the parity data, against 79 to 83 %) and makes the result depend on the signs
of the SVD; ours is the equation. A ridge goes onto both diagonals: without one CSA collapses where
anchors are few. Their weights carry a factor N/(N-1) from a library, which changes no ranking.
`weighting="cosine"`, ours, takes `sqrt(rho)` before the lengths, so that scores are true cosines.

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
from zeroshot.methods import Explanation, Output
from zeroshot.methods._pairs import (
    Canonical,
    Dense,
    Moments,
    Rows,
    Templates,
    Weighting,
    check_more,
    check_places,
    check_rows,
    fitted,
    strongest,
    weighted,
)


@dataclass(frozen=True)
class CSA(Dense):
    """A linear coupling by canonical correlations, with a ridge; `fit` gives it its anchors."""

    s: int = 0
    """directions kept, the strongest; 0 for all that both sides have"""
    lam: float = 1.0
    """ridge in units of each side's mean variance; more where anchors are few"""
    ridge: float = 0.0
    """a further ridge, added to the scatter matrices (not divided by the count) as it is"""
    weighting: Weighting = "csa"
    """rho after bringing rows to unit length (csa), its root before (cosine), or not at all"""
    templates: Templates = "mean"
    """how the scores of a class's prompts become one"""

    anchor_images_: Rows | None = field(default=None, repr=False, compare=False)
    anchor_texts_: Rows | None = field(default=None, repr=False, compare=False)
    moments_: Moments | None = field(default=None, repr=False, compare=False)

    transductive: ClassVar[bool] = False
    least: ClassVar[int] = 2

    @property
    def output(self) -> Output:
        """A similarity; a cosine with `weighting="cosine"` or `"none"`."""
        return "similarity"

    def fit(self, anchor_images: Real[Tensor, "a d"], anchor_texts: Real[Tensor, "_a e"]) -> "CSA":
        """See `methods.Coupling`; UserError also where the anchors do not vary."""
        learned = super().fit(anchor_images, anchor_texts)
        _ = learned.directions
        return learned

    def _learn(self, images: Rows, texts: Rows, moments: Moments | None = None) -> "CSA":
        if self.s < 0 or self.lam < 0 or self.ridge < 0:
            raise UserError(f"s={self.s}, lam={self.lam}, ridge={self.ridge}: none may be below 0")
        if moments is None:
            moments = Moments.of(images, texts)
        return replace(self, anchor_images_=images, anchor_texts_=texts, moments_=moments)

    def add(self, images: Float[Tensor, "m d"], texts: Float[Tensor, "_m e"]) -> "CSA":
        """With these pairs behind the others; what it learned follows when it is next used."""
        check_more(images, texts, self._images, self._texts)
        new = Moments.of(Rows.of(images), Rows.of(texts))
        return self._learn(self._images.add(images), self._texts.add(texts), self._moments + new)

    def remove(self, index: Int[Tensor, " m"]) -> "CSA":
        """Without the pairs at these places; what it learned follows when it is next used."""
        gone = check_places(index, len(self._images))
        images, texts = self._images, self._texts
        lost = Moments.of(Rows.of(images.raw(gone)), Rows.of(texts.raw(gone)))
        return self._learn(images.remove(gone), texts.remove(gone), self._moments - lost)

    @cached_property
    def directions(self) -> Canonical:
        """`A`, `B` and `rho`, solved from the moments on first use."""
        return self._moments.spectra.canonical(self.ridges, self.s)

    @property
    def ridges(self) -> tuple[float, float]:
        """What is added to the diagonal of either scatter matrix."""
        sides = self._moments.centred()[:2]
        left, right = (self.ridge + self.lam * float(s.diagonal().mean()) for s in sides)
        return left, right

    def image_coordinates(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n s"]:
        """`A x`, without weights or unit length."""
        check_rows("images", images, self._images.width)
        return _seen_from(images, self._moments.x / self._moments.count, self.directions.image_map)

    def text_coordinates(self, texts: Float[Tensor, "n e"]) -> Float[Tensor, "n s"]:
        """`B y`, without weights or unit length."""
        check_rows("texts", texts, self._texts.width)
        return _seen_from(texts, self._moments.y / self._moments.count, self.directions.text_map)

    def map_images(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n s"]:
        """Rows whose products with `map_texts` are the scores."""
        return weighted(self.image_coordinates(images), self.directions.rho, self.weighting)

    def map_texts(self, texts: Float[Tensor, "n e"]) -> Float[Tensor, "n s"]:
        """As `map_images`, for texts."""
        return weighted(self.text_coordinates(texts), self.directions.rho, self.weighting)

    def explain(
        self, image: Float[Tensor, " d"], texts: Float[Tensor, "t e"], count: int = 5
    ) -> Explanation:
        """The anchors that carried the score of an image for a class with these prompts.

        The score is linear in `A Sxy B' = diag(rho)`, and `Sxy` is a sum over anchors: anchor i
        gives `<A x, A x_i> <B y_i, B y>` over the lengths.
        """
        rho = self.directions.rho.to(image.dtype)
        rows = self.map_images(image[None])[0]
        prompts = self.map_texts(texts)
        prompt = prompts.mean(0)
        if self.templates == "max":
            prompt = prompts[(prompts @ rows).argmax()]
        left, right = rows / rho.sqrt(), prompt / rho.sqrt()
        if self.weighting == "none":
            left, right = rows / rho, prompt
        shares = [
            (self.image_coordinates(x) @ left) * (self.text_coordinates(y) @ right)
            for x, y in zip(
                self._images.raw_blocks(8192), self._texts.raw_blocks(8192), strict=True
            )
        ]
        return strongest(torch.cat(shares), count)

    @property
    def _moments(self) -> Moments:
        return fitted(self, self.moments_)


def _seen_from(
    rows: Float[Tensor, "n d"], mean: Float[Tensor, " d"], directions: Float[Tensor, "d s"]
) -> Float[Tensor, "n s"]:
    return (rows - mean.to(rows.dtype)) @ directions.to(rows.dtype)
