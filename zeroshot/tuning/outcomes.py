"""The choice among candidates that learn nothing, by an outcome of each on each item.

An item is an image with its references, or images with the queries that find them; an outcome is
any number, the more the better. `selection` with outcomes in place of logits, without ensembles:

    inner    the simplest candidate within one standard error of the best, after a race         (1)
    outer    (1) without a fold; the outcomes of its winner on that fold                        (2)
    default  the first candidate is taken unless (2) is better than it beyond chance            (3)

Nothing is learned from the other folds, so that an outcome is computed once, and only if a race
comes to it. A race without a fold is run anew: who is dropped there, the fold does not decide.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.tuning.folds import MOST_FOLDS, stratified_folds
from zeroshot.tuning.greedy_ensemble import GreedyEnsemble
from zeroshot.tuning.intervals import balanced, estimate_mean, p_not_better
from zeroshot.tuning.race import Race, affordable
from zeroshot.tuning.selection import (
    LEAST_ROWS,
    SIGNIFICANT,
    ChoiceInterruptedError,
    MeasuredChoice,
    Selection,
    TuningProgress,
)


@dataclass(frozen=True, eq=False)
class OutcomeCandidate:
    """One way to a result, which learns nothing from the items."""

    name: str
    outcomes: Callable[[Int[Tensor, " h"]], Float[Tensor, " h"]]
    """Of some items, by index."""
    cost: float = 0.0
    """Operations of all items together."""


def choose_by_outcomes(
    candidates: Sequence[OutcomeCandidate],
    items: int,
    *,
    largest: float = math.inf,
    seed: int = 0,
    operations: float = math.inf,
    progress: TuningProgress = lambda name, best, done: None,
) -> MeasuredChoice:
    """Choose among candidates, and measure the procedure by an outer loop.

    Args:
        candidates: the default first, the others by their effort.
        largest: outcome that there can be; the least is 0.
        operations: of all candidates but the default; the costliest are left out until they fit.

    Returns:
        The choice; `plain` is the default, and `gain` and `p` those of (2), also where the default
        is taken.

    Raises:
        UserError: fewer than `LEAST_ROWS` items.
        ChoiceInterruptedError: Ctrl-C; it has the best so far.
    """
    if items < LEAST_ROWS:
        raise UserError(f"{items} are too few to measure anything: {LEAST_ROWS} are needed")
    costs = [0.0, *(one.cost for one in candidates[1:])]
    kept, dropped = affordable(costs, operations, (0,))
    left_out = tuple(candidates[i].name for i in dropped)
    generator = torch.Generator().manual_seed(seed)
    one_class = torch.zeros(items, dtype=torch.int64)
    folds = stratified_folds(one_class, MOST_FOLDS, generator)
    loop = _Outcomes([candidates[i] for i in kept], folds, progress)
    try:
        winner, race = loop.choose(None)
        held_out = loop.outer()
        default = loop.of(0, torch.arange(items))
    except KeyboardInterrupt:
        raise ChoiceInterruptedError(loop.best_so_far(), left_out, loop.done) from None
    gains = held_out - default
    p = p_not_better(gains, one_class, generator)
    better = p <= SIGNIFICANT and winner != 0
    return MeasuredChoice(
        selection=loop.selection(winner if better else 0, race),
        better=better,
        accuracy=estimate_mean(held_out if better else default, largest),
        plain=estimate_mean(default, largest),
        gain=float(balanced(gains, one_class)),
        p=p,
        folds=MOST_FOLDS,
        repeats=1,
        left_out=left_out,
    )


@dataclass
class _Outcomes:
    candidates: Sequence[OutcomeCandidate]
    folds: Int[Tensor, " n"]
    progress: TuningProgress
    done: float = 0.0
    """Share of the choice that is made."""
    _known: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    _standing: tuple[list[int], Race] | None = None

    def of(self, candidate: int, rows: Int[Tensor, " h"]) -> Float[Tensor, " h"]:
        """Outcomes of a candidate on these rows, those of each fold computed once."""
        found = torch.full((len(self.folds),), math.nan, dtype=torch.float64)
        for fold in sorted(set(self.folds[rows].tolist())):
            own, key = (self.folds == fold).nonzero()[:, 0], (candidate, fold)
            if key not in self._known:
                self._known[key] = self.candidates[candidate].outcomes(own).double()
            found[own] = self._known[key]
        return found[rows]

    def choose(self, without: int | None) -> tuple[int, Race]:
        """(1), on all folds but one."""
        race = Race.of(len(self.candidates), torch.zeros_like(self.folds))
        alive = list(range(len(self.candidates)))
        rounds = [fold for fold in range(MOST_FOLDS) if fold != without]
        for step, fold in enumerate(rounds):
            rows = (self.folds == fold).nonzero()[:, 0]
            for i in alive:
                race.add(i, rows, self.of(i, rows))
            if without is None:
                figures, _ = race.standings(alive)
                best, self.done = int(figures.argmax()), (step + 1) / len(rounds)
                self._standing = alive, race
                self.progress(self.candidates[alive[best]].name, float(figures[best]), self.done)
            alive = race.remaining(alive, (0,))
        return race.simplest(alive), race

    def outer(self) -> Float[Tensor, " n"]:
        """(2)."""
        held_out = torch.zeros(len(self.folds), dtype=torch.float64)
        for fold in range(MOST_FOLDS):
            rows = (self.folds == fold).nonzero()[:, 0]
            held_out[rows] = self.of(self.choose(fold)[0], rows)
        return held_out

    def selection(self, chosen: int, race: Race) -> Selection:
        """This candidate, and the table of all."""
        tried = race.table([one.name for one in self.candidates])
        best_first = sorted(tried, key=lambda t: (-t.share, -t.accuracy))
        return Selection(GreedyEnsemble((chosen,), (1.0,), (1.0,)), tuple(best_first))

    def best_so_far(self) -> Selection:
        """The choice on the folds that are done; the default before these."""
        if self._standing is None:
            return Selection(GreedyEnsemble((0,), (1.0,), (1.0,)), ())
        alive, race = self._standing
        return self.selection(race.simplest(alive), race)
