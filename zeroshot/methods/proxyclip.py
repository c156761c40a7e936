"""ProxyCLIP: patches attend as the patches of a second vision encoder are alike.

Lan, Chen, Ke, Wang, Feng, Zhang 2024, "ProxyCLIP: Proxy Attention Improves CLIP for Open-Vocabulary
Segmentation", ECCV, arXiv:2408.04883; authors' code mc-lan/ProxyCLIP (NTU S-Lab License 1.0,
non-commercial). This file was written from the equation.

    s_ij = cosine of the second encoder's patches i and j
    A_ij = softmax_j gamma (s_ij - beta mean s),  over the j where that is not negative
    out  = A v

in the last block of the vision transformer, without its residual connection and feed-forward part.
The values `v` of the patches are enlarged bilinearly to the second encoder's grid if that is finer;
the class token is left out, and queries and keys play no part.

Departures from the authors' code: the mean is of each image, where theirs is of the whole batch, so
that a map depends on what lies beside it; the limit `beta mean s` is at most the largest cosine of
a row, where theirs gives NaN for patches that are all alike; width and height are read, not the
height twice.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from zeroshot.errors import UserError
from zeroshot.methods._door import Method
from zeroshot.ops import normalize

__all__ = ["ProxyCLIP", "proxy_attention"]


def proxy_attention(
    features: Float[Tensor, "b n e"],
    beta: float = 1.2,
    gamma: float = 3.0,
    mean: Float[Tensor, "#b"] | None = None,
) -> Float[Tensor, "b n n"]:
    """The weights of each patch for each patch; rows sum to 1.

    Args:
        features: of the second encoder's patches, of any length.
        beta: weights begin at this multiple of the mean cosine.
        gamma: factor before the softmax.
        mean: the mean cosine, of each image by default. The authors take that of all in the batch.
    """
    unit = normalize(features)
    cosine = unit @ unit.mT
    mean = cosine.mean((1, 2)) if mean is None else mean
    # A row's own cosine is its largest, but for rounding and for a row of zeros.
    limit = torch.minimum(beta * mean[:, None, None], cosine.amax(-1, keepdim=True))
    above = gamma * (cosine - limit)
    weights: Tensor = above.masked_fill(above < 0, -torch.inf).softmax(-1)
    return weights


@dataclass(frozen=True)
class ProxyCLIP(Method):
    """Attention by a second encoder's patches, and how the logits of patches become a map."""

    beta: float = 1.2
    """patches are alike from this multiple of the mean cosine"""

    gamma: float = 3.0
    """factor of the cosines before the softmax of the attention"""

    scale: float = 40.0
    """factor of the cosines before the softmax over labels"""

    whole_block: ClassVar[bool] = False
    needs_features: ClassVar[bool] = True
    """Whether `attend` does nothing without a second encoder."""

    def __post_init__(self) -> None:
        if not (self.gamma > 0 and math.isfinite(self.beta)):
            raise UserError(
                f"proxyclip: beta={self.beta}, gamma={self.gamma}; numbers, gamma greater than 0"
            )

    def attend(
        self,
        query: Float[Tensor, "b h s d"],
        key: Float[Tensor, "b h s d"],
        value: Float[Tensor, "b h s d"],
        grid: tuple[int, int],
        features: Tensor | None = None,
    ) -> Float[Tensor, "b h n d"]:
        """The output of each patch of the second encoder's grid, row by row: `n = y x`.

        Args:
            query, key: not used.
            value: of the tokens; those before the patches (the class token) are left out.
            grid: rows and columns of patches.
            features: [b y x e], the second encoder's patches of the same images or windows.

        Raises:
            UserError: no features, or not one grid for each image.
        """
        if features is None:
            raise UserError(
                "proxyclip compares the patches of a second vision encoder: name it by "
                "--patches-by, such as hf:facebook/dinov2-base"
            )
        if features.ndim != 4 or len(features) != len(value) or not features.numel():
            raise UserError(
                f"proxyclip: features of shape {list(features.shape)} for {len(value)} images; "
                "expected [images, rows, columns, width]"
            )
        b, h, _, d = value.shape
        patches = value[:, :, value.shape[2] - grid[0] * grid[1] :]
        fine = (features.shape[1], features.shape[2])
        if fine != grid:
            maps = patches.mT.reshape(b, h * d, *grid)
            enlarged = interpolate(maps, size=fine, mode="bilinear")
            patches = enlarged.view(b, h, d, fine[0] * fine[1]).mT
        weights = proxy_attention(features.flatten(1, 2).to(value), self.beta, self.gamma)
        return weights[:, None] @ patches
