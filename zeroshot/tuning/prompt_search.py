"""Which prompts: coordinate ascent on labelled rows, stopped by other labelled rows.

A class is the unit mean of its prompts, as in `ensemble`. One move adds a prompt or takes one away:

    a template           for all classes at once; the best of all moves is made                  (1)
    a prompt of a class  (a synonym, a description) for its class; the best of each class        (2)

Of three labelled rows two judge the moves, by the log-likelihood with each class weighing the same.
The third is held aside: the search ends when it has gained nothing for `PATIENCE` moves of (1), or
a round of (2), and the prompts with which it stood best are kept. (1) and (2) take turns.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zeroshot.tuning.folds import class_weights, stratified_folds
from zeroshot.tuning.greedy_ensemble import fit_temperatures

PARTS = 3
"""One of so many is held aside."""
PATIENCE = 3
TURNS = 2
MOST_MOVES = 40
LEAST_GAIN = 1e-6
RANGE = 10.0
"""The scale of the logits is fitted within this factor of the usual one."""
MOST_COSINES = 50_000_000
"""Of rows with prompts; above, the search sees a part of the rows: 200 MB here."""


@dataclass(frozen=True, eq=False)
class PromptPool:
    """All prompts that a search can take, in a joint space at unit length."""

    texts: Float[Tensor, "c t d"]
    """0 for padding."""
    mask: Bool[Tensor, "c t"]
    """False for padding."""
    shared: Bool[Tensor, " t"]
    """Whether the prompts of this number come from one template, for all classes."""
    starts: Bool[Tensor, "s c t"]
    """Sets of prompts; the search starts from the best of them, the first of equals."""


def search_prompts(
    pool: PromptPool,
    images: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    logit_scale: float,
    generator: torch.Generator,
) -> Bool[Tensor, "c t"]:
    """The prompts to take; the first start if no row can be held aside."""
    most = max(PARTS, MOST_COSINES // pool.mask.numel())
    if len(labels) > most:
        part = torch.randperm(len(labels), generator=generator)[:most]
        images, labels = images[part], labels[part]
    aside = stratified_folds(labels, PARTS, generator) == 0
    if not aside.any():
        return pool.starts[0]
    search = _Search(pool, images[~aside], labels[~aside], logit_scale)
    judge = _Search(pool, images[aside], labels[aside], logit_scale)
    losses = [search.fit(start) for start in pool.starts]
    best = pool.starts[losses.index(min(losses))]
    search.fit(best)
    least = judge.loss(best, search.scale)
    for _ in range(TURNS):
        before = least
        for moves, patience in ((search.templates, PATIENCE), (search.own_prompts, 1)):
            waited = 0
            for moved in moves(best):
                loss = judge.loss(moved, search.scale)
                waited += 1
                if loss < least - LEAST_GAIN:
                    best, least, waited = moved, loss, 0
                if waited == patience:
                    break
        if least == before:
            break
    return best


class _Search:
    """Losses of sets of prompts on some rows, and moves that lower them."""

    def __init__(
        self, pool: PromptPool, images: Tensor, labels: Tensor, logit_scale: float
    ) -> None:
        self.pool, self.labels, self.usual = pool, labels, logit_scale
        self.weights = class_weights(labels)
        self.cosines = torch.einsum("nd,ctd->tnc", images, pool.texts)
        self.scale = logit_scale

    def fit(self, chosen: Bool[Tensor, "c t"]) -> float:
        """The loss at the best scale for these prompts, which the next move keeps.

        Prompts that know nothing would have a scale of 0, at which no move could gain, or any at
        all; at a large one a class that moves alone would take all images.
        """
        logits = self._logits(chosen)
        best = 1.0 / float(fit_temperatures(logits[None], self.labels)[0])
        smallest = self.usual / RANGE
        scales = (smallest, min(self.usual * RANGE, max(smallest, best)))
        losses = [self._of(scale * logits) for scale in scales]
        better = losses[1] < losses[0] - LEAST_GAIN
        self.scale = scales[better]
        return losses[better]

    def loss(self, chosen: Bool[Tensor, "c t"], scale: float) -> float:
        return self._of(scale * self._logits(chosen))

    def templates(self, chosen: Bool[Tensor, "c t"]) -> Iterator[Bool[Tensor, "c t"]]:
        """Moves (1), each by the best gain."""
        columns = self.pool.shared.nonzero()[:, 0].tolist()
        for _ in range(MOST_MOVES):
            least = self.fit(chosen)
            sums, total = self._sums(chosen)
            best = None
            for t in columns:
                turned = chosen.clone()
                turned[:, t] = ~turned[:, t] & self.pool.mask[:, t]
                if not turned.any(1).all():
                    continue
                sign = turned[:, t].to(sums) - chosen[:, t].to(sums)
                moved = total + sign[:, None] * self.pool.texts[:, t]
                logits = (sums + sign * self.cosines[t]) / _length(moved)
                loss = self._of(self.scale * logits)
                if loss < least - LEAST_GAIN:
                    best, least = turned, loss
            if best is None:
                return
            chosen = best
            yield chosen

    def own_prompts(self, chosen: Bool[Tensor, "c t"]) -> Iterator[Bool[Tensor, "c t"]]:
        """Moves (2), one of each class at most before the next is seen."""
        own = self.pool.mask & ~self.pool.shared
        for _ in range(MOST_MOVES):
            self.fit(chosen)
            sums, total = self._sums(chosen)
            logits = self.scale * sums / _length(total)
            turned = chosen.clone()
            for c in own.any(1).nonzero()[:, 0].tolist():
                columns = own[c].nonzero()[:, 0]
                if chosen[c].sum() == 1:  # the last one stays
                    columns = columns[~chosen[c, columns]]
                if not len(columns):
                    continue
                sign = 1 - 2 * chosen[c, columns].to(sums)
                moved = total[c] + sign[:, None] * self.pool.texts[c, columns]  # [k, d]
                cosines = self.cosines[columns, :, c].T * sign + sums[:, c, None]  # [n, k]
                others = logits.clone()
                others[:, c] = -torch.inf
                rest = others.logsumexp(1)
                column = self.scale * cosines / _length(moved)
                both = torch.cat([logits[:, c, None], column], 1).double()
                is_own = (self.labels == c).double()
                losses = self.weights @ (
                    torch.logaddexp(rest[:, None].double(), both) - is_own[:, None] * both
                )
                best = int(losses.argmin())
                if losses[best] < losses[0] - LEAST_GAIN:
                    turned[c, columns[best - 1]] ^= True
                    logits[:, c] = both[:, best].to(logits)
            if torch.equal(turned, chosen):
                return
            chosen = turned
            yield chosen

    def _sums(self, chosen: Tensor) -> tuple[Float[Tensor, "n c"], Float[Tensor, "c d"]]:
        """Sums of cosines, and of the prompts themselves."""
        weight = chosen.to(self.pool.texts)
        return (
            torch.einsum("tnc,ct->nc", self.cosines, weight),
            torch.einsum("ctd,ct->cd", self.pool.texts, weight),
        )

    def _logits(self, chosen: Tensor) -> Float[Tensor, "n c"]:
        sums, total = self._sums(chosen)
        return sums / _length(total)

    def _of(self, logits: Float[Tensor, "n c"]) -> float:
        logits = logits.double()
        own = logits.gather(1, self.labels[:, None])[:, 0]
        return float(self.weights @ (logits.logsumexp(1) - own))


def _length(rows: Float[Tensor, "*n d"]) -> Float[Tensor, " *n"]:
    return rows.square().sum(-1).sqrt().clamp_min(1e-12)


def taken(
    pool: PromptPool, chosen: Bool[Tensor, "c t"]
) -> tuple[Float[Tensor, "c u d"], Bool[Tensor, "c u"]]:
    """The prompts that were chosen for any class, and whose they are."""
    columns = chosen.any(0)
    return pool.texts[:, columns], chosen[:, columns]
