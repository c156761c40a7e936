"""Anchor embeddings: stored in pieces as they were given, read block by block as unit vectors."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from zeroshot.ops import normalize

BLOCK = 8192
"""Anchors that are normalized, or added up, at a time."""


def at_least_float32(embeddings: Real[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Embeddings in float32 or float64; those of fewer bits stand for unit vectors: normalized."""
    if embeddings.dtype in (torch.float32, torch.float64):
        return embeddings
    return normalize(embeddings.float())


@dataclass(frozen=True, eq=False)
class AnchorMatrix:
    """Anchor embeddings as unit vectors, less their mean if `centred`; `ops.Keys` for a search.

    They stay as they were given, in pieces, wherever they lie (in half precision, int8, a mapped
    file), and become unit vectors block by block. Adding appends a piece and removing cuts pieces
    into views, so that an edit copies no earlier embedding.
    """

    pieces: tuple[Real[Tensor, "_ d"], ...]
    count: int
    total: Float[Tensor, " d"]
    """Their sum in float64; edits update it."""
    unit: bool
    """Whether all of them were given at unit length."""
    centred: bool = False

    @classmethod
    def from_embeddings(
        cls, embeddings: Real[Tensor, "a d"], centred: bool = False
    ) -> "AnchorMatrix":
        """One piece; reads all embeddings once."""
        total = torch.zeros(embeddings.shape[1], dtype=torch.float64, device=embeddings.device)
        unit = True
        for start in range(0, len(embeddings), BLOCK):
            block = at_least_float32(embeddings[start : start + BLOCK])
            total += block.sum(0, dtype=torch.float64)
            unit = unit and bool(((block.norm(dim=1) - 1).abs() < 1e-6).all())
        return cls((embeddings,), len(embeddings), total, unit, centred)

    def __len__(self) -> int:
        return self.count

    @property
    def width(self) -> int:
        """Dimensions of an embedding."""
        return len(self.total)

    @property
    def mean(self) -> Float[Tensor, " d"]:
        """In float64."""
        return self.total / self.count

    def add(self, embeddings: Float[Tensor, "m d"]) -> "AnchorMatrix":
        """With these appended."""
        new = AnchorMatrix.from_embeddings(embeddings)
        return replace(
            self,
            pieces=(*self.pieces, embeddings),
            count=self.count + new.count,
            total=self.total + new.total,
            unit=self.unit and new.unit,
        )

    def remove(self, index: Int[Tensor, " m"]) -> "AnchorMatrix":
        """Without these (no index twice); the others keep their order."""
        pieces: list[Tensor] = []
        start = 0
        removed = index.sort().values
        for piece in self.pieces:
            inside = removed[(removed >= start) & (removed < start + len(piece))] - start
            begin = 0
            for end in [*inside.tolist(), len(piece)]:
                if end > begin:
                    pieces.append(piece[begin:end])
                begin = end + 1
            start += len(piece)
        lost = self.take_raw(removed).sum(0, dtype=torch.float64)
        return replace(
            self, pieces=tuple(pieces), count=self.count - len(removed), total=self.total - lost
        )

    def take_raw(self, index: Int[Tensor, " m"]) -> Float[Tensor, "m d"]:
        """The anchors at `index` as they were given, in float32 at least."""
        starts = torch.tensor([0, *(len(p) for p in self.pieces)]).cumsum(0)
        if len(self.pieces) == 1:
            return at_least_float32(self.pieces[0][index])
        owner = torch.searchsorted(starts, index, right=True) - 1
        out = at_least_float32(self.pieces[0][:0]).new_empty(len(index), self.width)
        for number in sorted(set(owner.tolist())):
            mine = owner == number
            out[mine] = at_least_float32(self.pieces[number][index[mine] - starts[number]])
        return out

    def take(self, index: Int[Tensor, " m"]) -> Float[Tensor, "m d"]:
        """The anchors at `index`, as `blocks` gives them."""
        return self._unit_vectors(self.take_raw(index))

    def blocks(self, size: int) -> Iterator[Float[Tensor, "_ d"]]:
        """All anchors in order as unit vectors, at most `size` at a time, small pieces joined."""
        for block in self.iter_raw(size):
            yield self._unit_vectors(block)

    def iter_raw(self, size: int) -> Iterator[Float[Tensor, "_ d"]]:
        """All anchors in order, as they were given; the next block may overwrite this one."""
        low_precision = self.pieces[0].dtype not in (torch.float32, torch.float64)
        # one buffer for all blocks: allocating each anew tears holes into the heap
        buffer = torch.empty(min(size, self.count) if low_precision else 0, self.width)

        def block(parts: list[Tensor]) -> Tensor:
            if not low_precision:
                return torch.cat(parts) if len(parts) > 1 else parts[0]
            start = 0
            for part in parts:
                buffer[start : start + len(part)].copy_(part)
                start += len(part)
            rows = buffer[:start]
            return rows.div_(rows.norm(dim=1, keepdim=True))

        waiting: list[Tensor] = []
        for part in (part for piece in self.pieces for part in torch.split(piece, size)):
            if waiting and sum(map(len, waiting)) + len(part) > size:
                yield block(waiting)
                waiting = []
            waiting.append(part)
        yield block(waiting)

    def center_and_normalize(self, embeddings: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Other embeddings as unit vectors, less the anchors' mean if `centred`."""
        if self.centred:
            embeddings = embeddings - self.mean.to(embeddings.dtype)
        return normalize(embeddings)

    def _unit_vectors(self, anchors: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Some of the anchors, normalized unless they are unit vectors already."""
        return anchors if self.unit and not self.centred else self.center_and_normalize(anchors)
