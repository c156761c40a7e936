"""TransCLIP: transduction for sets in which every class is present.

Zanella, Gérin and Ben Ayed 2024, "Boosting Vision-Language Models with Transduction", NeurIPS,
arXiv:2406.01837; authors' code: github.com/MaxZanella/transduction-for-vlms (AGPL-3.0; this is
written from the equations).

    z_ic  proportional to  y_ic^lambda exp[(l_ic + (50 / 2k) sum_j A_ij z_jc) / 50]
    l_ic  = -1/2 sum_d (x_i - mu_c)^2 / s                  one variance s for all classes
    mu_c  = norm(mean of x, weighted by z_ic)               s = mean of z_ic (x_i - mu_c)^2

Means start at the eight most confident pictures of each class, the variance at 1/d. With shots,
these are rows of known class: each has the weight `gamma 50 n / m` in means and variance, and those
that have a picture among their nearest pull it in the graph.

| here | paper |
|---|---|
| y, z | zero-shot prediction, assignment |
| mu, s | mean and covariance diagonal |
| A | affinity w |
| gamma | gamma, weight of the labelled shots |

Departures from the authors' code. Theirs drops the nearest picture of each shot (as if it were the
shot itself); reads the graph's rows as [shots, pictures] where the assignments are [pictures,
shots], so that neighbours are mixed up (synthetic data: 73.6 % instead of 77.8 %); and with
predictions given, overwrites the prior by each step's result, so that they are soon forgotten.
`compat=True` does all three. They choose `gamma` on a validation set, and return the last of their
list, which starts where the one before it ended; here it is one number.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zeroshot.methods import Output
from zeroshot.methods._gmm import Gaussians, Problem, Shots, Sums, adjacency, directions, neighbours
from zeroshot.methods.ensemble import Ensemble
from zeroshot.ops import normalize, topk_stream


@dataclass(frozen=True)
class Solution:
    """Assignments and what the classes look like in the end."""

    z: Float[Tensor, "n c"]
    mean: Float[Tensor, "c d"]
    variance: Float[Tensor, " d"]


@dataclass(frozen=True)
class TransCLIP:
    """Probabilities of all pictures together; `fit` gives it shots, and it works without."""

    lambda_zeroshot: float = 1.0
    """exponent of the zero-shot probability without shots"""
    lambda_fewshot: float = 0.5
    """the same with shots"""
    gamma: float = 0.02
    """weight of the shots: 0.02 makes all shots weigh what all pictures weigh"""
    n_neighbors: int = 3
    """neighbours of each picture"""
    n_most_confident: int = 8
    """pictures of each class whose mean the class starts from"""
    max_iter: int = 10
    """updates of means and variance"""
    inner_iter: int = 5
    """updates of the assignments before each of them"""
    compat: bool = False
    """the authors' graph of shots and their forgotten predictions"""

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
    ) -> "TransCLIP":
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
        start: Solution | None = None,
    ) -> Solution:
        """Assignments, means and variance; `start` goes on from an earlier solution."""
        classes = len(texts)
        if initial is None:
            logits = logit_scale * images @ Ensemble().classifier(texts, text_mask).T
        else:
            logits = initial
        known = Shots.of(self.shots_, self.shot_labels_, classes)
        graph = adjacency(*neighbours(images, self.n_neighbors), len(images))
        pull = 1 / (2 * self.n_neighbors)
        pinned, fixed = None, None
        if known is not None:
            weight = self.gamma * 50 * len(images) / len(known.rows)
            fixed = Sums.of(known.classes, known.rows, per_class=False, weight=weight)
            if self.compat:
                graph, affinity = _mixed_up(graph, known, images, self.n_neighbors)
            else:
                affinity = known.pull(images, self.n_neighbors)
            pinned = affinity.mul_(pull)

        def estimate(z: Float[Tensor, "n c"], before: Gaussians) -> Gaussians:
            sums = Sums.of(z, images, per_class=False)
            if fixed is not None:
                sums = sums + fixed
            mean = directions(sums, before.mean)
            variance = sums.scatter(mean) / sums.count.sum()
            return Gaussians.of(mean, variance)

        problem = Problem(
            images,
            logits.log_softmax(1),
            self.lambda_zeroshot if known is None else self.lambda_fewshot,
            (graph + graph.t()).coalesce(),
            pull,
            pinned,
            forget=self.compat and initial is not None,
        )
        if start is None:
            z = logits.softmax(1)
            mean = _most_confident(images, z, self.n_most_confident)
            if known is not None:
                shown = normalize(known.classes.T @ known.rows)
                mean = torch.where(known.present[:, None], shown, mean)
            begin = Gaussians(mean, torch.full_like(images[0], 1 / images.shape[1]))
        else:
            z, begin = start.z, Gaussians(start.mean, start.variance)
        z, found = problem.solve(z, begin, estimate, self.max_iter, self.inner_iter)
        return Solution(z, found.mean, found.variance)


def _most_confident(
    images: Float[Tensor, "n d"], z: Float[Tensor, "n c"], count: int
) -> Float[Tensor, "c d"]:
    """Mean direction of the `count` pictures that are most of each class, weighted by `z`."""
    values, index = z.topk(min(count, len(z)), dim=0)  # [k, c]
    weights = adjacency(values.T, index.T, len(images))
    return normalize(torch.sparse.mm(weights, images))


def _mixed_up(
    graph: Float[Tensor, "n n"], known: Shots, images: Float[Tensor, "n d"], k: int
) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n c"]]:
    """The authors' graph: row j of [shots, pictures] is read as row j of [pictures, shots].

    What the first `n` rows hold acts between pictures, what the last `m` hold acts from shots.
    """
    values, index = topk_stream(known.rows, images, k + 1)
    shots = adjacency(values[:, 1:], index[:, 1:], len(images))
    rows = torch.cat([shots, graph]).coalesce()
    picture, shot = (
        rows.index_select(0, torch.arange(len(images))),
        rows.index_select(0, torch.arange(len(images), len(rows))),
    )
    return picture, torch.sparse.mm(shot.t(), known.classes)
