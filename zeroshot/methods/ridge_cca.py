"""Ridge CCA on unit rows: canonical correlations of directions, with a ridge of a fixed size.

Roschmann et al. 2026, "SOTAlign" (the teacher), as re-implemented in
github.com/dominik-schnaus/unpaired-rosetta (MIT); weightings after CSA (Li et al. 2025).

    xh = norm(x - mean),   Wx = (Cxx + lam I)^-1/2 U_s,   Wy = (Cyy + lam I)^-1/2 V_s
    none:   cos(xh Wx, yh Wy)          csa: sum_i rho_i u_i v_i of the unit u, v
    cosine: cos(sqrt(rho) xh Wx, sqrt(rho) yh Wy)

| here | there |
|---|---|
| lam | CCA_RIDGE, 0.1 |
| dims | number of components, 1024 |
| Cxx | covariance (divided by the count) of unit rows, so its trace is below 1 |

The difference from `csa`: rows are at unit length before anything is learned, and the ridge is
absolute. 0.1 is large against eigenvalues of about 1/d and makes the map close to Procrustes.
No departures. Unit length seen from a mean that an edit moves is no running moment, so an edit
costs a rebuild; `csa` has none of that.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods import Output
from zeroshot.methods._pairs import (
    Canonical,
    Dense,
    Moments,
    Rows,
    Spectra,
    Templates,
    Weighting,
    check_rows,
    fitted,
    weighted,
)


@dataclass(frozen=True)
class RidgeCCA(Dense):
    """A linear coupling by canonical correlations of unit rows; `fit` gives it its anchors."""

    lam: float = 0.1
    """ridge, added to the covariances of unit rows"""
    dims: int = 1024
    """directions kept, the strongest, of those that both sides have"""
    weighting: Weighting = "cosine"
    """rho after bringing rows to unit length (csa), its root before (cosine), or not at all"""
    templates: Templates = "mean"
    """how the scores of a class's prompts become one"""

    anchor_images_: Rows | None = field(default=None, repr=False, compare=False)
    anchor_texts_: Rows | None = field(default=None, repr=False, compare=False)
    directions_: Canonical | None = field(default=None, repr=False, compare=False)

    transductive: ClassVar[bool] = False
    least: ClassVar[int] = 2

    @property
    def output(self) -> Output:
        """A similarity; a cosine unless `weighting="csa"`."""
        return "similarity"

    def _learn(self, images: Rows, texts: Rows) -> "RidgeCCA":
        if self.dims < 1 or self.lam < 0:
            raise UserError(f"lam={self.lam}, dims={self.dims}: lam from 0 on, dims from 1 on")
        images, texts = replace(images, centred=True), replace(texts, centred=True)
        moments = Moments.of(images, texts, directed=True)
        xx, yy, xy = (scatter / moments.count for scatter in moments.centred())
        directions = Spectra.of(xx, yy, xy).canonical((self.lam, self.lam), self.dims)
        return replace(self, anchor_images_=images, anchor_texts_=texts, directions_=directions)

    def map_images(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n s"]:
        """Rows whose products with `map_texts` are the scores."""
        check_rows("images", images, self._images.width)
        rows = self._images.directed(images) @ self._directions.image_map.to(images.dtype)
        return weighted(rows, self._directions.rho, self.weighting)

    def map_texts(self, texts: Float[Tensor, "n e"]) -> Float[Tensor, "n s"]:
        """As `map_images`, for texts."""
        check_rows("texts", texts, self._texts.width)
        rows = self._texts.directed(texts) @ self._directions.text_map.to(texts.dtype)
        return weighted(rows, self._directions.rho, self.weighting)

    @property
    def _directions(self) -> Canonical:
        return fitted(self, self.directions_)
