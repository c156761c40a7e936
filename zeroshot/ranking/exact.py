"""The best of a gallery for each query: exact, block by block, for galleries of any size.

Hubness corrections and distribution normalisation re-rank without the matrix of all queries and all
rows, because each of them changes the rows, or adds one number for each row and each query:

    score_qg = scale s_qg - bias_g - level_q

| method | scale | bias_g | level_q |
|---|---|---|---|
| nnn | 1 | alpha times the mean of the k largest s_bg over the bank | 0 |
| inverted_softmax | 1 | log(mean_b exp(beta s_bg)) / beta | 0 |
| dis | 1 | as inverted_softmax for queries whose best row is active, else 0 | 0 |
| csls | 2 | mean of the k largest s_bg over the bank | mean of the k largest s_qg |
| dn | 1 | 0; both sides are shifted and brought to unit length | 0 |

The best scores are computed again in float64, so that they do not depend on the size of blocks.
Equal scores keep the gallery's order.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from zeroshot.errors import UserError
from zeroshot.methods import configure, name_of
from zeroshot.methods.csls import CSLS, csls
from zeroshot.methods.dis import DIS
from zeroshot.methods.dn import DN
from zeroshot.methods.inverted_softmax import InvertedSoftmax, inverted_softmax
from zeroshot.methods.nnn import NNN, append_ones, nnn
from zeroshot.ops import BLOCK, Keys, normalize, topk_stream

Places = slice | Tensor
Change = Callable[[Tensor, Places], Tensor]
"""From rows and their indices in the gallery to other rows."""
Correction = NNN | InvertedSoftmax | DIS | CSLS | DN
CORRECTIONS = ("csls", "dis", "dn", "inverted_softmax", "nnn")

SLACK = 16
"""Candidates after the k-th, because rounding may have changed the order."""
ROUNDING = 4e-6
"""Scores in float32 that differ by less, relative to a score above 1, may be equal."""
CELLS = 1 << 23
"""Similarities to a bank in memory at a time."""


@dataclass(frozen=True, eq=False)
class Gallery:
    """Finite embeddings in float32, or float16 for half the memory; an `ops.Keys`.

    `change` maps a block to the float32 rows that are compared, when the block is needed, because
    a coupling's joint space can be much wider than the embeddings.
    """

    rows: Float[Tensor, "n d"]
    change: Change = lambda rows, _: rows

    @classmethod
    def of(cls, rows: Float[Tensor, "n d"], change: Change | None = None) -> "Gallery":
        """A gallery, checked; UserError for the first row that is not finite."""
        for start in range(0, len(rows), BLOCK):
            finite = rows[start : start + BLOCK].isfinite().all(1)
            if not finite.all():
                place = start + int((~finite).nonzero()[0])
                raise UserError(f"row {place} of the gallery is not finite and cannot be ranked")
        return cls(rows) if change is None else cls(rows, change)

    def __len__(self) -> int:
        return len(self.rows)

    def blocks(self, size: int) -> Iterator[Float[Tensor, "_ e"]]:
        """All rows in order, at most `size` at a time."""
        for start in range(0, len(self.rows), size):
            places = slice(start, start + size)
            yield self.change(self.rows[places].float(), places)

    def take(self, index: Int[Tensor, " m"]) -> Float[Tensor, "m e"]:
        """The rows with these indices."""
        return self.change(self.rows[index].float(), index)

    def then(self, change: Change) -> "Gallery":
        """The same rows, changed once more."""
        return Gallery(self.rows, lambda rows, places: change(self.change(rows, places), places))


@dataclass(frozen=True, eq=False)
class Hits:
    """The best of the gallery for each query, best first."""

    index: Int[Tensor, "q k"]
    scores: Float[Tensor, "q k"]
    """The scores that decide the rank."""
    cosines: Float[Tensor, "q k"]


# Exact search


def nearest(
    queries: Float[Tensor, "q d"], gallery: Keys, k: int, block: int = BLOCK
) -> tuple[Float[Tensor, "q k"], Int[Tensor, "q k"]]:
    """The `min(k, n)` largest dot products and their indices; of equal ones the first."""
    k = min(k, len(gallery))
    _, candidates = topk_stream(queries, gallery, k + SLACK, block)
    values, index = in_order(products(queries, gallery, candidates), candidates)
    last, values, index = values[:, -1:], values[:, :k], index[:, :k]
    if not k or candidates.shape[1] == len(gallery):
        return values, index
    threshold = values[:, -1:] - ROUNDING * values[:, -1:].abs().clamp_min(1)
    for q in (last >= threshold).nonzero()[:, 0].tolist():  # ties reach beyond the candidates
        every = _at_least(queries[q], gallery, float(threshold[q]), block)[None]
        ordered = in_order(products(queries[q : q + 1], gallery, every), every)
        values[q], index[q] = (part[0, :k] for part in ordered)
    return values, index


def products(
    queries: Float[Tensor, "q d"], gallery: Keys, index: Int[Tensor, "q k"]
) -> Float[Tensor, "q k"]:
    """Dot products of each query with the rows of its indices, summed in float64."""
    query = torch.arange(len(queries)).repeat_interleave(index.shape[1])
    pairs = zip(torch.split(query, BLOCK), torch.split(index.flatten(), BLOCK), strict=True)
    parts = [(queries[q].double() * gallery.take(g).double()).sum(1) for q, g in pairs]
    return torch.cat([*parts, torch.zeros(0).double()]).view(index.shape).float()


def in_order(
    values: Float[Tensor, "q k"], index: Int[Tensor, "q k"]
) -> tuple[Float[Tensor, "q k"], Int[Tensor, "q k"]]:
    """The largest values first, of equal ones the lowest index."""
    order = torch.from_numpy(np.lexsort((index.numpy(), -values.numpy()), axis=-1))
    return values.gather(1, order), index.gather(1, order)


def _at_least(
    query: Float[Tensor, " d"], gallery: Keys, threshold: float, block: int
) -> Int[Tensor, " m"]:
    """The indices of all rows whose dot product reaches the threshold."""
    indices, start = [], 0
    for rows in gallery.blocks(block):
        indices.append((rows @ query >= threshold).nonzero()[:, 0] + start)
        start += len(rows)
    return torch.cat(indices)


# Re-ranking


def correction(name: str, options: Mapping[str, Any]) -> Correction:
    """The re-ranking method `name`; UserError for another one, or for `compat=true`."""
    if name not in CORRECTIONS:
        raise UserError(
            f"method '{name}' does not re-rank a search; these do: {', '.join(CORRECTIONS)}"
        )
    method: Correction = configure(name, options)
    if getattr(method, "compat", False):
        raise UserError(f"{name}: compat=true gives quotients; a search ranks by their logarithms")
    if getattr(method, "k", 1) < 1:
        raise UserError(f"{name}: k={method.k}; k is at least 1")  # type: ignore[union-attr]
    return method


def search(
    queries: Float[Tensor, "q d"],
    gallery: Gallery,
    k: int,
    method: Correction | None = None,
    bank: Float[Tensor, "b d"] | None = None,
    block: int = BLOCK,
) -> Hits:
    """The `min(k, n)` best of the gallery for each query, by cosine or as `method` corrects it.

    Args:
        queries: unit embeddings.
        gallery: its rows have unit length after `change`.
        method: needs a `bank`, unit embeddings of other queries of the same kind.
        block: number of gallery rows at a time; no score depends on it.

    Raises:
        UserError: a method without a bank, a query that is not finite.
    """
    if not queries.isfinite().all():
        raise UserError("a query is not finite and cannot be ranked")
    if not len(gallery):
        none = torch.zeros(len(queries), 0)
        return Hits(none.long(), none, none)
    if method is None:
        scores, index = nearest(queries, gallery, k, block)
        return Hits(index, scores, scores)
    if bank is None or not len(bank):
        raise UserError(f"method '{name_of(method)}' needs a bank of other queries")
    if isinstance(method, DN):
        scores, index = _shifted(queries, gallery, k, method, bank, block)
    elif isinstance(method, DIS):
        scores, index = _dynamic(queries, gallery, k, method, bank, block)
    else:
        scores, index = _corrected(queries, gallery, k, method, bank, block)
    return Hits(index, scores, products(queries, gallery, index))


def _corrected(
    queries: Tensor,
    gallery: Gallery,
    k: int,
    method: NNN | InvertedSoftmax | CSLS,
    bank: Tensor,
    block: int,
) -> tuple[Tensor, Tensor]:
    """Dot products with `[scale g, -bias]`; a bias is the loss of a similarity of zero."""
    scale, level = 1.0, torch.zeros(1, 1)
    if isinstance(method, NNN):
        bias = column_bias(gallery, bank, lambda s, b: nnn(s, b, method.k, method.alpha))
    elif isinstance(method, InvertedSoftmax):
        bias = column_bias(gallery, bank, lambda s, b: inverted_softmax(s, b, method.beta))
    else:
        bias = column_bias(gallery, bank, lambda s, b: csls(s, b, method.k))
        scale, level = 2.0, nearest(queries, gallery, method.k, block)[0].mean(1, keepdim=True)
    biased = gallery.then(lambda rows, at: torch.cat([scale * rows, -bias[at][:, None]], dim=1))
    scores, index = nearest(append_ones(queries), biased, k, block)
    return scores - level, index


def column_bias(
    gallery: Gallery, bank: Float[Tensor, "b d"], correct: Callable[[Tensor, Tensor], Tensor]
) -> Float[Tensor, " n"]:
    """For each row of the gallery, the amount by which a similarity of zero is reduced.

    `correct` takes similarities of zero `[1, m]`, and the bank's with the same rows `[b, m]`.
    """
    parts = []
    for rows in gallery.blocks(max(1, CELLS // len(bank))):
        parts.append(-correct(torch.zeros(1, len(rows)), bank @ rows.T)[0])
    return torch.cat(parts)


def _dynamic(
    queries: Tensor, gallery: Gallery, k: int, method: DIS, bank: Tensor, block: int
) -> tuple[Tensor, Tensor]:
    """Corrects only queries whose best row is among the `k` best of some query of the bank."""
    active = topk_stream(bank, gallery, method.k, block)[1]
    scores, index = nearest(queries, gallery, k, block)
    affected = torch.isin(index[:, 0], active)
    if affected.any():
        softened = InvertedSoftmax(beta=method.beta)
        part = _corrected(queries[affected], gallery, k, softened, bank, block)
        scores[affected], index[affected] = part
    return scores, index


def _shifted(
    queries: Tensor, gallery: Gallery, k: int, method: DN, bank: Tensor, block: int
) -> tuple[Tensor, Tensor]:
    """Both sides minus a share of their means."""
    total = sum(rows.sum(0, dtype=torch.float64) for rows in gallery.blocks(block))
    mean = (torch.as_tensor(total) / len(gallery)).float()
    around = gallery.then(lambda rows, _: normalize(rows - method.lam * mean))
    return nearest(normalize(queries - method.lam * bank.mean(0)), around, k, block)
