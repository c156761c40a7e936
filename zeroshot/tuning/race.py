"""How candidates stand after some folds, and which need not be tried on the next.

Candidates race (Maron and Moore 1994, "Hoeffding Races"; here with the paired standard error): one
that falls back by `FALLEN` errors after a fold is tried on no further one.
"""

import math
from collections.abc import Sequence
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
    """How often each candidate was right on each row, and how often it was tried there."""

    hits: Float[Tensor, "m n"]
    times: Float[Tensor, "m n"]
    labels: Int[Tensor, " n"]

    @classmethod
    def of(cls, candidates: int, labels: Int[Tensor, " n"]) -> "Race":
        """Before the first fold."""
        zeros = torch.zeros(candidates, len(labels), dtype=torch.float64)
        return cls(zeros, zeros.clone(), labels)

    def add(self, candidate: int, rows: Int[Tensor, " h"], logits: Float[Tensor, "h c"]) -> None:
        """A candidate's logits of the rows of a fold."""
        self.hits[candidate, rows] += (logits.argmax(1) == self.labels[rows]).double()
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
