"""Ridge CCA on unit vectors: canonical correlations of directions, with a ridge of a fixed size.

Roschmann et al. 2026, "SOTAlign" (the teacher), as re-implemented in
github.com/dominik-schnaus/unpaired-rosetta (MIT); weightings after CSA (Li et al. 2025).

    xh = norm(x - mean),   Wx = (Cxx + lam I)^-1/2 U_s,   Wy = (Cyy + lam I)^-1/2 V_s     (1)
    none:   cos(xh Wx, yh Wy)          csa: sum_i rho_i u_i v_i of the unit u, v
    cosine: cos(sqrt(rho) xh Wx, sqrt(rho) yh Wy)                                         (2)

| here | there |
|---|---|
| lam | CCA_RIDGE, 0.1 |
| dims | number of components, 1024 |
| Cxx | covariance (divided by the count) of `xh`, so its trace is at most 1 |

The difference from `csa`: embeddings are centred and normalized before anything is learned, and the
ridge is absolute. 0.1 is large against eigenvalues of about 1/d and makes the map close to
Procrustes. No departures. An edit moves the mean and so changes every normalized embedding:
it costs a rebuild, where `csa` updates running moments.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods._anchor_checks import check_embeddings
from zeroshot.methods._anchor_matrix import AnchorMatrix
from zeroshot.methods._anchored_coupling import AnchoredCoupling, fitted
from zeroshot.methods._canonical_correlation import (
    CanonicalDirections,
    Moments,
    Spectra,
    Weighting,
    weight_by_correlation,
)
from zeroshot.methods._joint_space import JointSpace, TemplateMode
from zeroshot.methods._protocols import Output


@dataclass(frozen=True)
class RidgeCCA(AnchoredCoupling, JointSpace):
    """A linear coupling by canonical correlations of unit vectors; `fit` gives it its anchors."""

    lam: float = 0.1
    """ridge, added to the covariances of unit vectors"""
    dims: int = 1024
    """number of directions at most, those of largest rho"""
    weighting: Weighting = "cosine"
    """rho after normalizing (csa), its square root before (cosine), or not at all (none)"""
    templates: TemplateMode = "mean"
    """how the scores of a class's prompts become one"""

    directions_: CanonicalDirections | None = field(default=None, repr=False, compare=False)

    transductive: ClassVar[bool] = False
    least_pairs: ClassVar[int] = 2

    @property
    def output(self) -> Output:
        """A similarity; a cosine unless `weighting="csa"`."""
        return "similarity"

    def _learn(self, images: AnchorMatrix, texts: AnchorMatrix) -> "RidgeCCA":
        if self.dims < 1 or self.lam < 0:
            raise UserError(f"lam={self.lam}, dims={self.dims}: lam from 0 on, dims from 1 on")
        images, texts = replace(images, centred=True), replace(texts, centred=True)
        moments = Moments.from_pairs(images, texts, normalized=True)
        xx, yy, xy = (scatter / moments.count for scatter in moments.centred())
        spectra = Spectra.from_scatter(xx, yy, xy)
        directions = spectra.canonical((self.lam, self.lam), self.dims)  # (1)
        return replace(self, anchor_images_=images, anchor_texts_=texts, directions_=directions)

    def map_images(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n s"]:
        """Vectors whose dot products with `map_texts` are the scores (2)."""
        check_embeddings("images", images, self._images.width)
        x = self._images.center_and_normalize(images)
        coordinates = x @ self._directions.image_map.to(images.dtype)
        return weight_by_correlation(coordinates, self._directions.rho, self.weighting)

    def map_texts(self, texts: Float[Tensor, "n e"]) -> Float[Tensor, "n s"]:
        """As `map_images`, for texts."""
        check_embeddings("texts", texts, self._texts.width)
        y = self._texts.center_and_normalize(texts)
        coordinates = y @ self._directions.text_map.to(texts.dtype)
        return weight_by_correlation(coordinates, self._directions.rho, self.weighting)

    @property
    def _directions(self) -> CanonicalDirections:
        return fitted(self, self.directions_)
