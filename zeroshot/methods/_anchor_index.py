"""Approximate search among anchors, for sets so large that exact search takes too long.

faiss (MIT, extra `index`) puts the anchors into cells by k-means, and a query searches only the
cells nearest to it (IVF-Flat). The share of the true nearest anchors that this finds is measured on
some of the anchors each time an index is built.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from zeroshot.errors import ApproximateWarning, NotAvailableError
from zeroshot.methods._anchor_matrix import BLOCK, AnchorMatrix
from zeroshot.ops import topk_stream
from zeroshot.packaging.extras import how_to_install

SHARE = 4
"""One cell in so many is searched."""
TRAINING = 64
"""Anchors per cell that k-means is trained on, at most."""
SAMPLE = 100
"""Anchors whose neighbours are searched both ways, to measure the recall."""


@dataclass(frozen=True, eq=False)
class AnchorIndex:
    """Anchors in cells; finds most of what `ops.topk_stream` finds."""

    cells: Any
    """A `faiss.IndexIVFFlat`."""
    recall: float
    """Share of the `k` nearest anchors that the search finds, for a sample of the anchors."""

    @classmethod
    def build(cls, side: str, anchors: AnchorMatrix, k: int) -> "AnchorIndex":
        """An index of unit vectors, copied in float32; warns with its recall at `k`.

        Raises:
            NotAvailableError: faiss is missing.
        """
        try:
            import faiss
        except ImportError as error:
            raise NotAvailableError(
                f"index=ivf needs faiss: {how_to_install('index')}, or leave index=exact"
            ) from error
        count = len(anchors)
        lists = max(1, math.isqrt(count))
        cells = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(anchors.width), anchors.width, lists, faiss.METRIC_INNER_PRODUCT
        )
        cells.nprobe = math.ceil(lists / SHARE)
        cells.cp.min_points_per_centroid = 1
        cells.train(_float32(_evenly_spaced(anchors, TRAINING * lists)))
        for block in anchors.blocks(BLOCK):
            cells.add(_float32(block))
        queries = _evenly_spaced(anchors, SAMPLE)
        exact = topk_stream(queries, anchors, k)[1]
        approximate = cls(cells, math.nan).topk(queries, k)[1]
        hits = [
            len(set(a) & set(b)) for a, b in zip(exact.tolist(), approximate.tolist(), strict=True)
        ]
        recall = sum(hits) / exact.numel()
        warnings.warn(
            f"approximate search among {count} anchor {side} finds {recall:.3f} of the "
            f"{exact.shape[1]} nearest (measured on {len(queries)} of them); index=exact finds all",
            ApproximateWarning,
            stacklevel=2,
        )
        return cls(cells, recall)

    def topk(
        self, queries: Float[Tensor, "n d"], k: int
    ) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
        """As `ops.topk_stream`; if fewer are found, index -1 at -inf."""
        values, index = self.cells.search(_float32(queries), min(k, self.cells.ntotal))
        values[index < 0] = -np.inf
        return torch.from_numpy(values).to(queries.dtype), torch.from_numpy(index)


def _evenly_spaced(anchors: AnchorMatrix, most: int) -> Float[Tensor, "m d"]:
    count = min(len(anchors), most)
    return anchors.take(torch.arange(count) * len(anchors) // count)


def _float32(embeddings: Float[Tensor, "n d"]) -> Any:
    return np.ascontiguousarray(embeddings.cpu().numpy(), dtype=np.float32)
