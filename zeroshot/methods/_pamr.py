"""Pixel-adaptive mask refinement: scores move along pixels of like colour.

Araslanov, Roth 2020, "Single-Stage Semantic Segmentation from Image Labels", CVPR,
arXiv:2005.08104, section 4.3; authors' code visinf/1-stage-wseg (Apache-2.0). SCLIP's and NACLIP's
authors refine their maps with it.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

SHARPNESS = 10.0
"""Difference of colour, in standard deviations of the neighbourhood, to a logit; the authors'."""


def pamr(
    scores: Float[Tensor, "c h w"],
    pixels: Float[Tensor, "k h w"],
    iterations: int = 10,
    steps: Sequence[int] = (1, 2, 4, 8),
) -> Float[Tensor, "c h w"]:
    """Scores after so many rounds in which each pixel takes the mean of its neighbours.

        a_ij = softmax_j mean_k -10 |x_ki - x_kj| / sigma_ki,   s_i <- sum_j a_ij s_j

    No score leaves the range of those before.

    Args:
        scores: of every pixel.
        pixels: the image; channels have equal weight, and their range does not matter.
        iterations: 0 returns `scores`.
        steps: the eight neighbours at each of these distances are a pixel's neighbourhood, and
            sigma is the standard deviation in it and the pixel. Beyond the edge, the edge repeats.
    """
    shifts = [
        (down * step, across * step)
        for step in steps
        for down in (-1, 0, 1)
        for across in (-1, 0, 1)
        if down or across
    ]
    around = torch.stack(list(_shifted(pixels, shifts)))
    spread = torch.cat([around, pixels.expand(len(steps), -1, -1, -1)]).std(0)
    weights = (-SHARPNESS * (around - pixels).abs() / (spread + 1e-7)).mean(1).softmax(0)
    for _ in range(iterations):
        moved = zip(weights, _shifted(scores, shifts), strict=True)
        scores = sum((weight * near for weight, near in moved), torch.zeros_like(scores))
    return scores


def _shifted(values: Tensor, shifts: Sequence[tuple[int, int]]) -> "list[Tensor]":
    """Views of the values moved by each shift, the edge repeated."""
    height, width = values.shape[-2:]
    most = max(down for down, _ in shifts)
    wide = pad(values[None], (most,) * 4, mode="replicate")[0]
    return [
        wide[..., most + down : most + down + height, most + across : most + across + width]
        for down, across in shifts
    ]
