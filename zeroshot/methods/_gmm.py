"""Transduction: one Gaussian per class, pulled towards the texts and along a neighbour graph.

The engine of `stata` and `transclip`. It alternates between classes of pictures and parameters of
classes, and each step is a closed form:

    z_ic proportional to exp(prior_ic + (l_ic + (T / 2k) sum_j A_ij z_jc) / T),   T = 50

`prior` is `lambda log softmax(zero-shot logits)`, `l` the log-density of class c at x_i, and
`A = V + V'` with row i of `V` the cosines of its `k` nearest pictures.

Sums of squares are expanded (`sum_i z (x - m)^2 = z'x^2 - 2 m z'x + m^2 z'1`), so that a step is
two to four matrix products and nothing of size `n x c x d` exists. A shot is a picture whose class
is known: what it adds is constant, and is added once. Assignments below the square root of the
smallest number are zero: as denormals they would slow the products down a hundredfold, and no sum
would notice them. (`torch.set_flush_denormal` would do the same for the whole process.)
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zeroshot.methods._shots import one_hot
from zeroshot.ops import normalize, topk_stream

TEMPERATURE = 50.0
"""What the authors divide every term but the prior by."""


@dataclass(frozen=True)
class Gaussians:
    """A mean per class and a diagonal variance, one for all classes or one for each."""

    mean: Float[Tensor, "c d"]
    variance: Float[Tensor, "*c d"]

    @classmethod
    def of(cls, mean: Float[Tensor, "c d"], variance: Float[Tensor, "*c d"]) -> "Gaussians":
        """With variances of at least the precision of the numbers, so that none is zero."""
        return cls(mean, variance.clamp_min(torch.finfo(variance.dtype).eps))

    def log_density(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        """Up to a constant of the row, which no softmax over classes sees."""
        precision = 1 / self.variance
        linear = images @ (self.mean * precision).T
        square = (self.mean**2 * precision).sum(1) / 2  # [c]
        if self.variance.ndim == 1:
            return linear.sub_(square)
        spread = images**2 @ precision.T  # [n, c]
        return linear.sub_(spread, alpha=0.5).sub_(square + self.variance.log().sum(1) / 2)


@dataclass(frozen=True)
class Sums:
    """Weighted count, sum and sum of squares of the rows of each class."""

    count: Float[Tensor, " c"]
    total: Float[Tensor, "c d"]
    square: Float[Tensor, "*c d"]
    """for each class, or summed over the classes where they share a variance"""

    @classmethod
    def of(
        cls, z: Float[Tensor, "n c"], rows: Float[Tensor, "n d"], per_class: bool, weight: float = 1
    ) -> "Sums":
        """Of `rows` that belong to class c with weight `z[:, c]`."""
        square = z.T @ rows**2 if per_class else z.sum(1) @ rows**2
        return cls(weight * z.sum(0), weight * (z.T @ rows), weight * square)

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.count + other.count, self.total + other.total, self.square + other.square)

    def scatter(self, mean: Float[Tensor, "c d"]) -> Float[Tensor, "*c d"]:
        """Sum of squared distances to `mean`; rounding never makes it negative."""
        moved = mean**2 * self.count[:, None] - 2 * mean * self.total
        return (self.square + (moved if self.square.ndim == 2 else moved.sum(0))).clamp_min(0)


def neighbours(
    images: Float[Tensor, "n d"], k: int
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Cosines and indices of each picture's `k` nearest other pictures, as far as there are."""
    values, index = topk_stream(images, images, k + 1)
    own = index == torch.arange(len(images), device=images.device)[:, None]
    own[:, -1] |= ~own.any(1)  # a twin stood before it: the last goes, so that k stay
    return values[~own].view(len(images), -1), index[~own].view(len(images), -1)


def adjacency(
    values: Float[Tensor, "m k"], index: Int[Tensor, "m k"], columns: int
) -> Float[Tensor, "m n"]:
    """The sparse matrix with `values` at the columns `index`."""
    rows = torch.arange(len(index), device=index.device).repeat_interleave(index.shape[1])
    places = torch.stack([rows, index.flatten()])
    size = (len(index), columns)
    return torch.sparse_coo_tensor(places, values.flatten(), size, check_invariants=False)


@dataclass(frozen=True)
class Problem:
    """Pictures, where they start and what pulls at them.

    `prior` is the logarithm of what the texts (or an earlier method) say, without its weight.
    """

    images: Float[Tensor, "n d"]
    prior: Float[Tensor, "n c"]
    weight: float
    """lambda, of the prior"""
    graph: Float[Tensor, "n n"]
    """`V + V'`, sparse"""
    pull: float
    """of the graph: what its product is multiplied with"""
    pinned: Float[Tensor, "n c"] | None = None
    """what neighbours whose class is known add, constant"""
    forget: bool = False
    """each step takes the assignment before it as its prior (a fault, for `compat`)"""

    def assign(
        self, z: Float[Tensor, "n c"], gaussians: Gaussians, steps: int
    ) -> Float[Tensor, "n c"]:
        """`steps` fixed-point steps of the assignment."""
        fixed = gaussians.log_density(self.images).div_(TEMPERATURE)
        if self.pinned is not None:
            fixed += self.pinned
        if not self.forget:
            fixed.add_(self.prior, alpha=self.weight)
        for _ in range(steps):
            new = torch.sparse.mm(self.graph, z).mul_(self.pull).add_(fixed)
            z = flushed((new.add_(z.log(), alpha=self.weight) if self.forget else new).softmax(1))
        return z

    def solve(
        self,
        z: Float[Tensor, "n c"],
        start: Gaussians,
        estimate: Callable[[Float[Tensor, "n c"], Gaussians], Gaussians],
        max_iter: int,
        inner_iter: int,
    ) -> tuple[Float[Tensor, "n c"], Gaussians]:
        """Assign and estimate in turn, `max_iter` times, and assign once more."""
        gaussians = start
        for _ in range(max_iter):
            z = self.assign(z, gaussians, inner_iter)
            gaussians = estimate(z, gaussians)
        return self.assign(z, gaussians, inner_iter), gaussians


def flushed(z: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    """`z` with zeros where a product with it could be denormal."""
    return torch.where(z < torch.finfo(z.dtype).tiny ** 0.5, 0, z)


def directions(sums: Sums, before: Float[Tensor, "c d"]) -> Float[Tensor, "c d"]:
    """Unit mean of each class; a class nobody belongs to stays where it was."""
    return torch.where(sums.count[:, None] > 0, normalize(sums.total), before)


@dataclass(frozen=True)
class Shots:
    """Pictures whose class is known, as the engine sees them."""

    rows: Float[Tensor, "m d"]
    classes: Float[Tensor, "m c"]
    """one-hot"""

    @classmethod
    def of(
        cls, shots: Float[Tensor, "m d"] | None, labels: Int[Tensor, " m"] | None, count: int
    ) -> "Shots | None":
        """None where a method was not fitted.

        Raises:
            UserError: a label that is no class.
        """
        if shots is None or labels is None:
            return None
        return cls(shots, one_hot(labels, count).to(shots.dtype))

    def pull(self, images: Float[Tensor, "n d"], k: int) -> Float[Tensor, "n c"]:
        """Sum of the classes of the shots that have a picture among their `k` nearest."""
        graph = adjacency(*topk_stream(self.rows, images, k), len(images))
        pulled: Tensor = torch.sparse.mm(graph.t(), self.classes)
        return pulled

    @property
    def present(self) -> Bool[Tensor, " c"]:
        """Which classes have shots."""
        return self.classes.bool().any(0)
