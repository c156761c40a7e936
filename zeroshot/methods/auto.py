"""The coupling that suits these anchors, chosen by retrieval on some of them set aside.

Ours; what is chosen among: `procrustes`, `csa`, `csa_asif`, `asif`, `relative` (`ridge_cca` is as
good as `csa` to within a standard error, and cannot be edited as fast).

    quality = mean over held-out pairs of 1 / rank of a picture's own text among theirs
    choice  = argmax over methods and options, over a few random splits

Which method and which options are best depends on the encoders and on how many pairs there are:
with a thousand pairs a linear map, with a million ASIF; on the photographs of docs/couplings.md the
paper's k=800, p=8 finds half of what the best choice finds.

The ridge that suits a part of the pairs is too strong for all of them, so it is scaled by the share
that it was chosen on.

Time is kept by counting operations beforehand, not by a clock, so that the same anchors lead to
the same choice on every machine: with more anchors than the budget allows, a random part of them
decides.

Whether two encoders couple at all is told by a control: the same choice made against shuffled
texts. Encoders that couple are better than every shuffle; what is not better than chance cannot
be repaired by choosing.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor

from zeroshot.errors import UserError, unknown
from zeroshot.methods import Explanation, Output
from zeroshot.methods._pairs import (
    BLOCK,
    Relative as RelativeRows,
    Rows,
    Templates,
    check_pairs,
    fitted,
    weighted,
)
from zeroshot.methods.asif import ASIF
from zeroshot.methods.csa import CSA
from zeroshot.methods.csa_asif import CSAASIF
from zeroshot.methods.procrustes import Procrustes
from zeroshot.methods.relative import Relative
from zeroshot.ops import normalize

OPERATIONS = 20e9
"""Multiplications and additions that a second of the budget stands for: one core of a laptop."""
HELD_OUT = 200
LEAST = 50
"""Pairs below which nothing can be set aside."""
SHUFFLES = 200
NEIGHBOURS = (12, 25, 50, 100, 200, 400, 800)
POWERS = (1.0, 2.0, 4.0, 8.0)
RIDGES = (0.1, 0.3, 1.0, 2.0, 4.0, 8.0)
"""Twice as much is hardly worse, so a finer grid would choose by chance."""
DIRECTIONS = (128,)
"""Beside all of them: weighting by rho leaves little to choose."""

Trials = dict[Any, Float[Tensor, "h h"]]
"""Similarities of held-out pictures and texts under each unfitted coupling."""


@dataclass(frozen=True)
class Trial:
    """How well a coupling finds the texts of held-out pictures."""

    coupling: Any
    """Not fitted."""
    reciprocal_rank: float
    recall_1: float
    recall_5: float


@dataclass(frozen=True)
class Report:
    """What was chosen, what else there was, and whether the encoders couple."""

    chosen: Trial
    others: tuple[Trial, ...]
    """The best of every other method, best first."""
    margin: float
    """Mean reciprocal rank above the first of the others."""
    error: float
    """Standard error of the margin over held-out pairs."""
    pairs: int
    """Anchors that decided."""
    held_out: int
    splits: int
    shuffled: float
    """The best mean reciprocal rank against shuffled texts, of `SHUFFLES` shuffles."""
    verdict: Literal["couple", "hardly couple", "do not couple", "too few pairs to tell"]

    def lines(self) -> list[str]:
        """All of it in sentences."""
        if not self.splits:
            return [
                f"auto chose {self.chosen.coupling!r}: {self.pairs} pairs are too few to set any "
                f"aside (that takes {LEAST}), so nothing says whether these encoders couple"
            ]
        best = self.chosen
        lines = [
            f"auto chose {best.coupling!r}",
            f"held-out pictures find their text first in {best.recall_1:.3f}, among five in "
            f"{best.recall_5:.3f} ({self.splits} x {self.held_out} of {self.pairs} pairs; chance "
            f"{1 / self.held_out:.3f} and {5 / self.held_out:.3f})",
        ]
        if self.others:
            lines.append(
                f"next best: {self.others[0].coupling!r}, {self.others[0].recall_1:.3f} and "
                f"{self.others[0].recall_5:.3f}; its mean reciprocal rank is lower by "
                f"{self.margin:.3f} (standard error {self.error:.3f})"
            )
        lines.append(
            f"these encoders {self.verdict}: mean reciprocal rank {best.reciprocal_rank:.3f}, "
            f"{self.shuffled:.3f} at best of {SHUFFLES} choices on shuffled texts"
        )
        return lines


@dataclass(frozen=True)
class Auto:
    """A coupling that chooses another; `fit` gives it its anchors."""

    budget: float = 30.0
    """seconds on a slow core that choosing may take, counted in operations beforehand"""
    splits: int = 3
    """times that pairs are set aside, as far as the budget allows"""
    seed: int = 0
    """of the splits"""
    among: str = "all"
    """methods to choose among, separated by commas"""
    templates: Templates = "mean"
    """how the scores of a class's prompts become one"""

    coupling_: Any = field(default=None, repr=False, compare=False)
    report_: Report | None = field(default=None, repr=False, compare=False)

    transductive: ClassVar[bool] = False

    @property
    def output(self) -> Output:
        """A similarity, as that of all couplings."""
        return "similarity"

    def fit(self, anchor_images: Real[Tensor, "a d"], anchor_texts: Real[Tensor, "_a e"]) -> "Auto":
        """A copy that has chosen, and fitted its choice to all pairs."""
        report = self.choose(anchor_images, anchor_texts)
        coupling = report.chosen.coupling.fit(anchor_images, anchor_texts)
        return replace(self, coupling_=coupling, report_=report)

    def choose(
        self, anchor_images: Real[Tensor, "a d"], anchor_texts: Real[Tensor, "_a e"]
    ) -> Report:
        """What suits these pairs, judged on some of them."""
        check_pairs("auto", anchor_images, anchor_texts)
        makers = self._makers()
        count = len(anchor_images)
        if count < LEAST:
            linear = count > 1 and "procrustes" in makers
            chosen: Any = Procrustes() if linear else ASIF(k=count, p=2.0)
            nothing = Trial(replace(chosen, templates=self.templates), *[math.nan] * 3)
            verdict: Any = "too few pairs to tell"
            return Report(nothing, (), math.nan, math.nan, count, 0, 0, math.nan, verdict)
        width, depth = anchor_images.shape[1], anchor_texts.shape[1]
        pairs, splits = self._afford(count, width, depth)
        held_out = min(HELD_OUT, pairs // 5)
        generator = torch.Generator().manual_seed(self.seed)
        part = torch.randperm(count, generator=generator)[:pairs]
        trials: dict[Any, list[Tensor]] = {}
        for _ in range(splits):
            order = part[torch.randperm(pairs, generator=generator)]
            test, train = order[:held_out], order[held_out:]
            split = _Split(
                Rows.of(anchor_images[train]),
                Rows.of(anchor_texts[train]),
                *(_working(side[test]) for side in (anchor_images, anchor_texts)),
            )
            for make in makers.values():
                for coupling, similarity in make(split).items():
                    trials.setdefault(coupling, []).append(_ranks(similarity))
        report = self._judge(trials, pairs, generator)
        coupling = _for_all(report.chosen.coupling, (pairs - held_out) / count)
        return replace(report, chosen=replace(report.chosen, coupling=coupling))

    def _makers(self) -> dict[str, Callable[["_Split"], Trials]]:
        if self.budget <= 0 or self.splits < 1:
            raise UserError(f"budget={self.budget}, splits={self.splits}: above 0")
        named = MAKERS if self.among == "all" else [n.strip() for n in self.among.split(",")]
        for name in named:
            if name not in MAKERS:
                raise unknown("coupling to choose", name, MAKERS)
        return {name: MAKERS[name] for name in named}

    def _afford(self, count: int, d: int, e: int) -> tuple[int, int]:
        """Pairs and splits that the budget allows: all pairs first, then more splits."""
        room = self.budget * OPERATIONS
        solving = 10 * (d**3 + e**3) + 60 * len(RIDGES) * max(d, e) * min(d, e) ** 2
        each = 4 * (d * d + e * e + d * e) + 8 * HELD_OUT * (d + e)
        pairs = min(count, max(LEAST * 4, int((room - solving) / each)))
        return pairs, int(max(1, min(self.splits, room / (solving + each * pairs))))

    def _judge(
        self, trials: dict[Any, list[Tensor]], pairs: int, generator: torch.Generator
    ) -> Report:
        """The best trial, the best of the other methods, and the control."""
        couplings = list(trials)
        inverse = torch.stack([1 / torch.stack(trials[c]) for c in couplings])  # [t, s, h, h]
        own = inverse.diagonal(dim1=2, dim2=3).flatten(1)  # [t, s*h]
        quality = own.mean(1)
        tried = [
            Trial(
                replace(coupling, templates=self.templates),
                float(quality[i]),
                float((own[i] == 1).double().mean()),
                float((own[i] >= 0.2).double().mean()),
            )
            for i, coupling in enumerate(couplings)
        ]
        best: dict[type, int] = {}
        for i in quality.argsort(descending=True, stable=True).tolist():
            best.setdefault(type(couplings[i]), i)
        first, *rest = best.values()
        gap = own[first] - own[rest[0]] if rest else own[first] * math.nan
        splits, held_out = inverse.shape[1], inverse.shape[2]
        shuffled = 0.0
        for _ in range(SHUFFLES):
            order = torch.randperm(held_out, generator=generator)
            moved = inverse[:, :, torch.arange(held_out), order].mean((1, 2))
            shuffled = max(shuffled, float(moved.max()))
        verdict: Any = "couple"
        if tried[first].reciprocal_rank <= shuffled:
            verdict = "do not couple"
        elif tried[first].reciprocal_rank < 2 * shuffled:
            verdict = "hardly couple"
        return Report(
            tried[first],
            tuple(tried[i] for i in rest),
            float(gap.mean()),
            float(gap.std() / math.sqrt(len(gap))),
            pairs,
            held_out,
            splits,
            shuffled,
            verdict,
        )

    def add(self, images: Float[Tensor, "m d"], texts: Float[Tensor, "_m e"]) -> "Auto":
        """With these pairs; the choice stays."""
        return replace(self, coupling_=self._chosen.add(images, texts))

    def remove(self, index: Int[Tensor, " m"]) -> "Auto":
        """Without the pairs at these places; the choice stays."""
        return replace(self, coupling_=self._chosen.remove(index))

    def map_images(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
        """See `methods.Coupling`."""
        return self._chosen.map_images(images)  # type: ignore[no-any-return]

    def map_texts(self, texts: Float[Tensor, "n e"]) -> Float[Tensor, "n m"]:
        """See `methods.Coupling`."""
        return self._chosen.map_texts(texts)  # type: ignore[no-any-return]

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t e"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> Float[Tensor, "n c"]:
        """Those of the coupling that was chosen."""
        return self._chosen.scores(images, texts, text_mask)  # type: ignore[no-any-return]

    def cosines(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t e"],
        text_mask: Bool[Tensor, "c t"] | None = None,
    ) -> Float[Tensor, "n c"]:
        """Those of the coupling that was chosen."""
        return self._chosen.cosines(images, texts, text_mask)  # type: ignore[no-any-return]

    def match(
        self, images: Float[Tensor, "b m"], texts: Float[Tensor, "b k e"]
    ) -> Float[Tensor, "b k"]:
        """See `methods.Coupling`."""
        return self._chosen.match(images, texts)  # type: ignore[no-any-return]

    def explain(
        self, image: Float[Tensor, " d"], texts: Float[Tensor, "t e"], count: int = 5
    ) -> Explanation:
        """That of the coupling that was chosen; UserError where it has none."""
        return explain(self._chosen, image, texts, count)

    @property
    def _chosen(self) -> Any:
        return fitted(self, self.coupling_)


def _for_all(coupling: Any, share: float) -> Any:
    """A choice made on a share of the pairs, for all of them: a ridge counts for as much less."""
    if not hasattr(coupling, "lam"):
        return coupling
    return replace(coupling, lam=float(f"{coupling.lam * share:.3g}"))


def explain(
    coupling: Any, image: Float[Tensor, " d"], texts: Float[Tensor, "t e"], count: int = 5
) -> Explanation:
    """The anchors that carried a score; UserError for a coupling that is no sum over anchors."""
    if not hasattr(coupling, "explain"):
        raise UserError(
            f"{coupling!r} is no sum over anchors, so that none can be named; asif, csa and "
            "csa_asif explain themselves"
        )
    explanation: Explanation = coupling.explain(image, texts, count)
    return explanation


# Trials: what methods share is computed once for a split


@dataclass(frozen=True, eq=False)
class _Split:
    """Anchors to learn from, and pairs to judge by."""

    images: Rows
    texts: Rows
    held_images: Float[Tensor, "h d"]
    held_texts: Float[Tensor, "h e"]

    @cached_property
    def csa(self) -> CSA:
        """Knows the moments; ridges and directions are varied from here."""
        return CSA(weighting="cosine")._learn(self.images, self.texts)


def _neighbours(
    images: Rows, texts: Rows, held_images: Tensor, held_texts: Tensor
) -> Iterator[tuple[int, float, Tensor]]:
    """ASIF's cosines for every `k` and `p` that suits, from one search."""
    counts = [k for k in NEIGHBOURS if k <= len(images)]
    left = RelativeRows.of(images.directed(held_images), images, max(counts), 1.0)
    right = RelativeRows.of(texts.directed(held_texts), texts, max(counts), 1.0)
    for k, p in product(counts, POWERS):
        sides = [
            RelativeRows(side.index[:, :k], side.values[:, :k] ** p, side.width).at_unit_length()
            for side in (left, right)
        ]
        yield k, p, sides[0].product(sides[1])


def _asif(split: _Split) -> Trials:
    return {
        ASIF(k=k, p=p, center=center): similarity
        for center in (False, True)
        for k, p, similarity in _neighbours(
            replace(split.images, centred=center),
            replace(split.texts, centred=center),
            split.held_images,
            split.held_texts,
        )
    }


def _csa(split: _Split) -> Trials:
    trials = {}
    for lam in RIDGES:
        solved = replace(split.csa, lam=lam)
        left = solved.image_coordinates(split.held_images)
        right = solved.text_coordinates(split.held_texts)
        rho = solved.directions.rho
        for s in (0, *(s for s in DIRECTIONS if s < len(rho))):
            cut = slice(s or None)
            sides = [weighted(side[:, cut], rho[cut], "cosine") for side in (left, right)]
            trials[replace(solved, s=s)] = sides[0] @ sides[1].T
    return trials


def _csa_asif(split: _Split) -> Trials:
    trials = {}
    for lam in (1.0, 3.0):
        csa = replace(split.csa, s=256, lam=lam)
        anchors = (
            Rows.of(torch.cat([csa.map_images(x) for x in split.images.raw_blocks(BLOCK)])),
            Rows.of(torch.cat([csa.map_texts(y) for y in split.texts.raw_blocks(BLOCK)])),
        )
        held = csa.map_images(split.held_images), csa.map_texts(split.held_texts)
        for k, p, similarity in _neighbours(*anchors, *held):
            trials[CSAASIF(s=256, lam=lam, k=k, p=p)] = similarity
    return trials


def _procrustes(split: _Split) -> Trials:
    known = Procrustes()._learn(split.images, split.texts)
    left, right = known.map_images(split.held_images), known.map_texts(split.held_texts)
    return {Procrustes(): normalize(left) @ normalize(right).T}


def _relative(split: _Split) -> Trials:
    """Written out: held-out rows are few, and the short basis takes longer to find."""
    written = []
    for rows, held in ((split.images, split.held_images), (split.texts, split.held_texts)):
        anchors = replace(rows, centred=True)
        blocks = [anchors.directed(held) @ block.T for block in anchors.blocks(BLOCK)]
        written.append(normalize(torch.cat(blocks, dim=1)))
    return {Relative(center=True): written[0] @ written[1].T}


MAKERS: dict[str, Callable[[_Split], Trials]] = {
    "procrustes": _procrustes,
    "csa": _csa,
    "csa_asif": _csa_asif,
    "asif": _asif,
    "relative": _relative,
}


def _ranks(similarity: Float[Tensor, "h h"]) -> Float[Tensor, "h h"]:
    """Place of every text for every picture, the best is 1; equals share the last place."""
    order = similarity.double()
    ascending = order.sort(dim=1).values
    below = torch.searchsorted(ascending, order, right=False)
    return (order.shape[1] - below).double()


def _working(rows: Tensor) -> Tensor:
    return rows if rows.dtype in (torch.float32, torch.float64) else normalize(rows.float())
