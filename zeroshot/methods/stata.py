"""StatA: transduction that is safe when few classes are present.

Zanella, Fuchs, De Vleeschouwer and Ben Ayed 2025, "Realistic Test-Time Adaptation of
Vision-Language Models", CVPR, arXiv:2501.03729; authors' code: github.com/MaxZanella/StatA
(AGPL-3.0; this is written from the equations).

    z_ic  proportional to  y_ic^lambda exp[(l_ic + lambda_L (50 / 2k) sum_j A_ij z_jc) / 50]   (1)
    l_ic  = -1/2 sum_d (x_i - mu_c)^2 / s_c - 1/2 sum_d log s_c                                (2)
    b_c   = n_c / (alpha + n_c)                                                                (3)
    mu_c  = norm(b_c norm(mean of x, weighted by z_ic) + (1 - b_c) w_c)                        (4)
    s_c   = b_c var_c + (1 - b_c) (s_0 + (w_c - mu_c)^2)                                       (5)

A class without images has `n_c = 0` and stays at its text embedding `w_c`: that is the statistical
anchor. `s_0` is the variance around the text embeddings. Assignments and parameters are updated in
turn.

| here | paper |
|---|---|
| y | zero-shot probability |
| z | assignment u |
| mu, s | mean and diagonal covariance |
| alpha, b | anchor weight alpha and beta |

Departures from the authors' code. `s_0` is the mean over all images; theirs divides by the number
of images after each block of 2500, so that beyond 2500 images only the last block counts and `s_0`
is too small (0.17 of it for 6000 images, 0.05 for 50 000). `compat=True` does that, as do their
published full-set figures. The logit scale is the model's, theirs is 100. Shots (the authors have
none here) enter as in `transclip`, and count in `n_c`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.methods._neighbour_graph import adjacency, neighbours
from zeroshot.methods._transduction import (
    Gaussians,
    Problem,
    Solution,
    Sums,
    Transduction,
    mean_directions,
)
from zeroshot.methods.ensemble import Ensemble
from zeroshot.ops import normalize


@dataclass(frozen=True)
class AnchoredSolution(Solution):
    """A solution with the weight `b` of each class's images against its text anchor."""

    beta: Float[Tensor, " c"]


@dataclass(frozen=True)
class StatA(Transduction):
    """Class probabilities of all images together; shots are optional."""

    alpha: float = 1.0
    """weight of the text embedding, as a number of images"""
    soft_beta: bool = False
    """count a class's images by their assignments instead of their best classes"""
    lambda_y_hat: float = 1.0
    """exponent of the zero-shot probability"""
    lambda_laplacian: float = 1.0
    """weight of the neighbour graph"""
    n_neighbors: int = 3
    """neighbours of each image"""
    max_iter: int = 10
    """updates of means and variances"""
    inner_iter: int = 5
    """updates of the assignments before each update of means and variances"""
    gamma: float = 0.02
    """weight of the shots: with 0.02 all shots weigh as much as all images"""
    compat: bool = False
    """the authors' initial variance, which forgets all but the last block of 2500 images"""

    def solve(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
        initial: Float[Tensor, "n c"] | None = None,
    ) -> AnchoredSolution:
        """Assignments `z`, means `mu`, variances `s` and weights `b`."""
        w = Ensemble().classifier(texts, text_mask)
        logits = logit_scale * images @ w.T if initial is None else initial
        z = last = logits.softmax(1)
        s_0 = _initial_variance(images, z, w, 2500 if self.compat else len(images))
        graph_weight = self.lambda_laplacian / (2 * self.n_neighbors)
        shots = self._labelled(len(w))
        shot_sums, shot_affinity, shot_count = None, None, torch.zeros_like(w[:, 0])
        if shots is not None:
            shot_sums = shots.sums(self.gamma, len(images), per_class=True)
            shot_affinity = shots.affinity(images, self.n_neighbors).mul_(graph_weight)
            shot_count = shots.z.sum(0)

        def beta(z: Float[Tensor, "n c"]) -> Float[Tensor, " c"]:
            own = z.sum(0) if self.soft_beta else torch.bincount(z.argmax(1), minlength=len(w))
            return (own + shot_count) / (self.alpha + own + shot_count)  # (3)

        def estimate(z: Float[Tensor, "n c"], before: Gaussians) -> Gaussians:
            nonlocal last
            last = z
            sums = Sums.from_assignments(z, images, per_class=True)
            if shot_sums is not None:
                sums = sums + shot_sums
            b = beta(z)[:, None]
            mu = normalize(b * mean_directions(sums, w) + (1 - b) * w)  # (4)
            count = torch.where(sums.count > 0, sums.count, 1)[:, None]
            variance = b * sums.scatter(mu) / count + (1 - b) * (s_0 + (w - mu) ** 2)  # (5)
            return Gaussians.with_floor(mu, variance)

        graph = adjacency(*neighbours(images, self.n_neighbors), len(images))
        problem = Problem(  # (1), (2)
            images,
            logits.log_softmax(1),
            self.lambda_y_hat,
            (graph + graph.t()).coalesce(),
            graph_weight,
            shot_affinity,
        )
        start = Gaussians.with_floor(w, s_0.expand_as(w))
        z, classes = problem.solve(z, start, estimate, self.max_iter, self.inner_iter)
        return AnchoredSolution(z, classes.mean, classes.variance, beta(last))


def _initial_variance(
    images: Float[Tensor, "n d"], z: Float[Tensor, "n c"], w: Float[Tensor, "c d"], block: int
) -> Float[Tensor, " d"]:
    """Mean squared distance to the texts; a `block` below `n` repeats the authors' fault."""
    variance = torch.zeros_like(images[0])
    for x, weights in zip(torch.split(images, block), torch.split(z, block), strict=True):
        sums = Sums.from_assignments(weights, x, per_class=False)
        variance = (variance + sums.scatter(w)) / len(images)
    return variance
