"""How far a measured accuracy can be trusted: intervals and paired differences of weighted rows.

Accuracies are balanced: each class weighs the same, whatever its number of rows. A row's *hit* is
the share of the repeats in which it was right.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zeroshot.tuning.folds import class_weights

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A balanced accuracy, its standard error, and where that of as many new rows will lie."""

    value: float
    error: float
    low: float
    high: float


def balanced(hits: Float[Tensor, "*m n"], labels: Int[Tensor, " n"]) -> Float[Tensor, "*m"]:
    """Balanced accuracies, or with differences of hits their differences."""
    return hits.double() @ class_weights(labels)


def standard_error(hits: Float[Tensor, "*m n"], labels: Int[Tensor, " n"]) -> Float[Tensor, "*m"]:
    """The standard errors of `balanced` over rows drawn anew within each class.

    The variance is pooled over the classes: few rows of one class say nothing of their own.
    Infinite if no class has two rows.
    """
    hits, weights = hits.double(), class_weights(labels)
    size = labels.bincount()
    one = torch.nn.functional.one_hot(labels, len(size)).double()
    mean = hits @ one / size.clamp_min(1)  # [*m, c]
    free = len(labels) - int((size > 0).sum())
    squares = ((hits - mean[..., labels]) ** 2).sum(-1)
    variance = squares / free if free else torch.full_like(squares, math.inf)
    return (variance * (weights**2).sum()).sqrt()


def estimate(
    hits: Float[Tensor, " n"],
    labels: Int[Tensor, " n"],
    further: int | None = None,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Balanced accuracy with a prediction interval for `further` rows of these classes.

    Both this estimate and the accuracy of the further rows vary, so the interval is by
    sqrt(1 + n / further) wider than one for infinitely many; `further` is n by default. The share
    is moved to the middle as Agresti and Coull (1998) do, so that 0 and 1 have an interval too.
    """
    from scipy.stats import norm

    z = float(norm.ppf((1 + confidence) / 2))
    value, error = float(balanced(hits, labels)), float(standard_error(hits, labels))
    rows = 1 / float((class_weights(labels) ** 2).sum())  # as many equally weighted rows
    middle = (value * rows + z * z / 2) / (rows + z * z)
    spread = max(error, math.sqrt(middle * (1 - middle) / (rows + z * z)))
    spread *= math.sqrt(1 + len(hits) / (further or len(hits)))
    low, high = (min(1.0, max(0.0, middle + sign * z * spread)) for sign in (-1, 1))
    return Estimate(value, error, min(low, value), max(high, value))


def estimate_mean(
    outcomes: Float[Tensor, " n"], largest: float = math.inf, confidence: float = CONFIDENCE
) -> Estimate:
    """The mean of outcomes from 0 to `largest`, with an interval for the mean of as many others.

    By Student's t. Outcomes that are all 0, or all 1 if that is the largest, vary elsewhere: then
    as `estimate`.
    """
    from scipy.stats import t

    one_class = torch.zeros(len(outcomes), dtype=torch.int64)
    value, error = float(outcomes.mean()), float(standard_error(outcomes, one_class))
    if error == 0 and largest == 1:
        return estimate(outcomes, one_class, confidence=confidence)
    spread = float(t.ppf((1 + confidence) / 2, len(outcomes) - 1)) * error * math.sqrt(2)
    return Estimate(value, error, max(0.0, value - spread), min(largest, value + spread))


def p_not_better(
    gains: Float[Tensor, " n"], labels: Int[Tensor, " n"], generator: torch.Generator
) -> float:
    """One-sided p-value of a balanced gain: the signs of the rows' gains are flipped at random.

    `gains` are differences of hits on the same rows. At least 1 / (flips + 1).
    """
    flips = 4999
    weighted = gains.double() * class_weights(labels)
    changed = weighted[weighted != 0]
    if not len(changed):
        return 1.0
    signs = torch.randint(0, 2, (flips, len(changed)), generator=generator).double() * 2 - 1
    reached = (signs @ changed >= changed.sum() - 1e-12).sum()
    return (1 + int(reached)) / (1 + flips)
