"""TransCLIP: transduction for sets in which every class is present.

Zanella, Gérin and Ben Ayed 2024, "Boosting Vision-Language Models with Transduction", NeurIPS,
arXiv:2406.01837; authors' code: github.com/MaxZanella/transduction-for-vlms (AGPL-3.0; this is
written from the equations).

    z_ic  proportional to  y_ic^lambda exp[(l_ic + (50 / 2k) sum_j A_ij z_jc) / 50]       (1)
    l_ic  = -1/2 sum_d (x_i - mu_c)^2 / s                  one variance s for all classes (2)
    mu_c  = norm(mean of x, weighted by z_ic)                                             (3)
    s     = mean of z_ic (x_i - mu_c)^2                                                   (4)

Means start at the eight most confident images of each class, the variance at 1/d. Shots are images
of known class: each has the weight `gamma 50 n / m` in means and variance, and in the graph it is a
neighbour of the images nearest to it.

| here | paper |
|---|---|
| y, z | zero-shot prediction, assignment |
| mu, s | mean and covariance diagonal |
| A | affinity w |
| gamma | gamma, weight of the labelled shots |

Departures from the authors' code. Theirs drops the nearest image of each shot (as if it were the
shot itself). It orders the graph's rows as [shots, images] but the assignments as [images, shots],
so that neighbours are mixed up (synthetic data: 73.6 % instead of 77.8 %). With predictions given,
it overwrites the prior by each step's result, so that they are soon forgotten. `compat=True` does
all three. They choose `gamma` on a validation set, and return the result for the last of their
list, which starts where the one before it ended; here it is one number.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.methods._neighbour_graph import adjacency, neighbours
from zeroshot.methods._transduction import (
    Gaussians,
    LabelledImages,
    Problem,
    Solution,
    Sums,
    Transduction,
    mean_directions,
)
from zeroshot.methods.ensemble import Ensemble
from zeroshot.ops import normalize, topk_stream


@dataclass(frozen=True)
class TransCLIP(Transduction):
    """Class probabilities of all images together; shots are optional."""

    lambda_zeroshot: float = 1.0
    """exponent of the zero-shot probability without shots"""
    lambda_fewshot: float = 0.5
    """the same with shots"""
    gamma: float = 0.02
    """weight of the shots: with 0.02 all shots weigh as much as all images"""
    n_neighbors: int = 3
    """neighbours of each image"""
    n_most_confident: int = 8
    """images of each class whose mean the class starts from"""
    max_iter: int = 10
    """updates of means and variance"""
    inner_iter: int = 5
    """updates of the assignments before each update of means and variance"""
    compat: bool = False
    """the authors' graph of shots and their forgotten predictions"""

    def solve(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
        initial: Float[Tensor, "n c"] | None = None,
        start: Solution | None = None,
    ) -> Solution:
        """Assignments `z`, means `mu`, variance `s`; `start` continues from an earlier solution."""
        w = Ensemble().classifier(texts, text_mask)
        logits = logit_scale * images @ w.T if initial is None else initial
        graph = adjacency(*neighbours(images, self.n_neighbors), len(images))
        graph_weight = 1 / (2 * self.n_neighbors)
        shots = self._labelled(len(w))
        shot_sums, shot_affinity = None, None
        if shots is not None:
            shot_sums = shots.sums(self.gamma, len(images), per_class=False)
            if self.compat:
                graph, shot_affinity = _misread(graph, shots, images, self.n_neighbors)
            else:
                shot_affinity = shots.affinity(images, self.n_neighbors)
            shot_affinity = shot_affinity.mul_(graph_weight)

        def estimate(z: Float[Tensor, "n c"], before: Gaussians) -> Gaussians:
            sums = Sums.from_assignments(z, images, per_class=False)
            if shot_sums is not None:
                sums = sums + shot_sums
            mu = mean_directions(sums, before.mean)  # (3)
            return Gaussians.with_floor(mu, sums.scatter(mu) / sums.count.sum())  # (4)

        problem = Problem(  # (1), (2)
            images,
            logits.log_softmax(1),
            self.lambda_zeroshot if shots is None else self.lambda_fewshot,
            (graph + graph.t()).coalesce(),
            graph_weight,
            shot_affinity,
            forget=self.compat and initial is not None,
        )
        if start is None:
            z = logits.softmax(1)
            begin = self._begin(images, z, shots)
        else:
            z, begin = start.z, Gaussians(start.mean, start.variance)
        z, classes = problem.solve(z, begin, estimate, self.max_iter, self.inner_iter)
        return Solution(z, classes.mean, classes.variance)

    def _begin(
        self, images: Float[Tensor, "n d"], z: Float[Tensor, "n c"], shots: LabelledImages | None
    ) -> Gaussians:
        """Means of the most confident images or of the shots, and the variance 1/d."""
        mean = _most_confident(images, z, self.n_most_confident)
        if shots is not None:
            mean = torch.where(shots.present[:, None], normalize(shots.z.T @ shots.x), mean)
        return Gaussians(mean, torch.full_like(images[0], 1 / images.shape[1]))


def _most_confident(
    images: Float[Tensor, "n d"], z: Float[Tensor, "n c"], count: int
) -> Float[Tensor, "c d"]:
    """Mean direction of the `count` most confident images of each class, weighted by `z`."""
    values, index = z.topk(min(count, len(z)), dim=0)  # [k, c]
    weights = adjacency(values.T, index.T, len(images))
    return normalize(torch.sparse.mm(weights, images))


def _misread(
    graph: Float[Tensor, "n n"], shots: LabelledImages, images: Float[Tensor, "n d"], k: int
) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n c"]]:
    """The authors' graph: row j of [shots, images] is read as row j of [images, shots].

    The first `n` rows then connect images, and the last `m` rows connect images with shots.
    """
    values, index = topk_stream(shots.x, images, k + 1)
    shot_rows = adjacency(values[:, 1:], index[:, 1:], len(images))
    rows = torch.cat([shot_rows, graph]).coalesce()
    between_images = rows.index_select(0, torch.arange(len(images)))
    from_shots = rows.index_select(0, torch.arange(len(images), len(rows)))
    return between_images, torch.sparse.mm(from_shots.t(), shots.z)
