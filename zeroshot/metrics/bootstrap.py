"""How far a figure can be trusted: intervals and paired tests by resampling images.

Percentile bootstrap: Efron 1979, "Bootstrap Methods: Another Look at the Jackknife". Images are
drawn with replacement, as many as there are, and the figure is computed for each draw. The interval
is the middle share `confidence` of these values. Two methods are compared on the same draws.

A share that is 0 or 1 does not vary among draws; its interval is Clopper and Pearson's (1934).
McNemar 1947: is each method right on half of the images on which two methods differ? Holm 1979:
p-values of several comparisons, adjusted so that the chance of any false positive stays below the
level.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.intp]
Figures = Mapping[str, float]
Statistic = Callable[[Rows], Figures]
"""Figures of some images by their indices, which may repeat: `np.arange(n)` is all of them."""

DRAWS = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A figure and the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Interval):
    """By how much a second method's figure is larger, and how likely chance makes it so."""

    p: float
    """Two-sided: twice the share of draws on the other side of zero, at least 2 / (draws + 1)."""


def bootstrap(
    statistic: Statistic,
    images: int,
    generator: np.random.Generator,
    *,
    draws: int = DRAWS,
    confidence: float = CONFIDENCE,
) -> dict[str, Interval]:
    """An interval for each figure; draws for which it is NaN do not count."""
    value = statistic(np.arange(images))
    drawn = _drawn(statistic, images, generator, draws)
    ends = {name: _ends(values, confidence) for name, values in drawn.items()}
    return {name: Interval(value[name], *ends[name]) for name in value}


def paired_bootstrap(
    first: Statistic,
    second: Statistic,
    images: int,
    generator: np.random.Generator,
    *,
    draws: int = DRAWS,
    confidence: float = CONFIDENCE,
) -> dict[str, Difference]:
    """The difference second - first of each figure that both have, on the same draws."""

    def difference(rows: Rows) -> dict[str, float]:
        a, b = first(rows), second(rows)
        return {name: b[name] - a[name] for name in a if name in b}

    value = difference(np.arange(images))
    drawn = _drawn(difference, images, generator, draws)
    return {
        name: Difference(value[name], *_ends(drawn[name], confidence), p=_p(drawn[name]))
        for name in value
    }


def _drawn(
    statistic: Statistic, images: int, generator: np.random.Generator, draws: int
) -> dict[str, npt.NDArray[np.float64]]:
    figures = [statistic(generator.integers(0, images, images)) for _ in range(draws)]
    return {name: np.array([own[name] for own in figures]) for name in figures[0]}


def _ends(values: npt.NDArray[np.float64], confidence: float) -> tuple[float, float]:
    known = values[~np.isnan(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _p(differences: npt.NDArray[np.float64]) -> float:
    known = differences[~np.isnan(differences)]
    beyond = min((known <= 0).sum(), (known >= 0).sum())
    return float(min(1.0, 2 * (1 + beyond) / (1 + len(known))))


def exact_share(right: int, count: int, confidence: float = CONFIDENCE) -> Interval:
    """A share with the interval of Clopper and Pearson, which is never empty."""
    from scipy.stats import beta

    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, right, count - right + 1)) if right else 0.0
    high = float(beta.ppf(1 - tail, right + 1, count - right)) if right < count else 1.0
    return Interval(right / count, low, high)


def mcnemar(first: Bools, second: Bools) -> float:
    """Exact two-sided p-value that two methods are right equally often, on the same images."""
    from scipy.stats import binomtest

    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    if gained + lost == 0:
        return 1.0
    return float(binomtest(gained, gained + lost).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of several comparisons, adjusted for their number."""
    order = np.argsort(p_values, kind="stable")
    left = np.arange(len(p_values), 0, -1)
    stepped = np.minimum(np.maximum.accumulate(np.asarray(p_values)[order] * left), 1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = stepped
    return [float(p) for p in adjusted]
