"""How candidates stand after some folds, and which need not be tried on the next.

Candidates race (Maron and Moore 1994, "Hoeffding Races"; here with the paired standard error): one
that falls back by `FALLEN` errors after a fold is tried on no further one.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zeroshot.tuning.intervals import balanced, standard_error

FALLEN = 3.0
"""Standard errors behind the best."""


@dataclass(frozen=True)
class Tried:
    """A candidate's balanced accuracy in the inner loop, and how far it went."""

    name: str
    accuracy: float
    error: float
    """Standard error of the accuracy."""
    behind: float
    """Standard errors of the paired difference behind the best."""
    share: float
    """Share of the folds on which it was tried."""


@dataclass
class Race:
    """The outcome of each candidate on each row, and how often it was tried there.

    An outcome is a hit, of which all tries of a row add up, or any other number, the more the
    better.
    """

    hits: Float[Tensor, "m n"]
    times: Float[Tensor, "m n"]
    labels: Int[Tensor, " n"]

    @classmethod
    def of(cls, candidates: int, labels: Int[Tensor, " n"]) -> "Race":
        """Before the first fold."""
        zeros = torch.zeros(candidates, len(labels), dtype=torch.float64)
        return cls(zeros, zeros.clone(), labels)

    def add(self, candidate: int, rows: Int[Tensor, " h"], outcomes: Float[Tensor, " h"]) -> None:
        """A candidate's outcomes on the rows of a fold."""
        self.hits[candidate, rows] += outcomes.double()
        self.times[candidate, rows] += 1

    def shares(self, candidates: Sequence[int]) -> tuple[Float[Tensor, "k r"], Int[Tensor, " r"]]:
        """Hits a try on the rows on which all of these were tried, and the rows' labels."""
        times = self.times[list(candidates)]
        rows = (times > 0).all(0)
        return self.hits[list(candidates)][:, rows] / times[:, rows], self.labels[rows]

    def standings(
        self, candidates: Sequence[int]
    ) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
        """Balanced accuracies, and paired standard errors behind the best, the first of equals."""
        shares, labels = self.shares(candidates)
        figures = balanced(shares, labels)
        gaps = shares[int(figures.argmax())] - shares
        mean, error = balanced(gaps, labels), standard_error(gaps, labels)
        behind = torch.where(error > 0, mean / error, torch.where(mean > 0, math.inf, 0.0))
        return figures, behind

    def simplest(self, candidates: Sequence[int]) -> int:
        """The first that is within one standard error of the best."""
        _, behind = self.standings(candidates)
        return next(i for i, gap in zip(candidates, behind.tolist(), strict=True) if gap <= 1)

    def remaining(self, candidates: Sequence[int], always: Collection[int]) -> list[int]:
        """Those that have not fallen back, and those of `always`."""
        _, behind = self.standings(candidates)
        fallen = (behind > FALLEN).tolist()
        return [i for i, out in zip(candidates, fallen, strict=True) if i in always or not out]

    def table(self, names: Sequence[str]) -> list[Tried]:
        """All candidates, also those that did not finish."""
        whole = int((self.times > 0).sum(1).max())
        finished = [i for i, row in enumerate(self.times) if int((row > 0).sum()) == whole]
        best = finished[int(self.standings(finished)[0].argmax())]
        tried = []
        for i, name in enumerate(names):
            shares, labels = self.shares([i])
            _, behind = self.standings([best, i])
            figure, error = balanced(shares, labels), standard_error(shares, labels)
            share = len(labels) / whole
            tried.append(Tried(name, float(figure[0]), float(error[0]), float(behind[1]), share))
        return tried


def affordable(
    costs: Sequence[float], operations: float, always: Collection[int]
) -> tuple[list[int], list[int]]:
    """Candidates whose operations fit together, and the costliest, which are left out for that.

    Those of `always` stay.
    """
    total, dropped = sum(costs), set[int]()
    for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
        if total <= operations:
            break
        if i not in always:
            total -= costs[i]
            dropped.add(i)
    return [i for i in range(len(costs)) if i not in dropped], sorted(dropped)
