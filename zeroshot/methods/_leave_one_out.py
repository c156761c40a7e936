"""What shots say of one another: scores of each shot by the other shots, in closed form.

A shot that is left out stands for an image that has to be classified, and its label is known. So
such scores tell how well shots, or texts, separate the classes, and how sure a probability may be.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods._registry import name_of
from zeroshot.methods._shots import FewShot, class_means, one_hot
from zeroshot.ops import normalize

RIDGES = tuple(10 ** (step / 4) for step in range(-8, 9))
"""Multiples of the mean eigenvalue: 0.01 to 100."""
SPREAD = 0.1
"""Standard deviation of cosines of independent directions, where shots are too few to tell."""
WEIGHT = 10.0
"""Shots that a guess weighs as much as."""
Self = TypeVar("Self", bound="OwnRows")


@dataclass(frozen=True)
class OwnRows(FewShot):
    """A few-shot method that compares images in the image encoder's own rows.

    The joint rows of a coupling keep only what texts can say. `own_shots` and `own_images` are the
    rows before the coupling; without them the rows that texts share serve.
    """

    own_shots_: Float[Tensor, "m f"] | None = field(
        default=None, kw_only=True, repr=False, compare=False
    )

    shots_alone: ClassVar[bool] = False
    """Whether texts say nothing to it; then it refuses a class without shots."""

    def fit(
        self: Self,
        shots: Float[Tensor, "m d"],
        shot_labels: Int[Tensor, " m"],
        own_shots: Float[Tensor, "m f"] | None = None,
    ) -> Self:
        """A copy with these shots, and their own rows."""
        return replace(super().fit(shots, shot_labels), own_shots_=own_shots)

    @property
    def calibrated(self) -> bool:
        """Whether its scale was fitted to shots that were left out: some class has two."""
        labels = self.shot_labels_
        return labels is not None and int(torch.bincount(labels).max()) > 1

    def _own(
        self, images: Float[Tensor, "n d"], own_images: Float[Tensor, "n f"] | None
    ) -> tuple[Float[Tensor, "n g"], Float[Tensor, "m g"]]:
        """The rows of images and shots that are compared.

        Raises:
            UserError: own rows of one of them alone, or of another width.
        """
        shots = self.shots_ if self.own_shots_ is None else self.own_shots_
        rows = images if own_images is None else own_images
        if shots is None:
            raise UserError(f"{name_of(self)} needs the arrays shots and shot_labels")
        if (own_images is None) != (self.own_shots_ is None) or rows.shape[1] != shots.shape[1]:
            raise UserError(
                f"{name_of(self)} compares images {list(rows.shape)} with shots "
                f"{list(shots.shape)}: give own_images and own_shots of one width, or neither"
            )
        return rows, shots


def check_complete(method: object, labels: Int[Tensor, " m"], classes: int) -> None:
    """UserError for a class without shots, of which such a method knows nothing."""
    missing = (~one_hot(labels, classes).any(0)).nonzero()[:, 0].tolist()
    if missing:
        raise UserError(
            f"{name_of(method)} needs a shot of every class; class "
            f"{', '.join(map(str, missing[:5]))}{', ...' * (len(missing) > 5)} of 0 to "
            f"{classes - 1} has none (evidence takes the texts there)"
        )


# Cosines with class means


def mean_cosines(
    images: Float[Tensor, "n d"],
    shots: Float[Tensor, "m d"],
    labels: Int[Tensor, " m"],
    classes: int,
) -> Float[Tensor, "n c"]:
    """Cosines with the class means, both less the mean of the shots; NaN for an empty class."""
    means, count = class_means(shots, labels, classes)
    centre = shots.mean(0)
    cosines = normalize(images - centre) @ normalize(means - centre).T
    return cosines.masked_fill(count == 0, math.nan)


def held_out_cosines(
    shots: Float[Tensor, "m d"], labels: Int[Tensor, " m"], classes: int
) -> Float[Tensor, "m c"]:
    """As `mean_cosines`, of each shot with the means of the other shots.

    The only shot of a class leaves no mean of its class: NaN. The centre is the mean of the shots
    and not of the classes: then a class that lost a shot is as far from it, in expectation, as
    the others.
    """
    count = len(shots)
    means, size = class_means(shots, labels, classes)
    if count < 2:
        return shots.new_full((count, classes), math.nan)
    centre = (count * shots.mean(0) - shots) / (count - 1)  # [m d], without the shot
    x = normalize(shots - centre)
    length = (means**2).sum(1) - 2 * centre @ means.T + (centre**2).sum(1, keepdim=True)
    least = torch.finfo(shots.dtype).eps
    cosines = (x @ means.T - (x * centre).sum(1, keepdim=True)) / length.clamp_min(least).sqrt()
    cosines = cosines.masked_fill(length <= 10 * least, 0).masked_fill(size == 0, math.nan)
    own = size[labels, None]
    rest = (own * means[labels] - shots) / (own - 1).clamp_min(1)
    same = (x * normalize(rest - centre)).sum(1).masked_fill(own[:, 0] < 2, math.nan)
    return cosines.scatter(1, labels[:, None], same[:, None])


# Ridge regression


@dataclass(frozen=True)
class RidgeFit:
    """Ridge regression of class membership, without its intercept."""

    centre: Float[Tensor, " d"]
    weight: Float[Tensor, "d c"]
    held_out: Float[Tensor, "m c"]
    """scores of each shot by the other shots"""
    ridge: float
    """the multiple of the mean eigenvalue that was chosen"""

    def scores(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        """Higher is better."""
        return (images - self.centre) @ self.weight


def fit_ridge(
    shots: Float[Tensor, "m d"],
    labels: Int[Tensor, " m"],
    classes: int,
    ridges: Sequence[float] = RIDGES,
) -> RidgeFit:
    """The ridge with the least squared error of the shots that are left out.

    Leaving a shot out needs no second solution: its residual is that of the fit over `1 - h`, its
    leverage (Allen 1974). The intercept, the share of a class among the shots, is left out of all
    scores: it is no evidence, and a class that lost a shot would have a smaller one.
    """
    count = len(shots)
    centre = shots.double().mean(0)
    x = shots.double() - centre
    y = one_hot(labels, classes).double()
    y_mean = y.mean(0)
    wide = x.shape[0] <= x.shape[1]
    values, vectors = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
    values = values.clamp_min(0)
    scale = float(values.sum()) / count or 1.0
    # left singular vectors [m k]
    u = vectors if wide else x @ vectors / values.sqrt().clamp_min(1e-12 * math.sqrt(scale))
    projected = u.T @ (y - y_mean)  # [k c]
    rest = (count * y_mean - y) / max(1, count - 1)  # intercepts without each shot
    best, chosen = math.inf, (ridges[0], y)
    for ridge in ridges:
        shrunk = values / (values + ridge * scale)
        leverage = u**2 @ shrunk + 1 / count
        residual = y - y_mean - u @ (shrunk[:, None] * projected)
        residual = residual / (1 - leverage).clamp_min(1e-9)[:, None]
        if (error := float((residual**2).sum())) < best:
            best, chosen = error, (ridge, y - residual - rest)
    ridge, held_out = chosen
    dual = u @ (projected / (values + ridge * scale)[:, None])
    kind = shots.dtype
    return RidgeFit(centre.to(kind), (x.T @ dual).to(kind), held_out.to(kind), ridge)


# How well scores separate, and how sure they are


def spread(
    scores: Float[Tensor, "m c"], labels: Int[Tensor, " m"], guess: float | None = None
) -> float:
    """Standard deviation of a shot's scores over the classes that it does not belong to.

    With two classes there is one such score, and the shot's own class counts too. `guess` is the
    value for scores that are too few even for that.
    """
    own = one_hot(labels, scores.shape[1])
    known = ~scores.isnan()
    square, free = _squares(scores, known)
    if guess is not None:
        square, free = square + guess**2, free + 1
    overall = square / max(free, 1.0)
    square, free = _squares(scores, known & ~own)
    return math.sqrt((square + overall) / (free + 1)) or 1.0


def _squares(scores: Float[Tensor, "m c"], which: Bool[Tensor, "m c"]) -> tuple[float, float]:
    """Sum of squared deviations from each row's mean, and their degrees of freedom."""
    number = which.sum(1, keepdim=True)
    zero = scores.masked_fill(~which, 0)
    deviation = (scores - zero.sum(1, keepdim=True) / number.clamp_min(1)).masked_fill(~which, 0)
    return float((deviation**2).sum()), float((number - 1).clamp_min(0).sum())


def margins(scores: Float[Tensor, "m c"], labels: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
    """Score of each shot's own class less the mean of the others; NaN if either is missing."""
    own = one_hot(labels, scores.shape[1])
    others = scores.masked_fill(own, math.nan).nanmean(1)
    return scores.gather(1, labels[:, None])[:, 0] - others


def likely_scale(
    logits: Float[Tensor, "m c"],
    labels: Int[Tensor, " m"],
    guess: float,
    strength: float = WEIGHT,
) -> float:
    """The factor of held-out logits that makes their labels most likely, by Newton's method.

    `strength / 2 (factor - guess)^2` is added to the negative log-likelihood, so that a few shots
    do not lead far from the guess. Shots without a score of their own class say nothing.
    """
    known = ~logits.gather(1, labels[:, None])[:, 0].isnan()
    x, y = logits[known].double(), labels[known]
    missing = x.isnan()
    x = x.masked_fill(missing, 0)

    def slopes(factor: float) -> tuple[float, float]:
        p = (factor * x).masked_fill(missing, -math.inf).softmax(1)
        mean = (p * x).sum(1)
        curve = ((p * x**2).sum(1) - mean**2).sum() + strength
        slope = (mean - x.gather(1, y[:, None])[:, 0]).sum() + strength * (factor - guess)
        return float(slope), float(curve)

    low, high, factor = 0.0, math.inf, guess
    for _ in range(100):
        slope, curve = slopes(factor)
        low, high = (low, factor) if slope > 0 else (factor, high)
        step = factor - slope / curve
        if not low <= step <= high:
            step = (low + high) / 2 if high < math.inf else 2 * factor
        if abs(step - factor) < 1e-10:
            break
        factor = step
    return max(factor, 0.0)
