"""Sparse graphs of nearest neighbours, and what spreads over them."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zeroshot.ops import topk_stream


def neighbours(
    images: Float[Tensor, "n d"], k: int
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Cosines and indices of each image's `k` nearest other images, or of all if fewer."""
    values, index = topk_stream(images, images, k + 1)
    own = index == torch.arange(len(images), device=images.device)[:, None]
    own[:, -1] |= ~own.any(1)  # duplicates came first: drop the last, so that k remain
    return values[~own].view(len(images), -1), index[~own].view(len(images), -1)


def adjacency(
    values: Float[Tensor, "m k"], index: Int[Tensor, "m k"], columns: int
) -> Float[Tensor, "m n"]:
    """The sparse matrix with `values` at the columns `index`."""
    rows = torch.arange(len(index), device=index.device).repeat_interleave(index.shape[1])
    cells = torch.stack([rows, index.flatten()])
    size = (len(index), columns)
    return torch.sparse_coo_tensor(cells, values.flatten(), size, check_invariants=False)


def symmetric(edges: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """`D^-1/2 (A + A') D^-1/2` of a sparse `A`; `D` are its row sums. A row without edges is 0."""
    both = (edges + edges.t()).coalesce()
    degree = torch.sparse.sum(both, 1).to_dense()
    root = torch.where(degree > 0, degree, 1).rsqrt()
    row, column = both.indices()
    values = both.values() * root[row] * root[column]
    return torch.sparse_coo_tensor(
        both.indices(), values, both.shape, is_coalesced=True, check_invariants=False
    )


def steps_to(tolerance: float, alpha: float) -> int:
    """Steps in which `solve` reaches this residual on any graph, by the bound of its convergence.

    The eigenvalues of `I - alpha w` lie between `1 - alpha` and `1 + alpha`.
    """
    condition = (1 + alpha) / (1 - alpha)
    return math.ceil(math.sqrt(condition) / 2 * math.log(2 * math.sqrt(condition) / tolerance)) + 1


def solve(
    w: Callable[[Float[Tensor, "m c"]], Float[Tensor, "m c"]] | Float[Tensor, "m m"],
    alpha: float,
    right: Float[Tensor, "m c"],
    tolerance: float,
    most: int,
) -> Float[Tensor, "m c"]:
    """`(I - alpha w)^-1 right` by conjugate gradients, all columns at once.

    Args:
        w: a sparse matrix, or its product with columns.
        tolerance: relative residual of each column at which all stop.
        most: steps at most.
    """
    multiplied = w if callable(w) else lambda columns: torch.sparse.mm(w, columns)
    x = torch.zeros_like(right)
    residual = right.clone()
    direction = residual.clone()
    square = residual.square().sum(0)  # [c]
    goal = tolerance**2 * square
    for _ in range(most):
        product = direction - alpha * multiplied(direction)
        curvature = (direction * product).sum(0)
        step = square / torch.where(curvature > 0, curvature, 1)
        x.addcmul_(direction, step)
        residual.addcmul_(product, step, value=-1)
        after = residual.square().sum(0)
        if (after <= goal).all():
            break
        direction.mul_(after / torch.where(square > 0, square, 1)).add_(residual)
        square = after
    return x
