"""OTTER: labels by optimal transport, when it is known how frequent the classes are.

Shin et al. 2024, "OTTER: Effortless Label Distribution Adaptation of Zero-shot Models", NeurIPS,
arXiv:2404.08461; authors' code: SprocketLab/OTTER (no licence file, not used here).

    plan  = argmin sum_ic plan_ic cost_ic     rows sum to 1/n, columns to pi_c, none negative
    cost  = -log(softmax(logits / temperature) + epsilon)
    class = argmax_c plan_ic

A linear program, solved exactly: over the cheap cells of each row first, then with every cell whose
reduced cost is negative, until there is none; the dual prices of HiGHS say which. A row's score is
its mass, split over classes: a vertex of the polytope splits c - 1 rows at most.

| here | paper |
|---|---|
| prior | nu, the label distribution |
| temperature, epsilon | 1 and 1e-9 in `ot_predict`, on cosines; 1 and 1e-6 in `ot_posthoc` |

Departures from the authors' code. The softmax's denominator and the scale of the logits change
every plan's cost alike, so `epsilon = 0` is the exact program on the logits; the authors' epsilon
makes all classes below it equally expensive. Their `ot_posthoc_logits` meets "Problem infeasible"
in the solver when logits are large, and then puts everything into class 0.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from scipy.optimize import linprog
from scipy.sparse import coo_array
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods._prior import Assume, resolve
from zeroshot.methods._protocols import Output
from zeroshot.methods.ensemble import Ensemble
from zeroshot.methods.sinkhorn import biases

Cells = npt.NDArray[np.bool_]
Cost = npt.NDArray[np.float64]

LARGEST = 20_000_000
"""Rows x classes beyond which the program is refused; the biases of sinkhorn come close to it."""

WIDE = 8
"""Cells of each row that the program begins with."""


@dataclass(frozen=True)
class OTTER:
    """Each row's mass over the classes in the cheapest plan that meets the prior."""

    temperature: float = 1.0
    """divides the logits before the softmax; without effect where epsilon is 0"""
    epsilon: float = 0.0
    """added to probabilities before the logarithm (authors: 1e-9)"""
    assume: Assume = "given"
    """without a prior: refuse, take classes as equally frequent, or estimate their frequencies"""

    prior_: Float[Tensor, " c"] | None = field(default=None, repr=False, compare=False)

    transductive: ClassVar[bool] = True

    @property
    def output(self) -> Output:
        """Shares of a row: one for its class, zero for the others, but for the few split rows."""
        return "probability"

    def fit(self, prior: Float[Tensor, " c"] | None = None) -> "OTTER":
        """A copy that knows how frequent the classes are."""
        return replace(self, prior_=prior)

    def adjust(
        self, logits: Float[Tensor, "n c"], bank: Float[Tensor, "b c"] | None = None
    ) -> Float[Tensor, "n c"]:
        """Shares by the logits of whatever method; a bank has no part in it."""
        prior = resolve("otter", self.prior_, self.assume, logits)
        cost = -(logits / self.temperature).log_softmax(1)
        if self.epsilon:
            cost = -(torch.exp(-cost) + self.epsilon).log()
        plan = transport(cost.double().numpy(), prior.double().numpy())
        return torch.from_numpy(len(logits) * plan).to(logits.dtype)

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> Float[Tensor, "n c"]:
        """Shares by the zero-shot logits."""
        return self.adjust(logit_scale * Ensemble().scores(images, texts, text_mask))


def transport(cost: Cost, prior: npt.NDArray[np.float64]) -> Cost:
    """The plan of least cost whose rows sum to 1/n and whose columns sum to `prior`.

    Raises:
        UserError: more cells than this should take.
    """
    rows, classes = cost.shape
    if cost.size > LARGEST:
        raise UserError(
            f"otter: {rows} rows x {classes} classes are more than {LARGEST:_} cells; sinkhorn "
            "balances as many as there are"
        )
    marginals = np.concatenate([np.full(rows, 1.0), prior * rows])
    cells = _cheap(cost, prior)
    while True:
        plan, row_price, column_price = _solve(cost, cells, marginals)
        better = cost - row_price[:, None] - column_price < -1e-9 * (1 + np.abs(cost).max())
        if not (better & ~cells).any():
            return np.asarray(plan / rows)
        cells |= better


def _cheap(cost: Cost, prior: npt.NDArray[np.float64]) -> Cells:
    """Cells worth trying, a plan that meets the marginals among them."""
    rows, classes = cost.shape
    # seen from nearly right prices, the cheap cells of a row are few
    price = biases(torch.from_numpy(-20 * cost / np.ptp(cost)), torch.from_numpy(prior))
    reduced = cost - price.numpy() * np.ptp(cost) / 20
    cells = np.zeros(cost.shape, dtype=bool)
    wide = min(WIDE, classes)
    np.put_along_axis(cells, np.argpartition(reduced, wide - 1, axis=1)[:, :wide], True, axis=1)
    # north-west corner: fill the classes one after the other
    order = np.argsort(np.argmin(reduced, axis=1), kind="stable")
    edges = np.concatenate([[0.0], np.cumsum(prior * rows)])
    edges[-1] = rows
    for c in np.flatnonzero(prior):
        cells[order[int(edges[c]) : int(np.ceil(edges[c + 1]))], c] = True
    return cells


def _solve(
    cost: Cost, cells: Cells, marginals: npt.NDArray[np.float64]
) -> tuple[Cost, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The best plan on `cells`, and the prices of rows and columns."""
    rows = len(cost)
    i, c = np.nonzero(cells)
    ones, variables = np.ones(2 * len(i)), np.tile(np.arange(len(i)), 2)
    sums = coo_array((ones, (np.concatenate([i, rows + c]), variables)))
    sums.resize(len(marginals), len(i))
    # one equation follows from the others; in floating point it could contradict them
    found = linprog(
        cost[i, c], A_eq=sums.tocsr()[:-1], b_eq=marginals[:-1], bounds=(0, None), method="highs"
    )
    if found.x is None:
        raise RuntimeError(f"the transport program was not solved: {found.message}")
    plan = np.zeros_like(cost)
    plan[i, c] = found.x
    prices = np.append(found.eqlin.marginals, 0.0)
    return plan, prices[:rows], prices[rows:]
