"""Approximate search, for very many queries and rows, with faiss (MIT, extra `index`).

    ivf      rows in cells of k-means; the cells nearest to a query are searched
    ivfpq    the same with codes in place of rows, a byte for eight numbers (product quantisation)

Candidates from the cells are scored again with the rows themselves. So scores are exact, and only
the choice of candidates is approximate; its recall is measured on the queries.
"""

import math
import warnings
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from zeroshot.errors import ApproximateWarning, NotAvailableError, counted
from zeroshot.ops import BLOCK
from zeroshot.packaging.extras import how_to_install
from zeroshot.ranking.exact import SLACK, Gallery, Hits, in_order, nearest, products

IndexKind = Literal["ivf", "ivfpq"]
KINDS = ("ivf", "ivfpq")

SHARE = 8
"""One cell in so many is searched."""
TRAINING = 64
"""Most rows per cell for k-means."""
SAMPLE = 100
"""Queries on which the recall is measured."""
CODES = 256
"""Values of a byte; fewer rows than this are stored without codes."""
CODED = 8
"""Candidates for each hit that are scored exactly, if rows are stored as codes."""


def search(queries: Float[Tensor, "q d"], gallery: Gallery, k: int, kind: IndexKind) -> Hits:
    """The best rows that an index finds; warns with its recall. Index -1 if it finds too few.

    Raises:
        NotAvailableError: faiss is not installed.
    """
    k = min(k, len(gallery))
    if not k or not len(queries):
        none = torch.zeros(len(queries), 0)
        return Hits(none.long(), none, none)
    cells = _build(gallery, kind)
    values, index = _candidates(queries, gallery, k, kind, cells)
    some = queries[:: math.ceil(len(queries) / SAMPLE)]
    recall = _recall(some, gallery, k, kind, cells)
    warnings.warn(
        f"approximate search among {counted(len(gallery), 'image')} finds {recall:.3f} of the {k} "
        f"best (measured on {len(some)} of the queries); --index exact finds all",
        ApproximateWarning,
        stacklevel=2,
    )
    return Hits(index, values, values)


def _build(gallery: Gallery, kind: IndexKind) -> Any:
    """Rows in about `sqrt(n)` cells."""
    try:
        import faiss
    except ImportError as error:
        raise NotAvailableError(
            f"--index {kind} needs faiss: {how_to_install('index')}, or leave it exact"
        ) from error
    count = len(gallery)
    lists = math.isqrt(count)
    sample = torch.arange(min(count, TRAINING * max(lists, 8))) * count
    seen = gallery.take(torch.div(sample, len(sample), rounding_mode="floor"))
    width = seen.shape[1]
    centres = faiss.IndexFlatIP(width)
    cells: Any
    if kind == "ivf" or len(seen) < CODES:
        cells = faiss.IndexIVFFlat(centres, width, lists, faiss.METRIC_INNER_PRODUCT)
    else:
        parts = max(m for m in range(1, max(2, width // 8 + 1)) if width % m == 0)
        cells = faiss.IndexIVFPQ(centres, width, lists, parts, 8, faiss.METRIC_INNER_PRODUCT)
        cells.pq.cp.min_points_per_centroid = 1
    cells.nprobe = math.ceil(lists / SHARE)
    cells.cp.min_points_per_centroid = 1
    cells.train(_single(seen))
    for block in gallery.blocks(BLOCK):
        cells.add(_single(block))
    return cells


def _candidates(
    queries: Tensor, gallery: Gallery, k: int, kind: IndexKind, cells: Any
) -> tuple[Tensor, Tensor]:
    """Candidates from the cells, scored with the rows themselves."""
    wanted = k + SLACK if kind == "ivf" else CODED * k + SLACK
    _, indices = cells.search(_single(queries), min(wanted, len(gallery)))
    index = torch.from_numpy(indices)
    values = products(queries, gallery, index.clamp_min(0))
    values, index = in_order(values.masked_fill(index < 0, -torch.inf), index)
    return values[:, :k], index[:, :k]


def _recall(queries: Tensor, gallery: Gallery, k: int, kind: IndexKind, cells: Any) -> float:
    """The share of the `k` best that the index finds."""
    exact = nearest(queries, gallery, k)[1].tolist()
    approximate = _candidates(queries, gallery, k, kind, cells)[1].tolist()
    both = [len(set(a) & set(b)) for a, b in zip(exact, approximate, strict=True)]
    return sum(both) / (k * len(exact))


def _single(rows: Float[Tensor, "n d"]) -> Any:
    return np.ascontiguousarray(rows.numpy(), dtype=np.float32)
