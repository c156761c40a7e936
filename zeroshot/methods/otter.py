"""OTTER: labels by optimal transport, if the class frequencies are known.

Shin et al. 2024, "OTTER: Effortless Label Distribution Adaptation of Zero-shot Models", NeurIPS,
arXiv:2404.08461; authors' code: SprocketLab/OTTER (no licence file, not used here).

    cost  = -log(softmax(logits / temperature) + epsilon)                                        (1)
    plan  = argmin sum_ic plan_ic cost_ic     rows sum to 1/n, columns to pi_c, none negative    (2)
    class = argmax_c plan_ic

The linear program is solved exactly: first over the cheap cells of each row, then with every cell
of negative reduced cost added, until there is none; the reduced costs follow from the dual prices
of HiGHS. An image's scores are its masses: a vertex of the polytope splits c - 1 images at most
over several classes.

| here | paper |
|---|---|
| prior | nu, the label distribution |
| temperature, epsilon | 1 and 1e-9 in `ot_predict`, on cosines; 1 and 1e-6 in `ot_posthoc` |

Departures from the authors' code. The softmax's denominator and the scale of the logits change the
cost of every plan equally, so `epsilon = 0` is the exact program on the logits; the authors'
epsilon makes all classes below it equally expensive. If logits are large, the solver of their
`ot_posthoc_logits` reports "Problem infeasible" and everything is put into class 0.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods._door import Method
from zeroshot.methods._prior import Assume, resolve
from zeroshot.methods._protocols import Output
from zeroshot.methods.ensemble import Ensemble
from zeroshot.methods.sinkhorn import biases

Cells = npt.NDArray[np.bool_]
Cost = npt.NDArray[np.float64]

LARGEST = 20_000_000
"""Images x classes beyond which the program is refused; sinkhorn approximates it."""

WIDE = 8
"""Cells of each row that the program starts with."""


@dataclass(frozen=True)
class OTTER(Method):
    """Each image's mass over the classes in the cheapest plan that meets the prior."""

    temperature: float = 1.0
    """divides the logits before the softmax; without effect if epsilon is 0"""
    epsilon: float = 0.0
    """added to probabilities before the logarithm (authors: 1e-9)"""
    assume: Assume = "given"
    """without a prior: refuse, assume equally frequent classes, or estimate their frequencies"""

    prior_: Float[Tensor, " c"] | None = field(default=None, repr=False, compare=False)

    transductive: ClassVar[bool] = True
    one_label: ClassVar[bool] = True
    """See `_transduction.Transduction`."""

    @property
    def output(self) -> Output:
        """Shares of an image: one for its class, zero for the others, except for few images."""
        return "probability"

    def fit(self, prior: Float[Tensor, " c"] | None = None) -> "OTTER":
        """A copy with these class frequencies."""
        return replace(self, prior_=prior)

    def adjust(
        self, logits: Float[Tensor, "n c"], bank: Float[Tensor, "b c"] | None = None
    ) -> Float[Tensor, "n c"]:
        """Shares by the logits of any method; a bank is ignored."""
        prior = resolve("otter", self.prior_, self.assume, logits)
        cost = -(logits / self.temperature).log_softmax(1)  # (1)
        if self.epsilon:
            cost = -(torch.exp(-cost) + self.epsilon).log()
        plan = transport(cost.double().numpy(), prior.double().numpy())  # (2)
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
        UserError: more than `LARGEST` cells.
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
    """Cells to start with; they contain a plan that meets the marginals."""
    rows, classes = cost.shape
    # with nearly correct prices only few cells of a row are cheap
    price = biases(torch.from_numpy(-20 * cost / np.ptp(cost)), torch.from_numpy(prior))
    reduced = cost - price.numpy() * np.ptp(cost) / 20
    cells = np.zeros(cost.shape, dtype=bool)
    wide = min(WIDE, classes)
    np.put_along_axis(cells, np.argpartition(reduced, wide - 1, axis=1)[:, :wide], True, axis=1)
    # north-west corner rule: fill the classes one after the other
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
    from scipy.optimize import linprog
    from scipy.sparse import coo_array

    rows = len(cost)
    i, c = np.nonzero(cells)
    ones, variables = np.ones(2 * len(i)), np.tile(np.arange(len(i)), 2)
    sums = coo_array((ones, (np.concatenate([i, rows + c]), variables)))
    sums.resize(len(marginals), len(i))
    # the last equation follows from the others; in floating point it could contradict them
    solution = linprog(
        cost[i, c], A_eq=sums.tocsr()[:-1], b_eq=marginals[:-1], bounds=(0, None), method="highs"
    )
    if solution.x is None:
        raise RuntimeError(f"the transport program was not solved: {solution.message}")
    plan = np.zeros_like(cost)
    plan[i, c] = solution.x
    prices = np.append(solution.eqlin.marginals, 0.0)
    return plan, prices[:rows], prices[rows:]
