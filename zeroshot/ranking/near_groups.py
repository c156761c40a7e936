"""Groups of rows that are alike, tile by tile: no matrix of all pairs, and no list of them.

A group is a row and all later rows that are like it. Nothing joins a group through a third row, so
a chain of small changes does not make one group of two rows that have nothing in common, and
whoever keeps the first row of each group loses nothing that is unlike what is kept.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zeroshot.ops import normalize

TILE = 2048
"""Rows on each side of a tile of cosines: 16 MiB."""
ROUNDING = 1e-6
"""A cosine of 1 in float32 may be so much less."""

Agree = Callable[[int, Int[Tensor, " m"]], Bool[Tensor, " m"]]
"""Whether rows are like one row in another respect too."""
Possible = Callable[[Int[Tensor, " a"], Int[Tensor, " b"]], Bool[Tensor, "a b"]]
"""For a tile, which pairs `Agree` may find: cheap, so that it is asked about few."""


def has_neighbour(
    rows: Float[Tensor, "n d"], threshold: float, tile: int | None = None
) -> Bool[Tensor, " n"]:
    """Whether there is another row with a cosine of at least `threshold`."""
    unit, found = normalize(rows.float()), torch.zeros(len(rows), dtype=torch.bool)
    for first, second, near in _tiles(unit, threshold, tile or TILE):
        if first == second:
            near.fill_diagonal_(False)
        found[first] |= near.any(1)
        found[second] |= near.any(0)
    return found


def _tiles(
    unit: Float[Tensor, "n d"], threshold: float, tile: int
) -> Iterator[tuple[slice, slice, Bool[Tensor, "a b"]]]:
    """Each pair of rows once, in tiles on and right of the diagonal."""
    starts = range(0, len(unit), tile)
    for start in starts:
        for other in starts[start // tile :]:
            first, second = slice(start, start + tile), slice(other, other + tile)
            yield first, second, unit[first] @ unit[second].T >= threshold - ROUNDING


def leaders(
    rows: Float[Tensor, "n d"],
    threshold: float,
    agree: Agree | None = None,
    tile: int | None = None,
    possible: Possible | None = None,
) -> Int[Tensor, " n"]:
    """For each row the first of its group, which is the row itself if it is like none before it.

    A row belongs to the earliest leader with a cosine of at least `threshold` with which it agrees.
    """
    unit, size = normalize(rows.float()), tile or TILE
    leader = torch.full((len(unit),), -1)

    def near_of(first: Int[Tensor, " a"], second: Int[Tensor, " b"]) -> Bool[Tensor, "a b"]:
        near = unit[first] @ unit[second].T >= threshold - ROUNDING
        return near if possible is None else near & possible(first, second)

    def join(head: int, others: Int[Tensor, " m"]) -> None:
        others = others[leader[others] < 0]
        if len(others):
            leader[others if agree is None else others[agree(head, others)]] = head

    for start in range(0, len(unit), size):
        free = start + (leader[start : start + size] < 0).nonzero()[:, 0]
        near = near_of(free, free)
        for i in (near.sum(1) > 1).nonzero()[:, 0].tolist():
            if leader[free[i]] < 0:
                leader[free[i]] = free[i]
                join(int(free[i]), free[near[i]])
        heads = free[(leader[free] < 0) | (leader[free] == free)]
        leader[heads] = heads
        for other in range(start + size, len(unit), size):
            left = other + (leader[other : other + size] < 0).nonzero()[:, 0]
            near = near_of(heads, left)
            for i in near.any(1).nonzero()[:, 0].tolist():
                join(int(heads[i]), left[near[i]])
    return leader
