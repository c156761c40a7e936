"""ZLaP: labels spread from the texts over a graph of images.

Stojnic, Kalantidis and Tolias 2024, "Label Propagation for Zero-shot Classification with
Vision-Language Models", CVPR, arXiv:2404.04072; authors' code: github.com/vladan-stojnic/ZLaP
(MIT).

    A    = cosines of each image with its k nearest images (itself among the k, then removed)
           and, to the power gamma, with its k nearest texts                                  (1)
    W    = D^-1/2 (A + A') D^-1/2                                                             (2)
    z_c  = solution of (I - alpha W) z = e_c,  e_c the node of text c                         (3)
    score of image i for class c = z_ci                                                       (4)

All classes are one system with many right-hand sides, solved by conjugate gradients on the sparse
graph. With a `bank` the graph has the bank's images instead: an image is scored by its edges to
them and to the texts, `sum_j edge_ij z_cj`, and its score does not depend on the other images.

The division by the degrees `D` lowers the weight of texts that are near many images, as if classes
were equally frequent: with few classes present it loses accuracy, and warns.

| here | paper |
|---|---|
| k, gamma, alpha | k, gamma, alpha |
| sparse | each row of the solution cut to its largest entry (`sparse_inductive`) |

Departures from the authors' code: none in the equations. As in theirs, `scale_sim` scales cosines
by the range of all stored edges, including the images' similarity with themselves, and negative
cosines are clipped after scaling in the graph but before it in the queries. Each column iterates
until all have converged, so that the same tolerance leaves smaller errors than theirs.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.methods._bank import OptionalBank
from zeroshot.methods._neighbour_graph import adjacency, solve, symmetric
from zeroshot.methods._prior import warn_if_few
from zeroshot.methods._protocols import Output
from zeroshot.methods._shots import Memo
from zeroshot.methods.ensemble import Ensemble
from zeroshot.ops import topk_stream


@dataclass(frozen=True)
class ZLaP(OptionalBank):
    """Propagated labels; a bank of unlabelled images is optional."""

    k: int = 5
    """neighbours of an image among the images (including itself) and among the texts"""
    gamma: float = 5.0
    """exponent of the cosines of images with texts"""
    alpha: float = 0.3
    """how far labels spread, below 1"""
    scale_sim: bool = False
    """scale cosines to [0, 1] first; for classifiers learned from images instead of texts"""
    sparse: bool = False
    """with a bank: only the best class of each of its images counts"""
    cg_tol: float = 1e-6
    """relative residual at which the solver stops"""
    cg_maxiter: int = 50
    """most steps of the solver"""

    memo_: Memo[tuple[Tensor, tuple[float, float]]] = field(
        default_factory=Memo, init=False, repr=False, compare=False
    )

    @property
    def output(self) -> Output:
        """Label scores; they have no logit scale, and only their order means something."""
        return "similarity"

    def scores(
        self,
        images: Float[Tensor, "n d"],
        texts: Float[Tensor, "c t d"],
        text_mask: Bool[Tensor, "c t"] | None = None,
        logit_scale: float = 100.0,
    ) -> Float[Tensor, "n c"]:
        """Label scores."""
        prototypes = Ensemble().classifier(texts, text_mask)
        if self.bank_ is None:
            sample = images[:: 1 + len(images) // 1024]
            warn_if_few("zlap", logit_scale * sample @ prototypes.T)
            return self.spread(images, prototypes)[len(prototypes) :]  # (4)
        bank = self.bank_
        solution, limits = self.memo_(
            lambda: (self._select(self.spread(bank, prototypes)), self._range(bank, prototypes)),
            texts,
            text_mask,
        )
        scores: Tensor = torch.sparse.mm(self._edges(images, bank, prototypes, limits), solution)
        return scores

    def spread(
        self, images: Float[Tensor, "n d"], prototypes: Float[Tensor, "c d"]
    ) -> Float[Tensor, "m c"]:
        """The solution at the texts and then the images: `m = c + n` rows."""
        classes, nodes = len(prototypes), len(prototypes) + len(images)
        edges = self._edges(images, images, prototypes).coalesce()
        cells = torch.stack([edges.indices()[0] + classes, edges.indices()[1]])
        a = torch.sparse_coo_tensor(cells, edges.values(), (nodes, nodes), check_invariants=False)
        e = torch.zeros(nodes, classes, dtype=images.dtype, device=images.device)
        e.fill_diagonal_(1)
        return solve(symmetric(a), self.alpha, e, self.cg_tol, self.cg_maxiter)  # (2), (3)

    def _edges(
        self,
        queries: Float[Tensor, "n d"],
        images: Float[Tensor, "b d"],
        prototypes: Float[Tensor, "c d"],
        limits: tuple[float, float] | None = None,
    ) -> Float[Tensor, "n m"]:
        """(1): weights of edges from the queries to the texts and then the images, sparse.

        The queries are the images themselves, unless `limits`, the range of the graph's cosines,
        are given.
        """
        to_images, image = topk_stream(queries, images, self.k)
        to_texts, text = topk_stream(queries, prototypes, self.k)
        cosine = torch.cat([to_texts, to_images], 1)
        if self.scale_sim and limits is None:
            cosine = _scale(cosine, float(cosine.min()), float(cosine.max())).clamp_min(0)
        elif self.scale_sim and limits is not None:
            cosine = _scale(cosine.clamp_min(0), *limits)
        else:
            cosine = cosine.clamp_min(0)
        to_texts, to_images = torch.split(cosine, [text.shape[1], image.shape[1]], 1)
        if limits is None:
            itself = torch.arange(len(queries), device=queries.device)[:, None]
            to_images = to_images * (image != itself)
        index = torch.cat([text, image + len(prototypes)], 1)
        weights = torch.cat([to_texts**self.gamma, to_images], 1)
        return adjacency(weights, index, len(prototypes) + len(images))

    def _range(
        self, bank: Float[Tensor, "b d"], prototypes: Float[Tensor, "c d"]
    ) -> tuple[float, float]:
        """Smallest and largest cosine of the bank's edges, for `scale_sim`."""
        if not self.scale_sim:
            return 0.0, 1.0
        cosines = [topk_stream(bank, keys, self.k)[0] for keys in (bank, prototypes)]
        return min(float(x.min()) for x in cosines), max(float(x.max()) for x in cosines)

    def _select(self, solution: Float[Tensor, "m c"]) -> Float[Tensor, "m c"]:
        if not self.sparse:
            return solution
        best = solution.argmax(1, keepdim=True)
        return torch.zeros_like(solution).scatter_(1, best, solution.gather(1, best))


def _scale(values: Float[Tensor, "n k"], least: float, most: float) -> Float[Tensor, "n k"]:
    return (values - least) / (most - least if most > least else 1.0)
