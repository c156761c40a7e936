"""Canonical correlation analysis from running moments, with a ridge."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods._anchor_matrix import BLOCK, AnchorMatrix
from zeroshot.ops import normalize

Weighting = Literal["csa", "cosine", "none"]


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, sums and products of anchor pairs, in float64: all that a CSA needs to know.

    Moments can be added and subtracted. So pairs are added and removed in time that does not
    depend on how many anchors there are, and the result is that of a rebuild to the last digits
    of a double.
    """

    count: int
    x: Float[Tensor, " d"]
    y: Float[Tensor, " e"]
    xx: Float[Tensor, "d d"]
    yy: Float[Tensor, "e e"]
    xy: Float[Tensor, "d e"]

    @classmethod
    def from_pairs(
        cls, images: AnchorMatrix, texts: AnchorMatrix, normalized: bool = False
    ) -> "Moments":
        """Of the embeddings as they were given or, if `normalized`, as `AnchorMatrix.blocks`."""
        d, e = images.width, texts.width
        zero = images.total.new_zeros(1)
        sums = [zero.new_zeros(s) for s in ((d,), (e,), (d, d), (e, e), (d, e))]
        left, right = (
            side.blocks(BLOCK) if normalized else side.iter_raw(BLOCK) for side in (images, texts)
        )
        for image_block, text_block in zip(left, right, strict=True):
            x, y = image_block.double(), text_block.double()
            for total, part in zip(
                sums, (x.sum(0), y.sum(0), x.T @ x, y.T @ y, x.T @ y), strict=True
            ):
                total += part
        return cls(len(images), *sums)

    def __add__(self, other: "Moments") -> "Moments":
        return self._combined(other, 1)

    def __sub__(self, other: "Moments") -> "Moments":
        return self._combined(other, -1)

    def _combined(self, other: "Moments", sign: int) -> "Moments":
        return Moments(
            self.count + sign * other.count,
            self.x + sign * other.x,
            self.y + sign * other.y,
            self.xx + sign * other.xx,
            self.yy + sign * other.yy,
            self.xy + sign * other.xy,
        )

    @cached_property
    def spectra(self) -> "Spectra":
        """Computed on first use."""
        noise = float(self.xx.diagonal().sum()), float(self.yy.diagonal().sum())
        return Spectra.from_scatter(*self.centred(), noise=(1e-13 * noise[0], 1e-13 * noise[1]))

    def centred(self) -> tuple[Tensor, Tensor, Tensor]:
        """Scatter matrices about the means: `[d d]`, `[e e]`, `[d e]`, not divided by the count."""
        return (
            self.xx - torch.outer(self.x, self.x) / self.count,
            self.yy - torch.outer(self.y, self.y) / self.count,
            self.xy - torch.outer(self.x, self.y) / self.count,
        )


@dataclass(frozen=True, eq=False)
class CanonicalDirections:
    """Directions in which the two sides correlate by `rho`; coordinates are `embeddings @ map`."""

    image_map: Float[Tensor, "d s"]
    text_map: Float[Tensor, "e s"]
    rho: Float[Tensor, " s"]


@dataclass(frozen=True, eq=False)
class Spectra:
    """Scatter matrices in the principal axes of each side; computed once for any ridge."""

    x: Float[Tensor, " i"]
    """Variances."""
    y: Float[Tensor, " j"]
    x_axes: Float[Tensor, "d i"]
    y_axes: Float[Tensor, "e j"]
    xy: Float[Tensor, "i j"]

    @classmethod
    def from_scatter(
        cls,
        xx: Float[Tensor, "d d"],
        yy: Float[Tensor, "e e"],
        xy: Float[Tensor, "d e"],
        noise: tuple[float, float] = (0.0, 0.0),
    ) -> "Spectra":
        """Of scatter matrices about the means; a variance below `noise` is rounding."""
        (x, x_axes), (y, y_axes) = _principal_axes(xx, noise[0]), _principal_axes(yy, noise[1])
        return cls(x, y, x_axes, y_axes, x_axes.T @ xy @ y_axes)

    def canonical(self, ridge: tuple[float, float], dims: int = 0) -> CanonicalDirections:
        """`A = U' Sxx^-1/2`, `B = V' Syy^-1/2` from `U rho V' = Sxx^-1/2 Sxy Syy^-1/2`.

        The ridges are added to the diagonals of `Sxx` and `Syy`. `dims` 0 takes all directions
        that both sides have.
        """
        left, right = (self.x + ridge[0]).rsqrt(), (self.y + ridge[1]).rsqrt()
        u, rho, vh = torch.linalg.svd(left[:, None] * self.xy * right, full_matrices=False)
        rank = int((rho > 1e-12).sum())
        rank = min(rank, dims) if dims else rank
        if not rank:
            raise UserError(
                "the anchors do not vary together: that takes two pairs at least that differ on "
                "both sides; procrustes and asif need no variation"
            )
        return CanonicalDirections(
            self.x_axes @ (left[:, None] * u[:, :rank]),
            self.y_axes @ (right[:, None] * vh[:rank].T),
            rho[:rank],
        )


def _principal_axes(scatter: Float[Tensor, "d d"], noise: float) -> tuple[Tensor, Tensor]:
    """Variances and axes of a scatter matrix, without those that have no spread."""
    values, vectors = torch.linalg.eigh(scatter)
    least = float(values.abs().amax()) * len(values) * torch.finfo(values.dtype).eps
    positive = values > max(least, noise)
    return values[positive], vectors[:, positive]


def weight_by_correlation(
    coordinates: Float[Tensor, "n s"], rho: Float[Tensor, " s"], weighting: Weighting
) -> Float[Tensor, "n s"]:
    """Canonical coordinates such that dot products of the two sides are the weighted score.

    `csa` weights by `rho` after normalizing, `cosine` before, `none` never.
    """
    root = rho.to(coordinates.dtype).sqrt()
    if weighting == "csa":
        return normalize(coordinates) * root
    return normalize(coordinates * root if weighting == "cosine" else coordinates)
