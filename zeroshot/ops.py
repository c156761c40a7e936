"""Functions of tensors that several methods share; no models and no files."""

import math
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def normalize(rows: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """Vectors of unit L2 norm; a zero vector (such as a missing prompt) stays zero."""
    norms = rows.norm(dim=-1, keepdim=True)
    return rows / torch.where(norms > 0, norms, 1)


def masked_mean(
    values: Float[Tensor, "*n t d"], mask: Bool[Tensor, "*n t"] | None
) -> Float[Tensor, "*n d"]:
    """Mean over `t` of the entries where `mask` is true; of all entries without a mask."""
    if mask is None:
        return values.mean(dim=-2)
    weight = mask.to(values.dtype).unsqueeze(-1)
    return (values * weight).sum(dim=-2) / weight.sum(dim=-2)


def filled(
    texts: Float[Tensor, "c t d"], mask: Bool[Tensor, "c t"] | None
) -> Float[Tensor, "c t d"]:
    """Replace each missing prompt by the mean prompt of its class."""
    if mask is None:
        return texts
    return torch.where(mask[..., None], texts, masked_mean(texts, mask)[:, None])


@runtime_checkable
class Keys(Protocol):
    """Vectors that can be read in blocks, in memory or on disk."""

    def __len__(self) -> int: ...

    def blocks(self, size: int) -> Iterator[Float[Tensor, "_ d"]]:
        """All vectors in order, at most `size` at a time."""

    def take(self, index: Int[Tensor, " m"]) -> Float[Tensor, "m d"]:
        """The vectors at these indices."""


QUERIES_AT_ONCE = 512
BLOCK = 8192
SAMPLE = 2048
"""Number of keys in the sample that estimates a query's k-th best similarity."""


def topk_stream(
    queries: Float[Tensor, "n d"], keys: Float[Tensor, "a d"] | Keys, k: int, block: int = BLOCK
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The `min(k, a)` largest dot products of each query and the indices of their keys, sorted.

    Keys are read in blocks, so memory is `512 x (block + 4 k)` plus the result, for any number of
    keys and queries. If `k` is small, a sample of the keys gives each query a threshold that about
    `2 k` keys exceed, and only these are sorted. If the threshold of a query is too high, the query
    is repeated without one.
    """
    k = min(k, len(keys))
    if len(queries) > QUERIES_AT_ONCE:
        parts = [
            topk_stream(part, keys, k, block) for part in torch.split(queries, QUERIES_AT_ONCE)
        ]
        return torch.cat([v for v, _ in parts]), torch.cat([i for _, i in parts])
    if len(keys) < 2 * SAMPLE or 8 * k > len(keys):
        return _topk_of_blocks(queries, keys, k, block)
    values, index, enough = _topk_above(queries, keys, k, block, _guess(queries, keys, k))
    if not enough.all():
        values[~enough], index[~enough] = _topk_of_blocks(queries[~enough], keys, k, block)
    return values, index


def _blocks(keys: Float[Tensor, "a d"] | Keys, size: int) -> Iterator[Tensor]:
    return iter(torch.split(keys, size)) if isinstance(keys, Tensor) else keys.blocks(size)


def _topk_of_blocks(
    queries: Float[Tensor, "n d"], keys: Float[Tensor, "a d"] | Keys, k: int, block: int
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Merge the best of each block with the best of all blocks before."""
    values = queries.new_empty(len(queries), 0)
    index = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    start = 0
    for rows in _blocks(keys, block):
        best, indices = (queries @ rows.T).topk(min(k, len(rows)), dim=1)
        values = torch.cat([values, best], dim=1)
        index = torch.cat([index, indices + start], dim=1)
        values, keep = values.topk(min(k, values.shape[1]), dim=1)
        index = index.gather(1, keep)
        start += len(rows)
    return values, index


def _guess(
    queries: Float[Tensor, "n d"], keys: Float[Tensor, "a d"] | Keys, k: int
) -> Float[Tensor, "n 1"]:
    """A threshold below the k-th best similarity, by a margin of four standard deviations."""
    indices = torch.arange(SAMPLE, device=queries.device) * len(keys) // SAMPLE
    sample = queries @ (keys[indices] if isinstance(keys, Tensor) else keys.take(indices)).T
    expected = k * SAMPLE / len(keys)
    rank = min(SAMPLE, math.ceil(expected + 4 * math.sqrt(expected) + 4))
    return sample.kthvalue(SAMPLE - rank + 1, dim=1, keepdim=True).values


def _nonzero(mask: Bool[Tensor, " n"]) -> Int[Tensor, " m"]:
    """Indices of the true entries; on the CPU numpy is three times as fast as torch."""
    if mask.device.type == "cpu":
        return torch.from_numpy(mask.numpy().nonzero()[0])
    return mask.nonzero()[:, 0]


def _topk_above(
    queries: Float[Tensor, "n d"],
    keys: Float[Tensor, "a d"] | Keys,
    k: int,
    block: int,
    threshold: Float[Tensor, "n 1"],
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"], Bool[Tensor, " n"]]:
    """The best keys above the threshold, and which queries have at least `k` of them."""
    count = len(queries)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    start = 0
    room = queries.new_empty(count * block)  # allocating it per block costs a tenth of the time
    for rows in _blocks(keys, block):
        similarity = torch.mm(queries, rows.T, out=room[: count * len(rows)].view(count, -1))
        above = _nonzero((similarity > threshold).flatten())
        row = above // len(rows)
        column = above - row * len(rows) + start
        found.append((row.int(), column.int(), similarity.flatten()[above]))
        start += len(rows)
    per_row = [torch.bincount(row, minlength=count) for row, _, _ in found]
    before = torch.zeros_like(per_row[0])
    width = max(k, int(sum(per_row, before).max()))
    values = queries.new_full((count, width), -torch.inf)
    index = torch.zeros(count, width, dtype=torch.int32, device=queries.device)
    for (row, column, similar), counts in zip(found, per_row, strict=True):
        skip = before - (counts.cumsum(0) - counts) + torch.arange(count, device=row.device) * width
        target = torch.arange(len(row), device=row.device) + skip[row]
        values.view(-1)[target] = similar
        index.view(-1)[target] = column
        before = before + counts
    values, keep = values.topk(k, dim=1)
    return values, index.gather(1, keep).long(), before >= k


def hold_out(
    count: int, most: int = 200, seed: int = 0
) -> tuple[Int[Tensor, " h"], Int[Tensor, " r"]]:
    """Split `range(count)` at random into a fifth (at most `most` numbers) and the rest."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    size = min(most, count // 5)
    return order[:size], order[size:]


def matching_scale(similarity: Float[Tensor, "n n"], largest: float = 1000.0) -> float:
    """The factor that makes `softmax(factor * similarity)` most likely to match row i with i.

    The negative log-likelihood is convex in the factor, so a bounded line search finds it.
    """
    from scipy.optimize import minimize_scalar

    scores = similarity.double()

    def loss(log_scale: float) -> float:
        log_probability = (math.exp(log_scale) * scores).log_softmax(1)
        return float(-log_probability.diagonal().mean())

    result = minimize_scalar(loss, bounds=(0.0, math.log(largest)), method="bounded")
    return math.exp(result.x)
