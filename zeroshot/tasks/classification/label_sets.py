"""Label sets: for each image the labels that are possible, with a promised coverage.

Split conformal prediction (Vovk et al. 2005). An image's label is in its set with at least the
promised probability, whatever the model is, if it and the n calibration images are of one kind.

    LAC   a_y = 1 - p_y                               Sadinle et al. 2016, arXiv:1609.00451
    APS   a_y = (mass of the labels above y) + u p_y  Romano et al. 2020, arXiv:2006.02544
    RAPS  a_y = APS + penalty max(0, rank_y - free)   Angelopoulos et al. 2020, arXiv:2009.14193
    q   = the ceil((n + 1) coverage)-th smallest a of a calibration image's own label
    set = {y : a_y <= q}

Departures from the code of Conf-OT (Silva-Rodriguez et al. 2025, arXiv:2505.24693,
jusiro/CLIP-Conformal, by torchcp 0.1.3). Its threshold lies between two of these scores and its
sets have `a < q`: the promise is not kept, and if most calibration images have probability 1 every
set is empty. There `u` is drawn for every label; here an image has one, which follows from its
content, so that a set does not depend on the run. Probabilities are a softmax at temperature 1: a
temperature fitted to the calibration images would make their scores unlike those of other images.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.tasks.classification.classify_options import SetRule

RULES: tuple[SetRule, ...] = get_args(SetRule)
PROMISES = (0.8, 0.9, 0.95)
"""That `calibrate` reports on."""
SPLITS = 100


def nonconformity(
    probabilities: Float[Tensor, "n c"],
    rule: SetRule = "lac",
    u: Float[Tensor, "n #c"] | None = None,
    penalty: float = 0.001,
    free: int = 1,
) -> Float[Tensor, "n c"]:
    """How unlikely each label is for each image.

    Args:
        u: between 0 and 1, for each image, or for each image and rank. Default: 1, with which sets
            of APS and RAPS are larger.
        penalty, free: of RAPS, for each rank after the first `free` ones.
    """
    if rule == "lac":
        return 1 - probabilities
    mass, order = probabilities.sort(dim=1, descending=True, stable=True)
    scores = mass.cumsum(1) - (0 if u is None else (1 - u) * mass)
    if rule == "raps":
        ranks = torch.arange(1, mass.shape[1] + 1, dtype=mass.dtype)
        scores = scores + penalty * (ranks - free).clamp_min(0)
    return torch.empty_like(scores).scatter_(1, order, scores)


def needed(coverage: float) -> int:
    """The fewest calibration images with which some label can be left out; below 1 for 0."""
    return math.ceil(coverage / (1 - coverage) - 1e-9)


def quantile(scores: Float[Tensor, " n"], coverage: float) -> float:
    """The threshold `q` of the scores of the calibration images' own labels.

    Infinity, with which a set has every label, if there are fewer than `needed`.
    """
    rank = math.ceil((len(scores) + 1) * coverage - 1e-9)
    return math.inf if rank > len(scores) else float(scores.sort().values[max(rank, 1) - 1])


def draw(ids: Sequence[str]) -> Float[Tensor, "n 1"]:
    """A number between 0 and 1 for each image, from its id, which is a hash of its content."""
    hashes = (hashlib.sha256(f"label set {id}".encode()).hexdigest() for id in ids)
    return torch.tensor([int(h[:13], 16) / 16**13 for h in hashes], dtype=torch.float64)[:, None]


@dataclass(frozen=True)
class LabelSets:
    """A rule and its threshold."""

    rule: SetRule
    threshold: float

    @classmethod
    def fit(cls, rule: SetRule, scores: Sequence[float], coverage: float) -> "LabelSets":
        """With the scores of calibration images; UserError if they are too few for the promise."""
        if len(scores) < needed(coverage):
            raise UserError(
                f"--sets {coverage:g} needs {needed(coverage)} labelled calibration images, and "
                f"the calibration has {len(scores)}: every set would hold every label"
            )
        return cls(rule, quantile(torch.tensor(scores, dtype=torch.float64), coverage))

    def of(self, logits: Float[Tensor, "n c"], ids: Sequence[str]) -> Bool[Tensor, "n c"]:
        """Which labels are in the set of each image."""
        return own_scores(logits, ids, self.rule) <= self.threshold


def own_scores(
    logits: Float[Tensor, "n c"], ids: Sequence[str], rule: SetRule
) -> Float[Tensor, "n c"]:
    """`nonconformity` of the softmax of logits, in float64."""
    return nonconformity(logits.double().softmax(1), rule, draw(ids))


@dataclass(frozen=True)
class SetReport:
    """What sets were like: thresholds from random halves of labelled images, sets of the others."""

    coverage: float
    """The share of images whose label is in their set, as a mean over the halves."""
    lowest: float
    """The coverage that 95 of 100 calibrations with all the images exceed."""
    size: float
    """Labels in a set."""
    empty: float
    """The share of sets without a label."""
    worst_class: float
    """The coverage of the class whose images have it lowest."""


def report_sets(
    scores: Float[Tensor, "n c"], labels: Int[Tensor, " n"], coverage: float, splits: int = SPLITS
) -> SetReport:
    """What sets of these scores are like, over random halves."""
    n, generator = len(labels), torch.Generator().manual_seed(0)
    own = scores.gather(1, labels[:, None])[:, 0]
    hits, tested, sizes, empty = torch.zeros(n), torch.zeros(n), 0.0, 0.0
    for _ in range(splits):
        order = torch.randperm(n, generator=generator)
        fitted, other = order[: n // 2], order[n // 2 :]
        found = scores[other] <= quantile(own[fitted], coverage)
        hits[other] += found.gather(1, labels[other, None])[:, 0]
        tested[other] += 1
        sizes += float(found.sum(1).double().mean()) / splits
        empty += float((~found.any(1)).double().mean()) / splits
    rates = [
        float(hits[labels == c].sum() / tested[labels == c].sum())
        for c in set(labels.tolist())
        if tested[labels == c].any()
    ]
    rank = min(math.ceil((n + 1) * coverage - 1e-9), n)
    from scipy.stats import beta

    lowest = float(beta.ppf(0.05, rank, n + 1 - rank))
    return SetReport(float(hits.sum() / tested.sum()), lowest, sizes, empty, min(rates))
