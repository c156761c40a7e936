"""Approximate search among anchors, for sets so large that the exact one takes too long.

No method of its own (the name begins with `_`). faiss (MIT, extra `index`) puts the anchors into
cells by k-means, and a query looks into the cells nearest to it alone (IVF-Flat). How many of the
true nearest that finds is measured on some of the anchors each time an index is made.
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
from zeroshot.methods._pairs import BLOCK, Rows
from zeroshot.ops import topk_stream
from zeroshot.packaging.extras import how_to_install

SHARE = 4
"""One cell in so many is looked into."""
TRAINING = 64
"""Anchors for each cell that k-means sees, at most."""
SAMPLE = 100
"""Anchors whose neighbours are searched both ways."""


@dataclass(frozen=True, eq=False)
class Index:
    """Anchors in cells; what `ops.topk_stream` finds, but for some."""

    cells: Any
    """faiss's own."""
    recall: float
    """Share of the `k` nearest that were found, for a sample of the anchors."""

    @classmethod
    def of(cls, side: str, anchors: Rows, k: int) -> "Index":
        """These anchors as unit rows, copied in float32; warns with the recall at `k`.

        Raises:
            NotAvailableError: faiss is not installed.
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
        seen = min(count, TRAINING * lists)
        cells.train(_single(anchors.take(torch.arange(seen) * count // seen)))
        for block in anchors.blocks(BLOCK):
            cells.add(_single(block))
        known = cls(cells, math.nan)
        some = min(count, SAMPLE)
        queries = anchors.take(torch.arange(some) * count // some)
        exact = topk_stream(queries, anchors, k)[1]
        near = known.topk(queries, k)[1]
        found = sum(
            len(set(a) & set(b)) for a, b in zip(exact.tolist(), near.tolist(), strict=True)
        )
        recall = found / exact.numel()
        warnings.warn(
            f"approximate search among {count} anchor {side} finds {recall:.3f} of the "
            f"{exact.shape[1]} nearest (measured on {some} of them); index=exact finds all",
            ApproximateWarning,
            stacklevel=2,
        )
        return cls(cells, recall)

    def topk(
        self, queries: Float[Tensor, "n d"], k: int
    ) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
        """As `ops.topk_stream`; where fewer are found, place -1 at -inf."""
        values, index = self.cells.search(_single(queries), min(k, self.cells.ntotal))
        values[index < 0] = -np.inf
        return torch.from_numpy(values).to(queries.dtype), torch.from_numpy(index)


def _single(rows: Float[Tensor, "n d"]) -> Any:
    return np.ascontiguousarray(rows.cpu().numpy(), dtype=np.float32)
