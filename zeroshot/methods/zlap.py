"""ZLaP: labels spread from the texts over a graph of pictures.

Stojnic, Kalantidis and Tolias 2024, "Label Propagation for Zero-shot Classification with
Vision-Language Models", CVPR, arXiv:2404.04072; authors' code: github.com/vladan-stojnic/ZLaP
(MIT).

    A    = cosines of each picture with its k nearest pictures (itself among the k, then removed)
           and, to the power gamma, with its k nearest texts
    W    = D^-1/2 (A + A') D^-1/2
    z_c  = solution of (I - alpha W) z = e_c,  e_c the node of text c
    score of picture i for class c = z_ci

All classes are one system with many right-hand sides, solved by conjugate gradients on the sparse
graph. With a `bank` the graph has its pictures instead: a picture is scored by its edges to them
and to the texts, `sum_j edge_ij z_cj`, and does not depend on the others.

Dividing by the degrees `D` makes texts that many pictures are near speak more softly, as if classes
were equally frequent: with few classes present it loses, and warns.

| here | paper |
|---|---|
| k, gamma, alpha | k, gamma, alpha |
| sparse | each row of the solution cut to its largest entry (`sparse_inductive`) |

Departures from the authors' code: none in the equations. With `scale_sim` cosines are scaled by the
range of all stored edges, the pictures' similarity with themselves among them, and negative ones
are clipped after scaling in the graph but before it in the queries, as theirs are. Each column
iterates until all are done, so that the same tolerance leaves smaller errors than theirs.
"""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeroshot.methods._neighbour_graph import adjacency
from zeroshot.methods._prior import warn_if_few
from zeroshot.methods._protocols import Output
from zeroshot.methods._shots import Memo
from zeroshot.methods.ensemble import Ensemble
from zeroshot.ops import topk_stream


@dataclass(frozen=True)
class ZLaP:
    """Propagated labels; `fit` gives it a bank of unlabelled pictures, and it works without."""

    k: int = 5
    """neighbours of a picture among the pictures (itself counted) and among the texts"""
    gamma: float = 5.0
    """exponent of the cosines of pictures with texts"""
    alpha: float = 0.3
    """how far labels spread, below 1"""
    scale_sim: bool = False
    """stretch cosines to [0, 1] first; for texts replaced by classifiers made of pictures"""
    sparse: bool = False
    """with a bank: each of its pictures keeps its best class alone"""
    cg_tol: float = 1e-6
    """relative residual at which the solver stops"""
    cg_maxiter: int = 50
    """most steps of the solver"""

    bank_: Float[Tensor, "b d"] | None = field(default=None, repr=False, compare=False)
    memo_: Memo[tuple[Tensor, tuple[float, float]]] = field(
        default_factory=Memo, init=False, repr=False, compare=False
    )

    @property
    def transductive(self) -> bool:
        """Unless a bank holds the graph."""
        return self.bank_ is None

    @property
    def output(self) -> Output:
        """Label scores, which no logit scale belongs to; only their order means something."""
        return "similarity"

    def fit(self, bank: Float[Tensor, "b d"] | None = None) -> "ZLaP":
        """A copy whose graph is of these pictures, if there are any."""
        return replace(self, bank_=bank)

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
            some = images[:: 1 + len(images) // 1024]
            warn_if_few("zlap", logit_scale * some @ prototypes.T)
            return self.spread(images, prototypes)[len(prototypes) :]
        bank = self.bank_
        solution, limits = self.memo_(
            lambda: (self._kept(self.spread(bank, prototypes)), self._range(bank, prototypes)),
            texts,
            text_mask,
        )
        found: Tensor = torch.sparse.mm(self._edges(images, bank, prototypes, limits), solution)
        return found

    def spread(
        self, images: Float[Tensor, "n d"], prototypes: Float[Tensor, "c d"]
    ) -> Float[Tensor, "m c"]:
        """The solution at the texts and then the pictures: `m = c + n` rows."""
        classes, nodes = len(prototypes), len(prototypes) + len(images)
        edges = self._edges(images, images, prototypes).coalesce()
        place = torch.stack([edges.indices()[0] + classes, edges.indices()[1]])
        half = torch.sparse_coo_tensor(
            place, edges.values(), (nodes, nodes), check_invariants=False
        )
        both = (half + half.t()).coalesce()
        degree = torch.sparse.sum(both, 1).to_dense()
        root = torch.where(degree > 0, degree, 1).rsqrt()
        row, column = both.indices()
        values = both.values() * root[row] * root[column]
        graph = torch.sparse_coo_tensor(
            both.indices(), values, both.shape, is_coalesced=True, check_invariants=False
        )
        wanted = torch.zeros(nodes, classes, dtype=images.dtype, device=images.device)
        wanted.fill_diagonal_(1)
        return solved(graph, self.alpha, wanted, self.cg_tol, self.cg_maxiter)

    def _edges(
        self,
        rows: Float[Tensor, "n d"],
        images: Float[Tensor, "b d"],
        prototypes: Float[Tensor, "c d"],
        limits: tuple[float, float] | None = None,
    ) -> Float[Tensor, "n m"]:
        """Weights of edges from `rows` to the texts and then the images, sparse.

        With `limits`, the range of the graph's cosines, the rows are queries and not in the graph.
        """
        near, image = topk_stream(rows, images, self.k)
        likely, text = topk_stream(rows, prototypes, self.k)
        cosine = torch.cat([likely, near], 1)
        if self.scale_sim and limits is None:
            cosine = _scaled(cosine, float(cosine.min()), float(cosine.max())).clamp_min(0)
        elif self.scale_sim and limits is not None:
            cosine = _scaled(cosine.clamp_min(0), *limits)
        else:
            cosine = cosine.clamp_min(0)
        likely, near = torch.split(cosine, [text.shape[1], image.shape[1]], 1)
        if limits is None:
            near = near * (image != torch.arange(len(rows), device=rows.device)[:, None])
        index = torch.cat([text, image + len(prototypes)], 1)
        weights = torch.cat([likely**self.gamma, near], 1)
        return adjacency(weights, index, len(prototypes) + len(images))

    def _range(
        self, bank: Float[Tensor, "b d"], prototypes: Float[Tensor, "c d"]
    ) -> tuple[float, float]:
        """Smallest and largest cosine of the bank's edges; only where it is asked for."""
        if not self.scale_sim:
            return 0.0, 1.0
        both = [topk_stream(bank, keys, self.k)[0] for keys in (bank, prototypes)]
        return min(float(x.min()) for x in both), max(float(x.max()) for x in both)

    def _kept(self, solution: Float[Tensor, "m c"]) -> Float[Tensor, "m c"]:
        if not self.sparse:
            return solution
        best = solution.argmax(1, keepdim=True)
        return torch.zeros_like(solution).scatter_(1, best, solution.gather(1, best))


def _scaled(values: Float[Tensor, "n k"], least: float, most: float) -> Float[Tensor, "n k"]:
    return (values - least) / (most - least if most > least else 1.0)


def solved(
    graph: Float[Tensor, "m m"],
    alpha: float,
    wanted: Float[Tensor, "m c"],
    tolerance: float,
    most: int,
) -> Float[Tensor, "m c"]:
    """`(I - alpha graph)^-1 wanted` by conjugate gradients, all columns at once."""
    x = torch.zeros_like(wanted)
    residual = wanted.clone()
    direction = residual.clone()
    square = residual.square().sum(0)  # [c]
    goal = tolerance**2 * square
    for _ in range(most):
        image = direction - alpha * torch.sparse.mm(graph, direction)
        curvature = (direction * image).sum(0)
        step = square / torch.where(curvature > 0, curvature, 1)
        x.addcmul_(direction, step)
        residual.addcmul_(image, step, value=-1)
        after = residual.square().sum(0)
        if (after <= goal).all():
            break
        direction.mul_(after / torch.where(square > 0, square, 1)).add_(residual)
        square = after
    return x
