"""Masks as polygons whose corners are corners of pixels, so that no pixel is gained or lost.

Pixels that touch at a corner alone are separate parts, as in `scipy.ndimage.label`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from zeroshot.results.coco_rle import Mask

GridArray = np.ndarray[tuple[int, ...], np.dtype[Any]]
Ring = np.ndarray[tuple[int, int], np.dtype[np.int64]]
"""[corners 2]: x and y of each corner, in pixels from the top left; the last joins the first."""


SIDES = {
    **{0b0001: ((0, 0, 0),), 0b0010: ((1, 0, 0),), 0b0100: ((2, 0, 0),), 0b1000: ((3, 0, 0),)},
    **{0b1110: ((3, 0, 0),), 0b1101: ((2, 0, 0),), 0b1011: ((1, 0, 0),), 0b0111: ((0, 0, 0),)},
    **{0b1001: ((0, 0, 0), (3, 1, 1)), 0b0110: ((1, 1, 0), (2, 0, 1))},
}
"""The corners at a point of the grid, by which of the four pixels around it (bits: top left, top
right, bottom left, bottom right) are in the mask. Of each corner: a pixel of its part, and whether
its side across goes to the right, and its side down goes down, which only tells two corners apart.
"""


@dataclass(frozen=True)
class Polygon:
    """A part of a mask: its outline, and the outlines of its holes the other way round."""

    outline: Ring
    holes: tuple[Ring, ...] = ()

    def joined(self) -> Ring:
        """One ring with the holes in it, each reached by a cut of no width and left by the same.

        The area is the same by the even-odd rule and by the non-zero rule, for readers that know
        no holes.
        """
        from scipy.spatial import cKDTree

        ring = self.outline
        for hole in self.holes:
            apart, nearest = cKDTree(ring).query(hole)
            begin = int(apart.argmin())
            at, around = int(nearest[begin]), np.roll(hole, -begin, 0)
            ring = np.concatenate([ring[: at + 1], around, around[:1], ring[at:]])
        return ring


def polygons(mask: Mask) -> list[Polygon]:
    """The parts of a mask [h w], by their topmost then leftmost pixel."""
    from scipy import ndimage

    parts, count = ndimage.label(mask)
    rings: list[list[Ring]] = [[] for _ in range(count)]
    x, y, part, across, down = (each.tolist() for each in _corners(parts))
    seen = [False] * len(x)
    for start in range(len(x)):
        ring, corner = [], start
        while not seen[corner]:
            for end in (corner, across[corner]):
                seen[end] = True
                ring.append((x[end], y[end]))
            corner = down[across[corner]]
        if ring:
            rings[part[start] - 1].append(np.array(ring))
    return [_polygon(own) for own in rings]


def area(ring: Ring) -> float:
    """The area that a ring encloses; negative if it runs against the clock, as seen."""
    x, y = ring.T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2


def _polygon(rings: list[Ring]) -> Polygon:
    """The largest ring is the outline."""
    first, *others = sorted(rings, key=lambda ring: -abs(area(ring)))
    outline = first if area(first) > 0 else first[::-1]
    return Polygon(outline, tuple(ring if area(ring) < 0 else ring[::-1] for ring in others))


def _corners(parts: GridArray) -> tuple[GridArray, ...]:
    """x, y and part of each corner, and the corners that end its two sides (across, and down).

    Along a line of the grid, sides run from each corner at an odd place to the next one. Where two
    pixels touch at a corner, it is there twice, once for each pixel.
    """
    full = np.pad(parts > 0, 1)
    corners = [(0, 0), (0, 1), (1, 0), (1, 1)]
    height, width = full.shape[0] - 1, full.shape[1] - 1
    code = np.zeros((height, width), np.uint8)
    for bit, (top, left) in enumerate(corners):
        code |= full[top : top + height, left : left + width].astype(np.uint8) << bit
    found = []
    for value, sides in SIDES.items():
        y, x = np.nonzero(code == value)
        for pixel, at_right, below in sides:
            top, left = corners[pixel]
            own = parts[y + top - 1, x + left - 1]
            found.append((x, y, own, np.full_like(x, at_right), np.full_like(x, below)))
    x, y, part, right, low = map(np.concatenate, zip(*found, strict=True))
    return x, y, part, _partners(np.lexsort((right, x, y))), _partners(np.lexsort((low, y, x)))


def _partners(order: GridArray) -> GridArray:
    """For each corner the other end of its side, given the corners in the order along the lines."""
    partners = np.empty_like(order)
    partners[order[::2]], partners[order[1::2]] = order[1::2], order[::2]
    return partners
