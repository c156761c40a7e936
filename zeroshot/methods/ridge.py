"""Ridge: a linear classifier of the shots by least squares, its ridge chosen in closed form.

Hoerl and Kennard 1970, "Ridge Regression", Technometrics 12(1); the ridge by the squared error of
shots that are left out, Allen 1974, "The Relationship Between Variable Selection and Data
Augmentation and a Method for Prediction" (PRESS), Technometrics 16(1).

    W   = argmin |X W - Y|^2 + lambda |W|^2    X shots less their mean, Y one-hot, likewise   (1)
    e_i = (y_i - x_i W) / (1 - h_i)            h_i leverage of shot i                         (2)
    L   = scale x W                            lambda the one with the least sum of e_i^2     (3)

Nothing is trained and nothing is tuned: one eigendecomposition gives `e` for every lambda. With a
strong ridge it is a classifier of class means, with a weak one a linear regression. Texts say
nothing here.

| here | papers |
|---|---|
| e | PRESS residuals |

Departures. lambda is one of 17 multiples of the mean eigenvalue, from 0.01 to 100. The intercept is
left out of the scores, so that a class with many shots is no likelier for it.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods._leave_one_out import (
    RIDGES,
    OwnRows,
    RidgeFit,
    check_complete,
    fit_ridge,
    likely_scale,
    spread,
)
from zeroshot.methods._shots import Memo


@dataclass(frozen=True)
class Ridge(OwnRows):
    """Logits of the image encoder's own rows; `fit` gives it the shots."""

    ridge: float = 0.0
    """lambda as a multiple of the mean eigenvalue; 0: by the shots that are left out"""

    shots_alone: ClassVar[bool] = True

    memo_: Memo[tuple[RidgeFit, float]] = field(
        default_factory=Memo, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if self.ridge < 0:
            raise UserError(f"ridge={self.ridge}: 0 or more")

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t e"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
        own_images: Float[Tensor, "n f"] | None = None,
    ) -> Float[Tensor, "n c"]:
        """Scaled regressions of membership; of `texts` only the number of classes matters.

        Raises:
            UserError: a class without shots.
        """
        classes = len(texts)
        _, labels = self._labelled(classes)
        rows, shots = self._own(images, own_images)
        check_complete(self, labels, classes)
        fitted, scale = self.memo_(lambda: self._solve(shots, classes), shots, classes)
        return scale * fitted.scores(rows)

    def _solve(self, shots: Tensor, classes: int) -> tuple[RidgeFit, float]:
        _, labels = self._labelled(classes)
        fitted = fit_ridge(shots, labels, classes, (self.ridge,) if self.ridge else RIDGES)
        alone = (torch.bincount(labels)[labels] < 2)[:, None]
        own = torch.arange(classes) == labels[:, None]
        held_out = fitted.held_out.masked_fill(own & alone, torch.nan)
        unit = spread(held_out, labels)
        return fitted, likely_scale(held_out / unit, labels, 1.0) / unit
