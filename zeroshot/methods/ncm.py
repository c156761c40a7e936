"""NCM: the nearest class mean.

Mensink et al. 2013, "Distance-Based Image Classification: Generalizing to New Classes at Near-Zero
Cost", IEEE TPAMI 35(11); with cosines of centred embeddings as Wang et al. 2019, "SimpleShot",
arXiv:1911.04623.

    L_c = scale cos(x - m, m_c - m)      m_c mean of the shots of class c, m of all shots

It is the baseline of all few-shot methods, and on weak texts better than most: texts say nothing
here. The scale, by which cosines become logits, makes the labels of shots that are left out most
likely (`_leave_one_out`).

| here | papers |
|---|---|
| m_c, m | mu_c; SimpleShot's mean of the base classes |

Departures. No metric is learned. There are no base classes, so the mean is that of the shots.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.methods._leave_one_out import (
    SPREAD,
    OwnRows,
    check_complete,
    held_out_cosines,
    likely_scale,
    mean_cosines,
    spread,
)
from zeroshot.methods._shots import Memo


@dataclass(frozen=True)
class NCM(OwnRows):
    """Logits of the image encoder's own rows; `fit` gives it the shots."""

    scale: float = 0.0
    """factor of the cosines; 0: by the shots that are left out"""

    shots_alone: ClassVar[bool] = True

    memo_: Memo[float] = field(default_factory=Memo, init=False, repr=False, compare=False)

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t e"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
        own_images: Float[Tensor, "n f"] | None = None,
    ) -> Float[Tensor, "n c"]:
        """Scaled cosines; of `texts` only the number of classes matters.

        Raises:
            UserError: a class without shots.
        """
        classes = len(texts)
        _, labels = self._labelled(classes)
        rows, shots = self._own(images, own_images)
        check_complete(self, labels, classes)
        scale = self.scale or self.memo_(lambda: self._fitted_scale(shots, classes), shots, classes)
        return scale * mean_cosines(rows, shots, labels, classes)

    def _fitted_scale(self, shots: Tensor, classes: int) -> float:
        _, labels = self._labelled(classes)
        held_out = held_out_cosines(shots, labels, classes)
        unit = spread(held_out, labels, SPREAD)
        return likely_scale(held_out / unit, labels, 1.0) / unit
