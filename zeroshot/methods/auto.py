"""Auto: the coupling that suits these anchors, chosen by retrieval on held-out anchors.

Ours. The candidates are `procrustes`, `csa`, `csa_asif`, `asif` and `relative` (`ridge_cca` is as
good as `csa` to within a standard error, and cannot be edited as fast).

    quality = mean over held-out pairs of 1 / rank of an image's own text among theirs      (1)
    choice  = argmax of quality over methods and options, over a few random splits          (2)

Which method and which options are best depends on the encoders and on the number of pairs: with a
thousand pairs a linear map, with a million ASIF. On the photographs of docs/couplings.md the
paper's k=800, p=8 finds half of what the best choice finds.

The ridge that suits a part of the pairs is too strong for all of them, so it is scaled by the share
that it was chosen on.

The budget limits operations, which are counted beforehand, and not seconds. So the same anchors
lead to the same choice on every machine. If there are more anchors than the budget allows, the
choice is made on a random part of them.

A control shows whether two encoders couple at all: the same choice against shuffled texts.
Encoders that couple are better than every shuffle. If they are not, no choice helps.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor

from zeroshot.errors import UserError, unknown
from zeroshot.methods._anchor_checks import check_pairs
from zeroshot.methods._anchor_matrix import BLOCK, AnchorMatrix, at_least_float32
from zeroshot.methods._anchored_coupling import fitted
from zeroshot.methods._canonical_correlation import weight_by_correlation
from zeroshot.methods._coupling_report import LEAST_PAIRS, SHUFFLES, Report, Trial
from zeroshot.methods._door import Method
from zeroshot.methods._joint_space import TemplateMode
from zeroshot.methods._protocols import Explanation, Output
from zeroshot.methods._registry import configure_method
from zeroshot.methods._relative_representations import RelativeRepresentations
from zeroshot.methods.asif import ASIF
from zeroshot.methods.csa import CSA
from zeroshot.methods.csa_asif import CSAASIF, joint_anchors
from zeroshot.methods.procrustes import Procrustes
from zeroshot.methods.relative import Relative
from zeroshot.ops import normalize

OPERATIONS = 20e9
"""Multiplications and additions per second of the budget: those of one core of a laptop."""
HELD_OUT = 200
"""Pairs of a split that couplings are judged by, at most."""
NEIGHBOURS = (12, 25, 50, 100, 200, 400, 800)
POWERS = (1.0, 2.0, 4.0, 8.0)
RIDGES = (0.1, 0.3, 1.0, 2.0, 4.0, 8.0)
"""A factor of two changes little, so a finer grid would choose by chance."""
DIRECTIONS = (128,)
"""Tried besides all directions: their number matters little, since rho weights them."""

Trials = dict[Any, Float[Tensor, "h h"]]
"""Similarities of held-out images and texts under each unfitted coupling."""


@dataclass(frozen=True)
class Auto(Method):
    """A coupling that chooses another; `fit` gives it its anchors."""

    budget: float = 30.0
    """seconds on a slow core that the choice may take, counted in operations beforehand"""
    splits: int = 3
    """number of random splits, as far as the budget allows"""
    seed: int = 0
    """of the splits"""
    among: str = "all"
    """methods to choose among, separated by commas"""
    templates: TemplateMode = "mean"
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
        """The coupling that suits these pairs, judged on some of them."""
        check_pairs("auto", anchor_images, anchor_texts)
        makers = self._makers()
        count = len(anchor_images)
        if count < LEAST_PAIRS:
            linear = count > 1 and "procrustes" in makers
            chosen: Any = Procrustes() if linear else ASIF(k=count, p=2.0)
            untried = Trial(replace(chosen, templates=self.templates), *[math.nan] * 3)
            verdict: Any = "too few pairs to tell"
            return Report(untried, (), math.nan, math.nan, count, 0, 0, math.nan, verdict)
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
                AnchorMatrix.from_embeddings(anchor_images[train]),
                AnchorMatrix.from_embeddings(anchor_texts[train]),
                *(at_least_float32(side[test]) for side in (anchor_images, anchor_texts)),
            )
            for make in makers.values():
                for coupling, similarity in make(split).items():
                    trials.setdefault(coupling, []).append(_ranks(similarity))
        report = self._judge(trials, pairs, generator)
        coupling = _scale_ridge(report.chosen.coupling, (pairs - held_out) / count)
        return replace(report, chosen=replace(report.chosen, coupling=coupling))

    def _makers(self) -> dict[str, Callable[["_Split"], Trials]]:
        if self.budget <= 0 or self.splits < 1:
            raise UserError(f"budget={self.budget}, splits={self.splits}: above 0")
        among = MAKERS if self.among == "all" else [n.strip() for n in self.among.split(",")]
        for name in among:
            if name not in MAKERS:
                raise unknown("coupling to choose", name, MAKERS)
        return {name: MAKERS[name] for name in among}

    def _afford(self, count: int, d: int, e: int) -> tuple[int, int]:
        """Pairs and splits that the budget allows: all pairs first, then more splits."""
        budget = self.budget * OPERATIONS
        per_split = 10 * (d**3 + e**3) + 60 * len(RIDGES) * max(d, e) * min(d, e) ** 2
        per_pair = 4 * (d * d + e * e + d * e) + 8 * HELD_OUT * (d + e)
        pairs = min(count, max(LEAST_PAIRS * 4, int((budget - per_split) / per_pair)))
        return pairs, int(max(1, min(self.splits, budget / (per_split + per_pair * pairs))))

    def _judge(
        self, trials: dict[Any, list[Tensor]], pairs: int, generator: torch.Generator
    ) -> Report:
        """The best trial, the best of the other methods, and the control."""
        couplings = list(trials)
        splits, held_out = len(trials[couplings[0]]), len(trials[couplings[0]][0])

        def inverse(columns: Tensor) -> Float[Tensor, "t s h"]:
            """1 / rank of the text of this column for each image."""
            rows = torch.arange(held_out)
            found = [
                torch.stack([ranks[rows, columns] for ranks in own]) for own in trials.values()
            ]
            return 1 / torch.stack(found).double()

        own = inverse(torch.arange(held_out)).flatten(1)  # [t, s*h]
        quality = own.mean(1)  # (1)
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
        for i in quality.argsort(descending=True, stable=True).tolist():  # (2)
            best.setdefault(type(couplings[i]), i)
        first, *rest = best.values()
        gap = own[first] - own[rest[0]] if rest else own[first] * math.nan
        shuffled = 0.0
        for _ in range(SHUFFLES):
            order = torch.randperm(held_out, generator=generator)
            control = inverse(order).mean((1, 2))
            shuffled = max(shuffled, float(control.max()))
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
        """With these pairs appended; the choice stays."""
        return replace(self, coupling_=self._chosen.add(images, texts))

    def remove(self, index: Int[Tensor, " m"]) -> "Auto":
        """Without the pairs at `index`; the choice stays."""
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
        """That of the coupling that was chosen; UserError if it has none."""
        return explain(self._chosen, image, texts, count)

    @property
    def _chosen(self) -> Any:
        return fitted(self, self.coupling_)


CHOSEN = ("k", "p", "center")
"""Options of ASIF that suit a number of pairs; the paper's are for a million."""


def open_coupling(
    name: str,
    options: Mapping[str, Any],
    anchor_images: Real[Tensor, "a d"],
    anchor_texts: Real[Tensor, "_a e"],
) -> Any:
    """A coupling, not fitted, with what its options leave open chosen on these pairs.

    `auto` leaves the method open. `asif` leaves `k`, `p` and `center` open if none is given.
    """
    coupling = configure_method(name, options)
    if isinstance(coupling, ASIF) and not set(CHOSEN) & set(options):
        chosen = Auto(among="asif", splits=1).choose(anchor_images, anchor_texts).chosen.coupling
        return replace(coupling, **{option: getattr(chosen, option) for option in CHOSEN})
    if isinstance(coupling, Auto):
        return coupling.choose(anchor_images, anchor_texts).chosen.coupling
    return coupling


def _scale_ridge(coupling: Any, share: float) -> Any:
    """The choice for all pairs, if it was made on a share of them."""
    if not hasattr(coupling, "lam"):
        return coupling
    return replace(coupling, lam=float(f"{coupling.lam * share:.3g}"))


def explain(
    coupling: Any, image: Float[Tensor, " d"], texts: Float[Tensor, "t e"], count: int = 5
) -> Explanation:
    """The anchors' shares of a score; UserError for a coupling that is no sum over anchors."""
    if not hasattr(coupling, "explain"):
        raise UserError(
            f"{coupling!r} is no sum over anchors, so that none can be named; asif, csa and "
            "csa_asif explain themselves"
        )
    explanation: Explanation = coupling.explain(image, texts, count)
    return explanation


# Trials: what several candidates need is computed once per split


@dataclass(frozen=True, eq=False)
class _Split:
    """Anchors to learn from, and held-out pairs to judge by."""

    images: AnchorMatrix
    texts: AnchorMatrix
    test_images: Float[Tensor, "h d"]
    test_texts: Float[Tensor, "h e"]

    @cached_property
    def csa(self) -> CSA:
        """With the moments of the anchors; ridges and directions are varied from here."""
        return CSA(weighting="cosine")._learn(self.images, self.texts)


def _asif_cosines(
    anchors: tuple[AnchorMatrix, AnchorMatrix], tests: tuple[Tensor, Tensor]
) -> Iterator[tuple[int, float, Tensor]]:
    """ASIF's cosines for every `k` and `p` of the grid, from one search on each side."""
    counts = [k for k in NEIGHBOURS if k <= len(anchors[0])]
    nearest = [
        RelativeRepresentations.from_embeddings(
            side.center_and_normalize(test), side, max(counts), 1.0
        )
        for side, test in zip(anchors, tests, strict=True)
    ]
    for k, p in product(counts, POWERS):
        left, right = (
            replace(side, index=side.index[:, :k], values=side.values[:, :k] ** p).normalized()
            for side in nearest
        )
        yield k, p, left.product(right)


def _asif(split: _Split) -> Trials:
    trials = {}
    for center in (False, True):
        anchors = replace(split.images, centred=center), replace(split.texts, centred=center)
        for k, p, cosine in _asif_cosines(anchors, (split.test_images, split.test_texts)):
            trials[ASIF(k=k, p=p, center=center)] = cosine
    return trials


def _csa(split: _Split) -> Trials:
    trials = {}
    for lam in RIDGES:
        solved = replace(split.csa, lam=lam)
        left = solved.image_coordinates(split.test_images)
        right = solved.text_coordinates(split.test_texts)
        rho = solved.directions.rho
        for s in (0, *(s for s in DIRECTIONS if s < len(rho))):
            cut = slice(s or None)
            x, y = (weight_by_correlation(z[:, cut], rho[cut], "cosine") for z in (left, right))
            trials[replace(solved, s=s)] = x @ y.T
    return trials


def _csa_asif(split: _Split) -> Trials:
    trials = {}
    for lam in (1.0, 3.0):
        csa = replace(split.csa, s=256, lam=lam)
        anchors = joint_anchors(csa, split.images, split.texts)
        tests = csa.map_images(split.test_images), csa.map_texts(split.test_texts)
        for k, p, cosine in _asif_cosines(anchors, tests):
            trials[CSAASIF(s=256, lam=lam, k=k, p=p)] = cosine
    return trials


def _procrustes(split: _Split) -> Trials:
    solved = Procrustes()._learn(split.images, split.texts)
    left, right = solved.map_images(split.test_images), solved.map_texts(split.test_texts)
    return {Procrustes(): normalize(left) @ normalize(right).T}


def _relative(split: _Split) -> Trials:
    """Written out over all anchors: for few test pairs that is faster than the short basis."""
    sides = []
    for side, test in ((split.images, split.test_images), (split.texts, split.test_texts)):
        anchors = replace(side, centred=True)
        x = anchors.center_and_normalize(test)
        blocks = [x @ block.T for block in anchors.blocks(BLOCK)]
        sides.append(normalize(torch.cat(blocks, dim=1)))
    return {Relative(center=True): sides[0] @ sides[1].T}


MAKERS: dict[str, Callable[[_Split], Trials]] = {
    "procrustes": _procrustes,
    "csa": _csa,
    "csa_asif": _csa_asif,
    "asif": _asif,
    "relative": _relative,
}


def _ranks(similarity: Float[Tensor, "h h"]) -> Int[Tensor, "h h"]:
    """Rank of every text for every image, the best is 1; equals share the last rank.

    Those of all trials are kept, so they are small: `HELD_OUT` fits into two bytes.
    """
    values = similarity.double()
    ascending = values.sort(dim=1).values
    below = torch.searchsorted(ascending, values, right=False)
    return (values.shape[1] - below).to(torch.int16)
