"""Which noisy image-text pairs to keep: by the cosine of picture and caption (CLIP score).

    LAION     cosine >= 0.3 (400M), >= 0.28 (5B, ViT-B/32, English)     `above`
    DataComp  the best share p of all pairs, 0.3 by ViT-L/14             `best_share`

Schuhmann et al. 2021, arXiv:2111.02114, and 2022, arXiv:2210.08402; Gadre et al. 2023,
arXiv:2304.14108, code: mlfoundations/datacomp (MIT).

Departure from DataComp's code: theirs takes the cosine behind the best `int(p n)` as a threshold,
and so keeps one pair more, and all that are equal to it. Here exactly `floor(p n)` are kept, of
equal cosines the first; `threshold` is what to pass on to `above` for their rule.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.errors import UserError


def pair_cosines(images: Float[Tensor, "n d"], texts: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Of each unit row with its own partner, summed in float64: no batch changes a digit."""
    return (images.double() * texts.double()).sum(1).float()


def above(scores: Float[Tensor, " n"], least: float) -> Bool[Tensor, " n"]:
    """Those of at least `least`, as LAION does it; both in float32."""
    _see_finite(scores)
    return scores >= torch.tensor(least, dtype=scores.dtype)


def best_share(scores: Float[Tensor, " n"], share: float) -> Bool[Tensor, " n"]:
    """The `floor(share n)` largest, of equal ones the first, as DataComp does it but for ties.

    Raises:
        UserError: a share outside 0 to 1.
    """
    if not 0 <= share <= 1:
        raise UserError(f"a share of {share}: it lies between 0 and 1")
    _see_finite(scores)
    count = math.floor(share * len(scores) + 1e-9)  # 0.29 * 100 is a little below 29
    kept = torch.zeros(len(scores), dtype=torch.bool)
    kept[scores.sort(descending=True, stable=True).indices[:count]] = True
    return kept


def threshold(scores: Float[Tensor, " n"], share: float) -> float | None:
    """DataComp's: the cosine behind the best `int(share n)`; None where none is behind them."""
    count = math.floor(share * len(scores) + 1e-9)
    ordered = scores.sort(descending=True).values
    return float(ordered[count]) if count < len(ordered) else None


def _see_finite(scores: Float[Tensor, " n"]) -> None:
    if not scores.isfinite().all():
        place = int((~scores.isfinite()).nonzero()[0])
        raise UserError(f"the cosine of pair {place} is not finite")
