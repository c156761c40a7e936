"""Evidence: texts and shots, each weighed by how well it tells left-out shots apart.

Ours. Whether texts or a few labelled images say more differs from one set of images to another.
The shots themselves tell, in closed form: texts never saw them, and each shot can be scored by the
other shots.

    z_c = x . w_c - k_c           w_c texts in joint rows; k_c their mean over the shots      (1)
    u_c = ncm_c + ridge_c         in own rows, each in units of its spread                    (2)
    D_z = mean margin of z        on the shots; spread and margin as in `_leave_one_out`      (3)
    D_u = q / sqrt(q + (1 - q) / n_c)     in units of the spread of `ncm`; n_c shots          (4)
    a   = (D_u - r D_z) / (1 - r^2)       r correlation of u and z on wrong classes           (5)
    b   = (D_z - r D_u) / (1 - r^2)                                                           (6)
    L_c = scale (a (u_c - D_u / 2) + b z_c)                                                   (7)

(5) and (6) are Fisher's discriminant of two scores, right class against wrong ones. In (4) `q` is
the share of the variance of images that lies between classes: so grows the expected cosine of an
image with the mean of `n_c` others of its class. The mean margin of the left-out shots gives it. A
class with fewer shots than others is therefore no less likely for it, and one without shots is
judged by its texts. The scale makes the labels of the left-out shots most likely, so that a
softmax of L gives probabilities.

With few shots all of these are uncertain, and a guess counts as much as ten shots. If each class
has one shot, a left-out shot has no other of its class: then `q` is a guess, larger where texts
separate the classes well, but small where they are nearly always right. On six sets of images both
went together, since encoders tell apart what they were trained on. The guesses were chosen on one
half of these images; docs/methods/README.md has the figures of the other half.
"""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zeroshot.methods._leave_one_out import (
    SPREAD,
    WEIGHT,
    OwnRows,
    RidgeFit,
    fit_ridge,
    held_out_cosines,
    likely_scale,
    margins,
    mean_cosines,
    spread,
)
from zeroshot.methods._shots import Memo, class_means, one_hot
from zeroshot.methods.ensemble import Ensemble

TEXTS = 0.7
"""Guess of D_z: how many spreads a right class lies above the wrong ones."""
MOST = 0.9
"""Largest correlation that (5) and (6) count with."""


def guessed_share(d_z: float, correct: float) -> float:
    """The guess of `q`; `correct` is the share of the shots that texts alone classify right.

    It is small if texts are nearly always right: images could do little then but harm.
    """
    return min(0.4, 0.05 + 0.1 * d_z) * (1 - correct**2)


@dataclass(frozen=True)
class EvidenceWeights:
    """What the shots say of texts and of one another, named as in the equations."""

    d_z: float
    q: float
    r: float
    d_u: Float[Tensor, " c"]
    a: Float[Tensor, " c"]
    """0 for a class without shots"""
    b: Float[Tensor, " c"]
    scale: float


@dataclass(frozen=True)
class ImageScore:
    """(2), in units of its own spread."""

    shots: Float[Tensor, "m f"]
    labels: Int[Tensor, " m"]
    ridge: RidgeFit | None
    """None if no class has several shots: it would be a second `ncm`"""
    cosine_unit: float
    ridge_unit: float
    unit: float

    def of(self, rows: Float[Tensor, "n f"], classes: int) -> Float[Tensor, "n c"]:
        """`u`; NaN for a class without shots."""
        u = mean_cosines(rows, self.shots, self.labels, classes) / self.cosine_unit
        if self.ridge is not None:
            u = u + self.ridge.scores(rows) / self.ridge_unit
        return u / self.unit


@dataclass(frozen=True)
class Evidence(OwnRows):
    """Logits of shots and texts; `fit` gives it the shots."""

    memo_: Memo[tuple[ImageScore, Tensor, Tensor, EvidenceWeights]] = field(
        default_factory=Memo, init=False, repr=False, compare=False
    )

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
        own_images: Float[Tensor, "n f"] | None = None,
    ) -> Float[Tensor, "n c"]:
        """(7); the model's logit scale is not needed."""
        self._labelled(len(texts))
        rows, _ = self._own(images, own_images)
        image_score, classifier, offset, w = self._learned(texts, text_mask)
        u = image_score.of(rows, len(texts)).nan_to_num(0.0)
        return w.scale * (w.a * (u - w.d_u / 2) + w.b * (images @ classifier.T - offset))

    def weights(
        self, texts: Float[Tensor, "c t d"], text_mask: Bool[Tensor, "c t"] | None = None
    ) -> EvidenceWeights:
        """What the shots say of these texts and of one another."""
        return self._learned(texts, text_mask)[3]

    def _learned(
        self, texts: Tensor, text_mask: Tensor | None
    ) -> tuple[ImageScore, Tensor, Tensor, EvidenceWeights]:
        return self.memo_(lambda: self._learn(texts, text_mask), texts, text_mask)

    def _learn(
        self, texts: Tensor, text_mask: Tensor | None
    ) -> tuple[ImageScore, Tensor, Tensor, EvidenceWeights]:
        """The score of images, the text classifier and its offset in units of z, the weights."""
        classes = len(texts)
        joint, labels = self._labelled(classes)
        size = torch.bincount(labels, minlength=classes)
        several = size[labels] > 1
        count = int(several.sum())
        classifier = Ensemble().classifier(texts, text_mask)
        z = joint @ classifier.T
        offset = class_means(z, labels, classes)[0][size > 0].mean(0)
        offset = offset * len(joint) / (len(joint) + WEIGHT)
        z = z - offset  # (1)
        unit = spread(z, labels)
        z = z / unit
        d_z = max(0.0, _shrunk(margins(z, labels), TEXTS))  # (3)
        shots = joint if self.own_shots_ is None else self.own_shots_
        cosines = held_out_cosines(shots, labels, classes)
        image_score, u = _learn_image_score(shots, labels, cosines)
        share = _share(margins(cosines, labels)[several], size[labels][several] - 1)
        guess = guessed_share(d_z, float((z.argmax(1) == labels).double().mean()))
        q = (count * share + WEIGHT * guess) / (count + WEIGHT)
        r = _correlation(u, z, labels) * count / (count + WEIGHT)

        def weigh(size: Int[Tensor, "*n"]) -> tuple[Tensor, Tensor, Tensor]:
            d_u = separation(q, size.clamp_min(1)) / image_score.cosine_unit  # (4)
            return d_u, *discriminant(d_u, d_z, r)

        # a shot that is left out leaves its class one shot fewer
        left, a, b = weigh(size - one_hot(labels, classes).long())
        logits = a * (u - left / 2) + b * z  # NaN for the only shot of a class
        logits = torch.where(size > 0, logits, d_z * z)
        d_u, a, b = weigh(size)
        a, b = torch.where(size > 0, a, 0.0), torch.where(size > 0, b, d_z)
        scale = likely_scale(logits, labels, 2 / (2 + float(d_u[size > 0].mean())))
        weights = EvidenceWeights(d_z, q, r, d_u, a, b, scale)
        return image_score, classifier / unit, offset / unit, weights


def _learn_image_score(
    shots: Tensor, labels: Tensor, cosines: Float[Tensor, "m c"]
) -> tuple[ImageScore, Float[Tensor, "m c"]]:
    """(2), and its values for each shot by the other shots."""
    cosine_unit = spread(cosines, labels, SPREAD)
    u, ridge, ridge_unit = cosines / cosine_unit, None, 1.0
    if int(torch.bincount(labels).max()) > 1:
        ridge = fit_ridge(shots, labels, cosines.shape[1])
        ridge_unit = spread(ridge.held_out, labels)
        u = u + ridge.held_out / ridge_unit
    unit = spread(u, labels, 1.0)
    return ImageScore(shots, labels, ridge, cosine_unit, ridge_unit, unit), u / unit


def _shrunk(values: Float[Tensor, " m"], guess: float) -> float:
    """Mean of the values that are known, with the guess as `WEIGHT` further values."""
    known = values[~values.isnan()]
    return (float(known.sum()) + WEIGHT * guess) / (len(known) + WEIGHT)


def separation(share: float, count: Int[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The expected cosine of an image with the mean of `count` others of its class."""
    return share / torch.sqrt(share + (1 - share) / count) if share > 0 else 0.0 * count


def _share(margin: Float[Tensor, " m"], count: Int[Tensor, " m"]) -> float:
    """The share of variance between classes for which `separation` has this mean; bisection."""
    low, high = 0.0, 1.0
    for _ in range(50 if len(margin) else 0):
        middle = (low + high) / 2
        too_small = bool(separation(middle, count).mean() < margin.mean())
        low, high = (middle, high) if too_small else (low, middle)
    return low


def discriminant(
    d_u: Float[Tensor, "*n"], d_z: float, r: float
) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
    """(5), (6); 0 for a score that the other makes superfluous."""
    r = max(-MOST, min(MOST, r))
    a, b = (d_u - r * d_z) / (1 - r * r), (d_z - r * d_u) / (1 - r * r)
    return a.clamp_min(0), b.clamp_min(0)


def _correlation(
    u: Float[Tensor, "m c"], z: Float[Tensor, "m c"], labels: Int[Tensor, " m"]
) -> float:
    """Of the deviations from each shot's mean over the classes that it does not belong to."""
    which = ~u.isnan() & ~one_hot(labels, u.shape[1])
    number = which.sum(1, keepdim=True).clamp_min(1)
    u, z = (
        (x - x.masked_fill(~which, 0).sum(1, keepdim=True) / number).masked_fill(~which, 0)
        for x in (u, z)
    )
    length = math.sqrt(float((u**2).sum()) * float((z**2).sum()))
    return float((u * z).sum()) / length if length else 0.0
