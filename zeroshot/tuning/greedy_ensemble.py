"""Greedy ensemble selection: the mean of the best members, found one after another.

Caruana, Niculescu-Mizil, Crew and Ksikes 2004, "Ensemble Selection from Libraries of Models", ICML.

    E_0 = {},   E_j = E_{j-1} + argmax_m quality(mean of E_{j-1} + m)                           (1)

with members repeated at will, and the best E_j of all steps taken. Each candidate's logits become
probabilities at a temperature of its own. Departures: quality is the mean log-likelihood of the
classes, each weighted alike, since accuracy changes in steps; no bagging of the library.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zeroshot.tuning.folds import class_weights

STEPS = 10
LOG_RANGE = 9.0
"""Of the temperature's logarithm, on either side of the spread of the logits."""
GOLDEN = (math.sqrt(5) - 1) / 2
SECTIONS = 30


@dataclass(frozen=True)
class GreedyEnsemble:
    """Members by their index, with weights that sum to 1, and the temperature of each."""

    members: tuple[int, ...]
    weights: tuple[float, ...]
    temperatures: tuple[float, ...]

    def probabilities(self, logits: Mapping[int, Float[Tensor, "n c"]]) -> Float[Tensor, "n c"]:
        """The weighted mean of the members' probabilities; `logits` has those of each member."""
        mean = sum(
            weight * (logits[member].double() / temperature).softmax(1)
            for member, weight, temperature in zip(
                self.members, self.weights, self.temperatures, strict=True
            )
        )
        assert isinstance(mean, Tensor)
        return mean


def fit_temperatures(
    logits: Float[Tensor, "m n c"], labels: Int[Tensor, " n"]
) -> Float[Tensor, " m"]:
    """For each candidate, the temperature with the highest balanced log-likelihood.

    A share of the weight goes to the other classes, as if one more row had been wrong, so that
    rows that are all right have a best temperature too. The loss is convex in the inverse
    temperature, so a golden section over its logarithm finds the one minimum.
    """
    logits, weights = logits.double(), class_weights(labels)
    logits = logits - logits.amax(2, keepdim=True)
    wrong = 1 / (len(labels) + 2)
    own = logits.gather(2, labels[None, :, None].expand(len(logits), -1, 1))[..., 0]
    target = ((1 - wrong) * own + wrong * logits.mean(2)) @ weights  # [m], linear in 1 / T

    def loss(log_temperature: Tensor) -> Tensor:
        inverse = (-log_temperature).exp()
        total = (logits * inverse[:, None, None]).logsumexp(2) @ weights
        return total - inverse * target

    middle = logits.std(2).mean(1).clamp_min(1e-12).log()
    low, high = middle - LOG_RANGE, middle + LOG_RANGE
    for _ in range(SECTIONS):
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        lower = loss(left) < loss(right)
        low, high = torch.where(lower, low, left), torch.where(lower, right, high)
    return ((low + high) / 2).exp()


def select_greedily(
    logits: Sequence[Float[Tensor, "n c"]], labels: Int[Tensor, " n"], steps: int = STEPS
) -> GreedyEnsemble:
    """The ensemble of (1); `logits` are out-of-fold, one tensor a candidate."""
    stacked = torch.stack([own.double() for own in logits])
    temperatures = fit_temperatures(stacked, labels)
    index = labels[None, :, None].expand(len(stacked), -1, 1)
    probabilities = (stacked / temperatures[:, None, None]).softmax(2).gather(2, index)[..., 0]
    weights = class_weights(labels)
    total = torch.zeros_like(probabilities[0])
    chosen: list[int] = []
    best_quality, best_size = -math.inf, 0
    for step in range(1, steps + 1):
        mean = (total + probabilities) / step
        quality = (mean.clamp_min(1e-30).log() * weights).sum(1)
        member = int(quality.argmax())
        chosen.append(member)
        total = total + probabilities[member]
        if float(quality[member]) > best_quality + 1e-9:
            best_quality, best_size = float(quality[member]), step
    kept = chosen[:best_size]
    members = sorted(set(kept))
    return GreedyEnsemble(
        tuple(members),
        tuple(kept.count(m) / len(kept) for m in members),
        tuple(float(temperatures[m]) for m in members),
    )
