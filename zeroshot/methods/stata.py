"""StatA: transduction that is safe when few classes are present.

Zanella, Fuchs, De Vleeschouwer and Ben Ayed 2025, "Realistic Test-Time Adaptation of
Vision-Language Models", CVPR, arXiv:2501.03729; authors' code: github.com/MaxZanella/StatA
(AGPL-3.0; this is written from the equations).

    z_ic  proportional to  y_ic^lambda exp[(l_ic + lambda_L (50 / 2k) sum_j A_ij z_jc) / 50]
    l_ic  = -1/2 sum_d (x_i - mu_c)^2 / s_c - 1/2 sum_d log s_c
    b_c   = n_c / (alpha + n_c)
    mu_c  = norm(b_c norm(mean of x, weighted by z_ic) + (1 - b_c) w_c)
    s_c   = b_c var_c + (1 - b_c) (s_0 + (w_c - mu_c)^2)

A class that no picture chose has `n_c = 0` and stays at its text row `w_c`: that is the statistical
anchor. `s_0` is the variance around the text rows. Classes and parameters are updated in turn.

| here | paper |
|---|---|
| y | zero-shot probability |
| z | assignment u |
| mu, s | mean and diagonal covariance |
| alpha, b | anchor weight alpha and beta |

Departures from the authors' code. `s_0` is the mean over all pictures; theirs divides by their
number after each block of 2500, so that beyond 2500 pictures only the last block counts and `s_0`
is too small (0.17 of it for 6000 pictures, 0.05 for 50 000): `compat=True` does that, and their
published full-set figures have it. The logit scale is the model's, theirs is 100. Shots (the
authors have none here) enter as in `transclip`, and count in `n_c`.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zeroshot.methods import Output
from zeroshot.methods._gmm import Gaussians, Problem, Shots, Sums, adjacency, directions, neighbours
from zeroshot.methods.ensemble import Ensemble
from zeroshot.ops import normalize


@dataclass(frozen=True)
class Solution:
    """Assignments and what the classes look like in the end."""

    z: Float[Tensor, "n c"]
    mean: Float[Tensor, "c d"]
    variance: Float[Tensor, "c d"]
    beta: Float[Tensor, " c"]


@dataclass(frozen=True)
class StatA:
    """Probabilities of all pictures together; `fit` gives it shots, and it works without."""

    alpha: float = 1.0
    """weight of the text row, in pictures"""
    soft_beta: bool = False
    """count a class's pictures by their assignments instead of their best classes"""
    lambda_y_hat: float = 1.0
    """exponent of the zero-shot probability"""
    lambda_laplacian: float = 1.0
    """weight of the neighbour graph"""
    n_neighbors: int = 3
    """neighbours of each picture"""
    max_iter: int = 10
    """updates of means and variances"""
    inner_iter: int = 5
    """updates of the assignments before each of them"""
    gamma: float = 0.02
    """weight of the shots: 0.02 makes all shots weigh what all pictures weigh"""
    compat: bool = False
    """the authors' initial variance, which forgets all but the last block of 2500 pictures"""

    shots_: Float[Tensor, "m d"] | None = field(default=None, repr=False, compare=False)
    shot_labels_: Int[Tensor, " m"] | None = field(default=None, repr=False, compare=False)

    transductive: ClassVar[bool] = True

    @property
    def output(self) -> Output:
        """Assignments sum to one."""
        return "probability"

    def fit(
        self,
        shots: Float[Tensor, "m d"] | None = None,
        shot_labels: Int[Tensor, " m"] | None = None,
    ) -> "StatA":
        """A copy that knows these shots, if there are any."""
        return replace(self, shots_=shots, shot_labels_=shot_labels)

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
        initial: Float[Tensor, "n c"] | None = None,
    ) -> Float[Tensor, "n c"]:
        """Probabilities; `initial` are logits to start from instead of the zero-shot ones."""
        return self.solve(images, texts, text_mask, logit_scale, initial).z

    def solve(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
        initial: Float[Tensor, "n c"] | None = None,
    ) -> Solution:
        """Assignments, means, variances and the weights of the statistics."""
        anchor = Ensemble().classifier(texts, text_mask)
        logits = logit_scale * images @ anchor.T if initial is None else initial
        z = logits.softmax(1)
        spread = _spread(images, z, anchor, 2500 if self.compat else len(images))
        known = Shots.of(self.shots_, self.shot_labels_, len(anchor))
        pinned, fixed, count = None, None, torch.zeros_like(anchor[:, 0])
        if known is not None:
            weight = self.gamma * 50 * len(images) / len(known.rows)
            pinned = known.pull(images, self.n_neighbors).mul_(self._pull)
            fixed = Sums.of(known.classes, known.rows, per_class=True, weight=weight)
            count = known.classes.sum(0)

        def beta(z: Float[Tensor, "n c"]) -> Float[Tensor, " c"]:
            own = z.sum(0) if self.soft_beta else torch.bincount(z.argmax(1), minlength=len(anchor))
            return (own + count) / (self.alpha + own + count)

        def estimate(z: Float[Tensor, "n c"], before: Gaussians) -> Gaussians:
            sums = Sums.of(z, images, per_class=True)
            if fixed is not None:
                sums = sums + fixed
            b = beta(z)[:, None]
            mean = normalize(b * directions(sums, anchor) + (1 - b) * anchor)
            size = torch.where(sums.count > 0, sums.count, 1)[:, None]
            variance = b * sums.scatter(mean) / size + (1 - b) * (spread + (anchor - mean) ** 2)
            return Gaussians.of(mean, variance)

        graph = adjacency(*neighbours(images, self.n_neighbors), len(images))
        problem = Problem(
            images,
            logits.log_softmax(1),
            self.lambda_y_hat,
            (graph + graph.t()).coalesce(),
            self._pull,
            pinned,
        )
        last = z

        def noted(z: Float[Tensor, "n c"], before: Gaussians) -> Gaussians:
            nonlocal last
            last = z
            return estimate(z, before)

        start = Gaussians.of(anchor, spread.expand_as(anchor))
        z, found = problem.solve(z, start, noted, self.max_iter, self.inner_iter)
        return Solution(z, found.mean, found.variance, beta(last))

    @property
    def _pull(self) -> float:
        return self.lambda_laplacian / (2 * self.n_neighbors)


def _spread(
    images: Float[Tensor, "n d"], z: Float[Tensor, "n c"], anchor: Float[Tensor, "c d"], block: int
) -> Float[Tensor, " d"]:
    """Mean squared distance to the text rows; with a `block` below `n` the authors' fault."""
    spread = torch.zeros_like(images[0])
    for rows, weights in zip(torch.split(images, block), torch.split(z, block), strict=True):
        sums = Sums.of(weights, rows, per_class=False)
        spread = (spread + sums.scatter(anchor)) / len(images)
    return spread
