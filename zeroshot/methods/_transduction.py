"""A Gaussian mixture, one component per class, with a prior from the texts and a neighbour graph.

The engine of `stata` and `transclip`. It alternates between the assignments of images to classes
and the parameters of the classes, and each step is a closed form:

    z_ic proportional to exp(prior_ic + (l_ic + (T / 2k) sum_j A_ij z_jc) / T),   T = 50

`prior` is `lambda log softmax(zero-shot logits)`, `l` the log-density of class c at x_i, and
`A = V + V'` with row i of `V` the cosines of its `k` nearest images.

Sums of squares are expanded (`sum_i z (x - m)^2 = z'x^2 - 2 m z'x + m^2 z'1`), so that a step is
two to four matrix products and no array has the size `n x c x d`. A shot is an image of known
class: its terms are constant and computed once. Assignments below the square root of the smallest
number are set to zero: as denormals they would slow the products down a hundredfold, and they
change no sum. (`torch.set_flush_denormal` would do the same for the whole process.)
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zeroshot.methods._door import Method
from zeroshot.methods._neighbour_graph import adjacency
from zeroshot.methods._protocols import Output
from zeroshot.methods._shots import one_hot
from zeroshot.ops import normalize, topk_stream

Self = TypeVar("Self", bound="Transduction")

TEMPERATURE = 50.0
"""The authors' divisor of every term but the prior."""


@dataclass(frozen=True)
class Gaussians:
    """A mean per class and a diagonal variance, one for all classes or one for each."""

    mean: Float[Tensor, "c d"]
    variance: Float[Tensor, "*c d"]

    @classmethod
    def with_floor(cls, mean: Float[Tensor, "c d"], variance: Float[Tensor, "*c d"]) -> "Gaussians":
        """Variances are at least the machine epsilon, so that none is zero."""
        return cls(mean, variance.clamp_min(torch.finfo(variance.dtype).eps))

    def log_density(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        """Up to a constant per image, which cancels in a softmax over classes."""
        precision = 1 / self.variance
        linear = images @ (self.mean * precision).T
        square = (self.mean**2 * precision).sum(1) / 2  # [c]
        if self.variance.ndim == 1:
            return linear.sub_(square)
        spread = images**2 @ precision.T  # [n, c]
        return linear.sub_(spread, alpha=0.5).sub_(square + self.variance.log().sum(1) / 2)


@dataclass(frozen=True)
class Sums:
    """Weighted count, sum and sum of squares of the embeddings of each class."""

    count: Float[Tensor, " c"]
    total: Float[Tensor, "c d"]
    square: Float[Tensor, "*c d"]
    """for each class, or summed over the classes if they share a variance"""

    @classmethod
    def from_assignments(
        cls, z: Float[Tensor, "n c"], x: Float[Tensor, "n d"], per_class: bool, weight: float = 1
    ) -> "Sums":
        """Of embeddings `x` that belong to class c with weight `z[:, c]`."""
        square = z.T @ x**2 if per_class else z.sum(1) @ x**2
        return cls(weight * z.sum(0), weight * (z.T @ x), weight * square)

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.count + other.count, self.total + other.total, self.square + other.square)

    def scatter(self, mean: Float[Tensor, "c d"]) -> Float[Tensor, "*c d"]:
        """Sum of squared distances to `mean`; rounding never makes it negative."""
        shift = mean**2 * self.count[:, None] - 2 * mean * self.total
        return (self.square + (shift if self.square.ndim == 2 else shift.sum(0))).clamp_min(0)


@dataclass(frozen=True)
class Problem:
    """Images and all terms of their assignment but the Gaussians."""

    images: Float[Tensor, "n d"]
    prior: Float[Tensor, "n c"]
    """log-probabilities of the texts or of an earlier method"""
    prior_weight: float
    """lambda"""
    graph: Float[Tensor, "n n"]
    """`V + V'`, sparse"""
    graph_weight: float
    shot_affinity: Float[Tensor, "n c"] | None = None
    """constant, from neighbours of known class"""
    forget: bool = False
    """each step takes the previous assignment as its prior (a fault, for `compat`)"""

    def assign(
        self, z: Float[Tensor, "n c"], gaussians: Gaussians, steps: int
    ) -> Float[Tensor, "n c"]:
        """`steps` fixed-point steps of the assignment."""
        fixed = gaussians.log_density(self.images).div_(TEMPERATURE)
        if self.shot_affinity is not None:
            fixed += self.shot_affinity
        if not self.forget:
            fixed.add_(self.prior, alpha=self.prior_weight)
        for _ in range(steps):
            logits = torch.sparse.mm(self.graph, z).mul_(self.graph_weight).add_(fixed)
            if self.forget:
                logits.add_(z.log(), alpha=self.prior_weight)
            z = flush_denormals(logits.softmax(1))
        return z

    def solve(
        self,
        z: Float[Tensor, "n c"],
        start: Gaussians,
        estimate: Callable[[Float[Tensor, "n c"], Gaussians], Gaussians],
        max_iter: int,
        inner_iter: int,
    ) -> tuple[Float[Tensor, "n c"], Gaussians]:
        """Alternate `assign` and `estimate`, `max_iter` times, then assign once more."""
        gaussians = start
        for _ in range(max_iter):
            z = self.assign(z, gaussians, inner_iter)
            gaussians = estimate(z, gaussians)
        return self.assign(z, gaussians, inner_iter), gaussians


def flush_denormals(z: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    """`z` with zeros where a product with it could be denormal."""
    return torch.where(z < torch.finfo(z.dtype).tiny ** 0.5, 0, z)


def mean_directions(sums: Sums, before: Float[Tensor, "c d"]) -> Float[Tensor, "c d"]:
    """Unit mean of each class; that of an empty class stays as `before`."""
    return torch.where(sums.count[:, None] > 0, normalize(sums.total), before)


@dataclass(frozen=True)
class LabelledImages:
    """Images of known class (shots)."""

    x: Float[Tensor, "m d"]
    z: Float[Tensor, "m c"]
    """their assignments, one-hot"""

    def sums(self, gamma: float, images: int, per_class: bool) -> Sums:
        """All shots together weigh as much as `50 gamma images` images."""
        weight = gamma * TEMPERATURE * images / len(self.x)
        return Sums.from_assignments(self.z, self.x, per_class, weight)

    def affinity(self, images: Float[Tensor, "n d"], k: int) -> Float[Tensor, "n c"]:
        """For each image, the classes of the shots that have it among their `k` nearest images."""
        graph = adjacency(*topk_stream(self.x, images, k), len(images))
        affinity: Tensor = torch.sparse.mm(graph.t(), self.z)
        return affinity

    @property
    def present(self) -> Bool[Tensor, " c"]:
        """Which classes have shots."""
        return self.z.bool().any(0)


@dataclass(frozen=True)
class Solution:
    """Assignments of the images and parameters of the classes after the last step."""

    z: Float[Tensor, "n c"]
    mean: Float[Tensor, "c d"]
    variance: Float[Tensor, "*c d"]


@dataclass(frozen=True)
class Transduction(Method):
    """The interface of `stata` and `transclip`: shots are optional, scores are assignments."""

    shots_: Float[Tensor, "m d"] | None = field(
        default=None, kw_only=True, repr=False, compare=False
    )
    shot_labels_: Int[Tensor, " m"] | None = field(
        default=None, kw_only=True, repr=False, compare=False
    )

    transductive: ClassVar[bool] = True
    one_label: ClassVar[bool] = True
    """Whether it shares each image out among the classes: to several labels it does not apply."""

    @property
    def output(self) -> Output:
        """Assignments sum to one."""
        return "probability"

    def fit(
        self: Self,
        shots: Float[Tensor, "m d"] | None = None,
        shot_labels: Int[Tensor, " m"] | None = None,
    ) -> Self:
        """A copy with these shots, if there are any."""
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
        """Assignments and parameters."""
        raise NotImplementedError

    def _labelled(self, classes: int) -> LabelledImages | None:
        if self.shots_ is None or self.shot_labels_ is None:
            return None
        z = one_hot(self.shot_labels_, classes).to(self.shots_.dtype)
        return LabelledImages(self.shots_, z)
