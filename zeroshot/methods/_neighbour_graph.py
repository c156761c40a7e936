"""Sparse graphs of nearest neighbours."""

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
