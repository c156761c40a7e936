"""The choice among candidates, and what it is worth on rows that took no part in it.

    inner    each candidate is learned without a fold and scored on it; the simplest candidate whose
             balanced accuracy is within one standard error of the best is chosen                (1)
    outer    the inner choice is made without a fold, and its winner is scored on that fold      (2)
    default  the first candidate is taken unless (2) is better than it beyond chance             (3)

(1) is the one-standard-error rule of Breiman et al. 1984, "Classification and Regression Trees",
section 3.4.3, with the error of the paired difference. (2) is nested cross-validation (Varma and
Simon 2006, "Bias in error estimation when using cross-validation for model selection"): the figure
that is reported took part in no choice, neither of the candidate nor of an ensemble's members. (3)
is ours: among thirty candidates and forty rows, one is within a standard error of the best by luck,
and in one trial of ten the choice of (1) alone lost twenty points to the default. What
was learned without the folds i and j serves the inner loops of both, so K folds need K (K + 1) / 2
fits a candidate.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.tuning.folds import fold_count, stratified_folds
from zeroshot.tuning.greedy_ensemble import GreedyEnsemble, fit_temperatures, select_greedily
from zeroshot.tuning.intervals import (
    Estimate,
    balanced,
    estimate,
    p_not_better,
    standard_error,
)
from zeroshot.tuning.race import Race, Tried, affordable

LEAST_ROWS = 10
"""Nothing is measured on fewer labelled rows."""
LEAST_FOLDS = 3
"""Nothing is chosen with fewer folds, since the outer loop takes one and the inner loop another:
the first candidate is measured."""
SIGNIFICANT = 0.05
MOST_REPEATS = 3
ROWS_OF_REPEATS = 200
"""Repeats of the folds for n rows: this many rows in all, at least one repeat."""
FRACTIONS = (0.25, 0.5, 0.75)
"""Of the rows of each class, for the learning curve."""
ENSEMBLE = "ensemble of several"


@dataclass(frozen=True, eq=False)
class Configuration:
    """One way to an answer: logits of some rows, learned from others."""

    name: str
    logits: Callable[[Int[Tensor, " m"], Int[Tensor, " h"]], Float[Tensor, "h c"]]
    """From the rows to learn from and the rows to score, by index."""
    learns: bool = True
    """Whether the labels of the rows to learn from matter."""
    cost: float = 0.0
    """Operations of one fit on all rows."""


@dataclass(frozen=True)
class Selection:
    """The chosen candidate with its figures."""

    ensemble: GreedyEnsemble
    """The candidate as the only member, or the members of an ensemble, by index."""
    tried: tuple[Tried, ...]
    """Best first."""

    @property
    def single(self) -> int | None:
        """The candidate, unless an ensemble was chosen."""
        members = self.ensemble.members
        return members[0] if len(members) == 1 else None


@dataclass(frozen=True, kw_only=True)
class MeasuredChoice:
    """What the whole procedure reaches on rows that took no part in it."""

    selection: Selection
    """Made on all rows; the first candidate unless the procedure is better than that."""
    better: bool
    """Whether it is: (3)."""
    accuracy: Estimate
    """Of the outer loop; of the first candidate, if that is taken."""
    plain: Estimate
    """Of plain zero-shot, on the same rows."""
    gain: float
    """Of the outer loop over plain zero-shot."""
    p: float
    """That it is none, one-sided."""
    folds: int
    repeats: int
    left_out: tuple[str, ...] = ()
    """Candidates for which the budget was too small."""


@dataclass(frozen=True, kw_only=True)
class TuningResult(MeasuredChoice):
    """A choice among methods that label."""

    probabilities: Float[Tensor, "n c"]
    """Of the chosen candidate, out of fold; of the first repeat."""
    held_out: Float[Tensor, " n"]
    """Hits of the outer loop."""
    curve: tuple[tuple[float, float, float], ...]
    """Rows of a class on the mean, balanced accuracy, its standard error."""


class ChoiceInterruptedError(KeyboardInterrupt):
    """Ctrl-C during the choice; what was best until then."""

    def __init__(self, selection: Selection, left_out: tuple[str, ...], done: float) -> None:
        super().__init__()
        self.selection = selection
        """The first candidate alone, if nothing was compared yet."""
        self.left_out = left_out
        self.done = done
        """Share of the choice that was made; 1 if only its measurement is missing."""


@dataclass
class _Fits:
    """Logits of a fold, learned without it and without further folds; each is computed once."""

    candidates: Sequence[Configuration]
    folds: Sequence[Int[Tensor, " n"]]
    """One assignment a repeat."""
    _known: dict[tuple[int, int, frozenset[int], int], Tensor] = field(default_factory=dict)

    def rows(self, repeat: int, fold: int) -> Int[Tensor, " h"]:
        return (self.folds[repeat] == fold).nonzero()[:, 0]

    def logits(self, candidate: int, repeat: int, without: frozenset[int], fold: int) -> Tensor:
        """Of the rows of `fold`, learned from all rows in no fold of `without`."""
        learns = self.candidates[candidate].learns
        key = (candidate, repeat if learns else -1, without if learns else frozenset(), fold)
        if not learns:
            key = (candidate, -1, frozenset(), -1)
        if key not in self._known:
            own = self.folds[repeat]
            train = (~torch.isin(own, torch.tensor(sorted(without)))).nonzero()[:, 0]
            test = self.rows(repeat, fold) if learns else torch.arange(len(own))
            self._known[key] = self.candidates[candidate].logits(train, test)
        found = self._known[key]
        return found if learns else found[self.rows(repeat, fold)]


TuningProgress = Callable[[str, float, float], None]
"""What is tried, the best accuracy so far, and the share that is done."""


def evaluate(
    candidates: Sequence[Configuration],
    labels: Int[Tensor, " n"],
    *,
    plain: int,
    seed: int = 0,
    operations: float = math.inf,
    further: int | None = None,
    ensembles: bool = True,
    progress: TuningProgress = lambda name, best, done: None,
) -> TuningResult:
    """Choose among candidates, and measure the procedure by an outer loop.

    Args:
        candidates: the simplest first; a later one has to be better by a standard error.
        labels: the class of each labelled row.
        plain: which candidate is plain zero-shot, for the comparison.
        operations: of all fits together; repeats of the folds, and then the costliest candidates,
            are left out until they fit.
        further: how many rows the intervals are about; as many as there are labels by default.

    Raises:
        UserError: fewer than `LEAST_ROWS` rows, or one row for most classes: nothing can be held
            out.
        ChoiceInterruptedError: Ctrl-C; it has the best so far.
    """
    count = fold_count(labels)
    if count == 0 or len(labels) < LEAST_ROWS:
        classes = len(labels.bincount().nonzero())
        raise UserError(
            f"{len(labels)} labelled images of {classes} classes are too few to "
            f"measure anything: {LEAST_ROWS} are needed, and two of most classes"
        )
    if count < LEAST_FOLDS:
        candidates, plain = [candidates[0], candidates[plain]], 1
    afforded, repeats, left_out = _afford(candidates, count, len(labels), operations, plain)
    kept = [candidates[i] for i in afforded]
    plain = afforded.index(plain)
    generator = torch.Generator().manual_seed(seed)
    folds = [stratified_folds(labels, count, generator) for _ in range(repeats)]
    loop = _Loop(_Fits(kept, folds), labels, plain, ensembles, progress)
    try:
        return _choose_and_measure(loop, count, generator, further, left_out)
    except KeyboardInterrupt:
        raise ChoiceInterruptedError(loop.best_so_far(), left_out, loop.done) from None


def _choose_and_measure(
    loop: "_Loop",
    count: int,
    generator: torch.Generator,
    further: int | None,
    left_out: tuple[str, ...],
) -> TuningResult:
    folds, labels, plain = loop.fits.folds, loop.labels, loop.plain
    repeats = len(folds)
    selection = loop.choose(frozenset(), tuple(range(repeats)))
    rows = (folds[0] >= 0).nonzero()[:, 0]
    plain_hits = loop.hits_of(plain, count)
    hits = loop.hits_of(0, count) if count < LEAST_FOLDS else loop.outer(count)
    first_hits = loop.hits_of(0, count)
    better = p_not_better((hits - first_hits)[rows], labels[rows], generator) <= SIGNIFICANT
    better = better and count >= LEAST_FOLDS
    if not better:
        selection, hits = replace(selection, ensemble=loop.alone(0, count)), first_hits
    gain = (hits - plain_hits)[rows]
    p = p_not_better(gain, labels[rows], generator)
    return TuningResult(
        selection=selection,
        better=better,
        accuracy=estimate(hits[rows], labels[rows], further),
        plain=estimate(plain_hits[rows], labels[rows], further),
        gain=float(balanced(gain, labels[rows])),
        p=p,
        probabilities=loop.probabilities(selection, count),
        held_out=hits,
        curve=loop.curve(selection, count, generator),
        folds=count,
        repeats=repeats,
        left_out=left_out,
    )


def _afford(
    candidates: Sequence[Configuration], folds: int, rows: int, operations: float, plain: int
) -> tuple[list[int], int, tuple[str, ...]]:
    """Candidates and repeats whose operations fit; the first and plain zero-shot always stay."""
    fits = folds * (folds + 1) / 2
    repeats = max(1, min(MOST_REPEATS, ROWS_OF_REPEATS // rows))
    total = fits * sum(c.cost for c in candidates)
    if total * repeats > operations and total:
        repeats = max(1, min(repeats, int(operations / total)))
    kept, dropped = affordable([fits * c.cost for c in candidates], operations, (0, plain))
    return kept, repeats, tuple(candidates[i].name for i in dropped)


_Standing = tuple[
    Sequence[int],
    Race,
    Sequence[tuple[int, int]],
    Mapping[tuple[int, int], Mapping[int, Tensor]],
]
"""Candidates that are still tried, their race, the rounds that are done, and logits there."""


def _best_first(chosen: GreedyEnsemble, tried: Sequence[Tried]) -> Selection:
    return Selection(chosen, tuple(sorted(tried, key=lambda t: (-t.share, -t.accuracy))))


@dataclass
class _Loop:
    fits: _Fits
    labels: Int[Tensor, " n"]
    plain: int
    ensembles: bool
    progress: TuningProgress
    done: float = 0.0
    """Share of the choice that is made."""
    _known: _Standing | None = None
    _chosen: Selection | None = None

    def choose(self, without: frozenset[int], repeats: Sequence[int]) -> Selection:
        """The inner loop (1), on all folds that are not in `without`."""
        fits, labels = self.fits, self.labels
        count = int(fits.folds[0].max()) + 1
        rounds = [(r, j) for r in repeats for j in range(count) if j not in without]
        number = len(fits.candidates)
        race = Race.of(number, labels)
        alive = list(range(number))
        logits: dict[tuple[int, int], dict[int, Tensor]] = {}
        for step, (repeat, fold) in enumerate(rounds):
            rows = fits.rows(repeat, fold)
            own = {i: fits.logits(i, repeat, without | {fold}, fold) for i in alive}
            for i in alive:
                race.add(i, rows, (own[i].argmax(1) == labels[rows]).double())
            logits[repeat, fold] = own
            if not without:
                figures, _ = race.standings(alive)
                best = int(figures.argmax())
                share = (step + 1) / len(rounds)
                self._known = alive, race, rounds[: step + 1], logits
                self.done = share
                self.progress(fits.candidates[alive[best]].name, float(figures[best]), share)
            alive = race.remaining(alive, (0, self.plain))
        tried = race.table([one.name for one in fits.candidates])
        winner, chosen = self._winner(alive, race, rounds, logits)
        if self.ensembles and len(alive) > 1:
            ensemble, blended = self._blend(alive, rounds, logits)
            blend = Race(
                torch.stack([race.hits[winner], blended]), race.times[[winner] * 2], labels
            )
            figures, behind = blend.standings([0, 1])
            if behind[0] > 1:
                chosen = ensemble
            error = float(standard_error(*blend.shares([1]))[0])
            tried.append(Tried(ENSEMBLE, float(figures[1]), error, math.nan, 1.0))
        selection = _best_first(chosen, tried)
        if not without:
            self._chosen = selection
        return selection

    def _winner(
        self,
        alive: Sequence[int],
        race: Race,
        rounds: Sequence[tuple[int, int]],
        logits: Mapping[tuple[int, int], Mapping[int, Tensor]],
    ) -> tuple[int, GreedyEnsemble]:
        """The simplest that is within an error of the best, with its temperature."""
        winner = race.simplest(alive)
        rows = torch.cat([self.fits.rows(r, j) for r, j in rounds])
        own = torch.cat([logits[key][winner] for key in rounds])
        scale = float(fit_temperatures(own[None], self.labels[rows])[0])
        return winner, GreedyEnsemble((winner,), (1.0,), (scale,))

    def best_so_far(self) -> Selection:
        """The choice, or what it would be on the folds that are done; the first before these."""
        if self._chosen is not None:
            return self._chosen
        if self._known is None:
            return Selection(GreedyEnsemble((0,), (1.0,), (1.0,)), ())
        alive, race, rounds, logits = self._known
        _, chosen = self._winner(alive, race, rounds, logits)
        return _best_first(chosen, race.table([one.name for one in self.fits.candidates]))

    def _blend(
        self,
        alive: Sequence[int],
        rounds: Sequence[tuple[int, int]],
        logits: Mapping[tuple[int, int], Mapping[int, Tensor]],
    ) -> tuple[GreedyEnsemble, Float[Tensor, " n"]]:
        """The ensemble of all folds; and hits of a fold under the ensemble of the other folds."""
        blended = torch.zeros(len(self.labels), dtype=torch.float64)
        for repeat, fold in rounds:
            others = [key for key in rounds if key[0] == repeat and key != (repeat, fold)]
            if not others:
                continue
            ensemble = self._members(alive, others, logits)
            rows = self.fits.rows(repeat, fold)
            own = {n: logits[repeat, fold][i] for n, i in enumerate(alive)}
            scores = ensemble.probabilities(own)
            blended[rows] += (scores.argmax(1) == self.labels[rows]).double()
        whole = self._members(alive, rounds, logits)
        return (
            GreedyEnsemble(
                tuple(alive[m] for m in whole.members), whole.weights, whole.temperatures
            ),
            blended,
        )

    def _members(
        self,
        alive: Sequence[int],
        keys: Sequence[tuple[int, int]],
        logits: Mapping[tuple[int, int], Mapping[int, Tensor]],
    ) -> GreedyEnsemble:
        rows = torch.cat([self.fits.rows(*key) for key in keys])
        own = [torch.cat([logits[key][i] for key in keys]) for i in alive]
        return select_greedily(own, self.labels[rows])

    def answers(
        self, selection: Selection, repeat: int, without: frozenset[int], fold: int
    ) -> Float[Tensor, "h c"]:
        """Probabilities of the rows of a fold under a choice."""
        return selection.ensemble.probabilities(
            {m: self.fits.logits(m, repeat, without, fold) for m in selection.ensemble.members}
        )

    def outer(self, count: int) -> Float[Tensor, " n"]:
        """(2): hits of the procedure, on the mean of the repeats."""
        hits = torch.zeros(len(self.labels), dtype=torch.float64)
        for repeat in range(len(self.fits.folds)):
            for fold in range(count):
                rows = self.fits.rows(repeat, fold)
                selection = self.choose(frozenset({fold}), (repeat,))
                scores = self.answers(selection, repeat, frozenset({fold}), fold)
                hits[rows] += (scores.argmax(1) == self.labels[rows]).double()
        return hits / len(self.fits.folds)

    def hits_of(self, candidate: int, count: int) -> Float[Tensor, " n"]:
        """Hits of one candidate, likewise."""
        hits = torch.zeros(len(self.labels), dtype=torch.float64)
        for repeat in range(len(self.fits.folds)):
            for fold in range(count):
                rows = self.fits.rows(repeat, fold)
                own = self.fits.logits(candidate, repeat, frozenset({fold}), fold)
                hits[rows] += (own.argmax(1) == self.labels[rows]).double()
        return hits / len(self.fits.folds)

    def alone(self, candidate: int, count: int) -> GreedyEnsemble:
        """One candidate with its temperature, from all folds of the first repeat."""
        rows = torch.cat([self.fits.rows(0, fold) for fold in range(count)])
        own = [self.fits.logits(candidate, 0, frozenset({j}), j) for j in range(count)]
        scale = float(fit_temperatures(torch.cat(own)[None], self.labels[rows])[0])
        return GreedyEnsemble((candidate,), (1.0,), (scale,))

    def probabilities(self, selection: Selection, count: int) -> Float[Tensor, "n c"]:
        """Out-of-fold probabilities under the final choice; NaN for a row that is in no fold."""
        found: Tensor | None = None
        for fold in range(count):
            rows = self.fits.rows(0, fold)
            own = self.answers(selection, 0, frozenset({fold}), fold)
            if found is None:
                found = torch.full((len(self.labels), own.shape[1]), math.nan, dtype=torch.float64)
            found[rows] = own
        assert found is not None
        return found

    def curve(
        self, selection: Selection, count: int, generator: torch.Generator
    ) -> tuple[tuple[float, float, float], ...]:
        """Accuracy of the choice with a part of the rows of each class to learn from."""
        candidates = self.fits.candidates
        if not any(candidates[m].learns for m in selection.ensemble.members):
            return ()
        points = []
        classes = len(self.labels.bincount().nonzero())
        for fraction in (*FRACTIONS, 1.0):
            hits = torch.zeros(len(self.labels), dtype=torch.float64)
            used = 0
            for fold in range(count):
                rows = self.fits.rows(0, fold)
                train = (self.fits.folds[0] != fold).nonzero()[:, 0]
                part = _part_of_each_class(train, self.labels, fraction, generator)
                used += len(part)
                own = selection.ensemble.probabilities(
                    {m: candidates[m].logits(part, rows) for m in selection.ensemble.members}
                )
                hits[rows] = (own.argmax(1) == self.labels[rows]).double()
            rows = (self.fits.folds[0] >= 0).nonzero()[:, 0]
            points.append(
                (
                    used / count / classes,
                    float(balanced(hits[rows], self.labels[rows])),
                    float(standard_error(hits[rows], self.labels[rows])),
                )
            )
        return tuple(dict.fromkeys(points))


def _part_of_each_class(
    rows: Int[Tensor, " m"], labels: Int[Tensor, " n"], fraction: float, generator: torch.Generator
) -> Int[Tensor, " p"]:
    """A share of the rows of each class at random, at least one."""
    parts = []
    for label in labels[rows].bincount().nonzero()[:, 0].tolist():
        own = rows[labels[rows] == label]
        keep = max(1, math.ceil(fraction * len(own)))
        parts.append(own[torch.randperm(len(own), generator=generator)[:keep]])
    return torch.cat(parts).sort().values
