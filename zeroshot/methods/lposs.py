"""LPOSS: scores of patches spread to patches that look alike and lie near.

Stojnic, Kalantidis, Matas, Tolias 2025, "LPOSS: Label Propagation Over Patches and Pixels for
Open-vocabulary Semantic Segmentation", CVPR, arXiv:2503.19777; authors' code
vladan-stojnic/LPOSS (MIT).

    w_ij = max(0, cos_ij)^gamma exp(-sigma |p_i - p_j|^power)   for the k patches j most like i
    S    = D^-1/2 (W + W') D^-1/2
    z    = (I - alpha S)^-1 y

`y` are the cosines of patches and labels by another attention (`value`, MaskCLIP's, as in the
paper), `cos` compares the patches of a vision encoder (a second one, or this one), and `p` are
positions in pixels. All labels are one system, solved by conjugate gradients. LPOSS+ does the same
with pixels (`pixel_graph`): w_ij = exp(-|Lab_i - Lab_j| / tau) in a square around each.

Departures from the authors' code: conjugate gradients go on until the residual is small, where
theirs stop after 10 steps (up to 1 % of the largest score); k does not count the patch itself, so
their k is this one plus 1, and it may be larger than the number of patches; overlapping windows are
averaged before, so that a patch is in the graph once.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods._attention import Attention
from zeroshot.methods._neighbour_graph import adjacency, neighbours, solve, steps_to, symmetric
from zeroshot.methods.naclip import NACLIP
from zeroshot.ops import normalize

__all__ = ["LPOSS", "patch_graph", "pixel_graph", "spread"]

TOLERANCE = 1e-5
"""Relative residual of the solution; the least that float32 reaches safely."""
LAB = (100.0, 128.0, 128.0)
"""Ranges that the channels of a colour are divided by."""


def patch_graph(
    features: Float[Tensor, "n e"],
    positions: Float[Tensor, "n 2"],
    k: int = 400,
    gamma: float = 3.0,
    sigma: float = 0.01,
    power: float = 1.0,
) -> Float[Tensor, "n n"]:
    """The sparse matrix `S` of patches; a patch without edges has a row of zeros.

    Args:
        features: of any length.
        positions: of the patches' corners or centres, in pixels.
        k: edges to the most similar patches, or to all others if fewer.
        gamma: exponent of cosines; negative cosines are 0.
        sigma, power: how fast edges weaken with their distance.
    """
    cosine, index = neighbours(normalize(features), k)
    distance = (positions[index] - positions[:, None]).norm(dim=-1)
    weights = cosine.clamp_min(0) ** gamma * (-sigma * distance**power).exp()
    return symmetric(adjacency(weights, index, len(features)))


def pixel_graph(
    lab: Float[Tensor, "h w 3"], radius: int = 6, tau: float = 0.01
) -> Float[Tensor, "n n"]:
    """The sparse matrix `S` of the pixels of an image, row by row: `n = h w` (LPOSS+).

    Args:
        lab: colours in CIE L*a*b*, L from 0 to 100.
        radius: edges to the pixels that are at most so many rows and columns away.
        tau: difference of colour, of channels divided by 100, 128 and 128, at which an edge has
            the weight 1/e.
    """
    height, width, _ = lab.shape
    colours = (lab / lab.new_tensor(LAB)).flatten(0, 1)
    place = torch.arange(height * width, device=lab.device).view(height, width)
    rows, columns = [], []
    for down in range(radius + 1):
        for across in range(-radius, radius + 1):
            if down or across > 0:  # each pair once; `symmetric` adds the other direction
                here = place[: max(0, height - down), max(0, -across) : width - max(0, across)]
                rows.append(here.flatten())
                columns.append((here + down * width + across).flatten())
    row, column = torch.cat(rows), torch.cat(columns)
    weights = (-(colours[row] - colours[column]).norm(dim=-1) / tau).exp()
    size = (height * width, height * width)
    cells = torch.stack([row, column])
    return symmetric(torch.sparse_coo_tensor(cells, weights, size, check_invariants=False))


def spread(
    graph: Float[Tensor, "n n"],
    scores: Float[Tensor, "n c"],
    alpha: float = 0.95,
    tolerance: float = TOLERANCE,
    most: int | None = None,
) -> Float[Tensor, "n c"]:
    """`z`, with a relative residual of `tolerance` for each label.

    Args:
        graph: `S`, of `patch_graph` or `pixel_graph`.
        scores: `y`; they may be negative.
        alpha: how far scores spread, from 0 to below 1. Scores grow by up to 1 / (1 - alpha).
        tolerance: relative residual.
        most: steps at most; by default as many as the residual can take. The authors' 10.
    """
    return solve(graph, alpha, scores, tolerance, most or steps_to(tolerance, alpha))


@dataclass(frozen=True)
class LPOSS(NACLIP):
    """Attention for the scores of patches, and how they spread."""

    attention: Attention = "value"
    """which tokens attend to which in the last block, before scores spread"""

    k: int = 400
    """edges of a patch to the patches most like it"""

    gamma: float = 3.0
    """exponent of the cosines of patches"""

    alpha: float = 0.95
    """how far scores spread, below 1"""

    sigma: float = 0.01
    """how fast edges weaken with their length, by pixel"""

    power: float = 1.0
    """exponent of the length in pixels"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha < 1:
            raise UserError(f"lposs: alpha={self.alpha}; from 0 to below 1")
        for name in ("k", "gamma", "sigma", "power"):
            value, least = getattr(self, name), 1 if name == "k" else 0
            if not value >= least:
                raise UserError(f"lposs: {name}={value}; at least {least}")

    def propagate(
        self,
        scores: Float[Tensor, "n c"],
        features: Float[Tensor, "n e"],
        positions: Float[Tensor, "n 2"],
    ) -> Float[Tensor, "n c"]:
        """Scores after they spread: `z`.

        Args:
            scores: cosines of patches and labels, or any multiple of them: `z` is linear.
            features: of the same patches, by the encoder that says which are alike.
            positions: as for `patch_graph`.
        """
        graph = patch_graph(features, positions, self.k, self.gamma, self.sigma, self.power)
        return spread(graph, scores, self.alpha)
